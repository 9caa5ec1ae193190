# SPDX-License-Identifier: Apache-2.0
"""Causal attention as a TPU kernel: scores never leave the chip's fast memory.

Packed queries, keys and values in, heads' outputs out; a relative position
bias enters as one number per distance, for those near enough to matter.

Scores are held transposed, `[keys, queries]`: softmax statistics are then rows
that fill whole vector registers, and reductions over keys need no shuffles.
Heads narrower than the 128 lanes are processed in groups that fill them; the
lanes of the other heads are zeroed in one operand of each product, which costs
nothing as the matrix unit pads to its own width anyway.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from musiclm_jax.layers import positions

LANES = 128
MASKED = positions.MASKED
# Beyond this length a row of keys, values and their gradients does not fit in
# the 16 MiB that every TPU has.
MAX_LENGTH = 4096
_VMEM_BYTES = 48 << 20


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Shapes of one call.

  Attributes:
    batch: rows.
    length: positions.
    heads: heads.
    kv: width of a head.
    block: side of a tile of scores.
    near: diagonals of tiles with a bias.
  """

  batch: int
  length: int
  heads: int
  kv: int
  block: int
  near: int

  @property
  def group(self) -> int:
    """Heads that share the lanes of a register."""
    return max(1, LANES // self.kv)

  @property
  def num_groups(self) -> int:
    return self.heads // self.group

  @property
  def width(self) -> int:
    """Lanes of a group."""
    return self.group * self.kv

  @property
  def num_blocks(self) -> int:
    return pl.cdiv(self.length, self.block)

  @property
  def padded(self) -> int:
    return self.num_blocks * self.block

  @property
  def tiles(self) -> int:
    """Tiles of scores that are computed, per row and head."""
    return self.num_blocks * (self.num_blocks + 1) // 2


def supported(length: int, heads: int, kv: int) -> bool:
  """Whether the kernel takes this shape."""
  fills = LANES % kv == 0 or kv % LANES == 0
  group = max(1, LANES // kv)
  return fills and heads % group == 0 and length <= MAX_LENGTH


def _dot(a, b, contract: tuple[int, int]) -> jax.Array:
  dims = (((contract[0],), (contract[1],)), ((), ()))
  return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _head_lanes(x: jax.Array, sizes: Sizes, head: int) -> jax.Array:
  """`x` with the lanes of other heads of the group zeroed."""
  if sizes.group == 1:
    return x
  lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) // sizes.kv
  return jnp.where(lane == head, x, jnp.zeros_like(x))


def _column(row: jax.Array) -> jax.Array:
  """`[1, n]` to `[n, 1]`, by a transpose the hardware has."""
  return jnp.transpose(jnp.broadcast_to(row, (LANES, row.shape[1])))[:, :1]


def _shear(x: jax.Array, back: bool) -> jax.Array:
  """Rolls row r along the lanes by r (or by -r), in log2(rows) steps."""
  rows, size = x.shape
  row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
  for bit in range((rows - 1).bit_length()):
    shift = size - (1 << bit) if back else 1 << bit
    moved = pltpu.roll(x, shift, 1)
    x = jnp.where((row >> bit) & 1 == 1, moved, x)
  return x


def _spread(wheel_ref, near, sizes: Sizes) -> None:
  """Tiles of the bias from its values by distance, and one of zeros."""
  shape = (sizes.block, 2 * sizes.block)

  def one(index, carry):
    head, d = index // sizes.near, index % sizes.near
    line = jnp.broadcast_to(wheel_ref[head, pl.ds(d, 1)], shape)
    near[head, d] = _shear(line, False)[:, : sizes.block]
    return carry

  # Loops, here and below: unrolled, they take minutes to compile.
  jax.lax.fori_loop(0, near.shape[0] * sizes.near, one, 0)
  for head in range(near.shape[0]):
    near[head, sizes.near] = jnp.zeros(near.shape[2:], near.dtype)


def _gather(near_grads, wheel_grad_ref, sizes: Sizes) -> None:
  """Sums of the tiles' gradients over their diagonals."""

  def one(index, carry):
    head, d = index // sizes.near, index % sizes.near
    tile = near_grads[head, d]
    wide = jnp.concatenate([tile, jnp.zeros_like(tile)], axis=1)
    total = _shear(wide, True).sum(axis=0, keepdims=True)
    wheel_grad_ref[head, pl.ds(d, 1)] = total
    return carry

  jax.lax.fori_loop(0, sizes.group * sizes.near, one, 0)


def _keep_real(x: jax.Array, start: jax.Array, length: int) -> jax.Array:
  """Zeros for rows that lie beyond the sequence: they hold anything."""
  row = start + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
  return jnp.where(row < length, x, jnp.zeros_like(x))


def _load_row(source, target, sizes: Sizes) -> None:
  """Copies a whole row of keys or values, with zeros up to full blocks."""
  target[: sizes.length] = source[0]
  if sizes.padded > sizes.length:
    rest = (sizes.padded - sizes.length, sizes.width)
    target[sizes.length :] = jnp.zeros(rest, target.dtype)


def _rows_of(j, sizes: Sizes):
  return pl.ds(pl.multiple_of(j * sizes.block, sizes.block), sizes.block)


def _scores(key, query, near, head, d, segments, rows) -> jax.Array:
  """Transposed scores of one tile, with bias and masks."""
  scores = _dot(key, query, (1, 1))
  scores += near[head if near.shape[0] > 1 else 0, d]
  if segments is not None:
    query_segments, key_segments = segments
    same = _column(key_segments[0, :, rows]) == query_segments[0]
    scores = jnp.where(same, scores, MASKED)
  return scores


def _forward_kernel(*refs, sizes: Sizes, packed: bool):
  query_ref, key_ref, value_ref, wheel_ref, *refs = refs
  segments = None
  if packed:
    segments, refs = refs[:2], refs[2:]
  out_ref, log_sum_ref, keys, values, near = refs
  i = pl.program_id(2)

  @pl.when((i == 0) & (pl.program_id(1) == 0))
  def _():
    _spread(wheel_ref, near, sizes)

  @pl.when(i == 0)
  def _():
    _load_row(key_ref, keys, sizes)
    _load_row(value_ref, values, sizes)

  query = query_ref[0] * jnp.asarray(sizes.kv**-0.5, query_ref.dtype)
  total = jnp.zeros((sizes.width, sizes.block), jnp.float32)
  for head in range(sizes.group):
    head_query = _head_lanes(query, sizes, head)

    def body(j, carry, head=head, head_query=head_query):
      top, mass, sums = carry
      rows, d = _rows_of(j, sizes), jnp.minimum(i - j, sizes.near)
      scores = _scores(keys[rows], head_query, near, head, d, segments, rows)
      new_top = jnp.maximum(top, scores.max(axis=0, keepdims=True))
      weights = jnp.exp(scores - new_top)
      shrink = jnp.exp(top - new_top)
      mass = mass * shrink + weights.sum(axis=0, keepdims=True)
      value = values[rows]
      sums = sums * shrink + _dot(value, weights.astype(value.dtype), (0, 0))
      return new_top, mass, sums

    row = (1, sizes.block)
    # The diagonal comes last: what fully masked tiles put in is then wiped
    # out.
    top, mass, sums = jax.lax.fori_loop(
      0,
      i + 1,
      body,
      (
        jnp.full(row, -jnp.inf, jnp.float32),
        jnp.zeros(row, jnp.float32),
        jnp.zeros_like(total),
      ),
    )
    lane = jax.lax.broadcasted_iota(jnp.int32, total.shape, 0) // sizes.kv
    total = jnp.where(lane == head, sums / mass, total)
    log_sum_ref[0, 0, head : head + 1] = top + jnp.log(mass)
  out_ref[0] = jnp.transpose(total).astype(out_ref.dtype)


def _backward_kernel(*refs, sizes: Sizes, packed: bool, with_bias: bool):
  query_ref, key_ref, value_ref, wheel_ref, *refs = refs
  segments = None
  if packed:
    segments, refs = refs[:2], refs[2:]
  grad_ref, log_sum_ref, delta_ref, *refs = refs
  query_grad_ref, key_grad_ref, value_grad_ref, *refs = refs
  if with_bias:
    wheel_grad_ref, *refs = refs
  keys, values, near, key_grads, value_grads, *near_grads = refs
  b, i = pl.program_id(1), pl.program_id(2)

  @pl.when((i == 0) & (b == 0))
  def _():
    _spread(wheel_ref, near, sizes)
    for grads in near_grads:
      grads[...] = jnp.zeros_like(grads)

  @pl.when(i == 0)
  def _():
    _load_row(key_ref, keys, sizes)
    _load_row(value_ref, values, sizes)
    key_grads[...] = jnp.zeros_like(key_grads)
    value_grads[...] = jnp.zeros_like(value_grads)

  start = i * sizes.block
  dtype = query_ref.dtype
  scale = jnp.asarray(sizes.kv**-0.5, dtype)
  query = _keep_real(query_ref[0], start, sizes.length) * scale
  grad = _keep_real(grad_ref[0], start, sizes.length)
  real = (
    start + jax.lax.broadcasted_iota(jnp.int32, (1, sizes.block), 1)
    < sizes.length
  )
  total = jnp.zeros((sizes.block, sizes.width), jnp.float32)
  for head in range(sizes.group):
    head_query = _head_lanes(query, sizes, head)
    head_grad = _head_lanes(grad, sizes, head)
    log_sum = jnp.where(real, log_sum_ref[0, 0, head : head + 1], -MASKED)
    delta = jnp.where(real, delta_ref[0, 0, head : head + 1], 0.0)

    def body(
      j,
      query_grad,
      head=head,
      head_query=head_query,
      head_grad=head_grad,
      log_sum=log_sum,
      delta=delta,
    ):
      rows, d = _rows_of(j, sizes), jnp.minimum(i - j, sizes.near)
      key = keys[rows]
      scores = _scores(key, head_query, near, head, d, segments, rows)
      weights = jnp.exp(scores - log_sum)
      value_grads[rows] += _dot(weights.astype(dtype), head_grad, (1, 0))
      weights_grad = _dot(values[rows], head_grad, (1, 1))
      scores_grad = weights * (weights_grad - delta)
      if with_bias:

        @pl.when(d < sizes.near)
        def _():
          near_grads[0][head, d] += scores_grad

      low = scores_grad.astype(dtype)
      key_grads[rows] += _dot(low, head_query, (1, 0))
      return query_grad + _dot(low, key, (0, 0))

    query_grad = jax.lax.fori_loop(0, i + 1, body, jnp.zeros_like(total))
    total += _head_lanes(query_grad, sizes, head)
  query_grad_ref[0] = (total * sizes.kv**-0.5).astype(dtype)

  @pl.when(i == sizes.num_blocks - 1)
  def _():
    key_grad_ref[0] = key_grads[: sizes.length].astype(dtype)
    value_grad_ref[0] = value_grads[: sizes.length].astype(dtype)

  if with_bias:

    @pl.when((i == sizes.num_blocks - 1) & (b == sizes.batch - 1))
    def _():
      _gather(near_grads[0], wheel_grad_ref, sizes)


def _in_specs(sizes: Sizes, wheel: jax.Array, packed: bool) -> list:
  """Blocks of packed `[batch, length, 3 * heads * kv]`, bias and segments."""
  groups = sizes.num_groups
  per_head = wheel.shape[0] > 1
  specs = [
    pl.BlockSpec((1, sizes.block, sizes.width), lambda g, b, i: (b, i, g)),
    pl.BlockSpec(
      (1, sizes.length, sizes.width), lambda g, b, i: (b, 0, groups + g)
    ),
    pl.BlockSpec(
      (1, sizes.length, sizes.width), lambda g, b, i: (b, 0, 2 * groups + g)
    ),
    pl.BlockSpec(
      (sizes.group if per_head else 1, *wheel.shape[1:]),
      lambda g, b, i: (g if per_head else 0, 0, 0),
    ),
  ]
  if packed:
    specs += [
      pl.BlockSpec((1, 1, sizes.block), lambda g, b, i: (b, 0, i)),
      pl.BlockSpec((1, 1, sizes.padded), lambda g, b, i: (b, 0, 0)),
    ]
  return specs


def _segment_args(sizes: Sizes, segment_ids: jax.Array | None) -> list:
  if segment_ids is None:
    return []
  rest = sizes.padded - sizes.length
  # float32: that is what the hardware transposes; small integers are exact.
  ids = jnp.pad(segment_ids.astype(jnp.float32), ((0, 0), (0, rest)))[:, None]
  return [ids, ids]


def _cost(sizes: Sizes, products: int, num_bytes: int) -> pl.CostEstimate:
  pairs = sizes.batch * sizes.heads * sizes.tiles * sizes.block**2
  return pl.CostEstimate(
    flops=2 * products * pairs * sizes.kv,
    transcendentals=pairs,
    bytes_accessed=int(num_bytes),
  )


def _params() -> pltpu.CompilerParams:
  return pltpu.CompilerParams(
    dimension_semantics=("parallel", "arbitrary", "arbitrary"),
    vmem_limit_bytes=_VMEM_BYTES,
  )


def _tiles(sizes: Sizes, wheel: jax.Array, count: int):
  heads = sizes.group if wheel.shape[0] > 1 else 1
  return pltpu.VMEM((heads, count, sizes.block, sizes.block), jnp.float32)


def _rows(sizes: Sizes) -> tuple[int, ...]:
  return (sizes.batch, sizes.num_groups, sizes.group, sizes.length)


@functools.partial(jax.jit, static_argnames=("sizes", "interpret"))
def forward(
  qkv: jax.Array,
  wheel: jax.Array,
  segment_ids: jax.Array | None,
  sizes: Sizes,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Attention of every head.

  Args:
    qkv: `[batch, length, 3 * heads * kv]`.
    wheel: float32 `[heads or 1, near, 2 * block]`, bias and causal mask by
      distance (`positions.near_wheel`); beyond, there is no bias.
    segment_ids: int32 `[batch, length]`; only equal ones see each other.
    sizes: shapes.
    interpret: runs the kernel's program without a TPU.

  Returns:
    `[batch, length, heads * kv]`, and the log of the softmax's denominator,
    float32 `[batch, heads, length]`.
  """
  out_shape = (sizes.batch, sizes.length, sizes.heads * sizes.kv)
  scratch = pltpu.VMEM((sizes.padded, sizes.width), qkv.dtype)
  packed = segment_ids is not None
  out, log_sum = pl.pallas_call(
    functools.partial(_forward_kernel, sizes=sizes, packed=packed),
    grid=(sizes.num_groups, sizes.batch, sizes.num_blocks),
    in_specs=_in_specs(sizes, wheel, packed),
    out_specs=[
      pl.BlockSpec((1, sizes.block, sizes.width), lambda g, b, i: (b, i, g)),
      pl.BlockSpec(
        (1, 1, sizes.group, sizes.block), lambda g, b, i: (b, g, 0, i)
      ),
    ],
    out_shape=[
      jax.ShapeDtypeStruct(out_shape, qkv.dtype),
      jax.ShapeDtypeStruct(_rows(sizes), jnp.float32),
    ],
    scratch_shapes=[scratch, scratch, _tiles(sizes, wheel, sizes.near + 1)],
    compiler_params=_params(),
    cost_estimate=_cost(
      sizes,
      2,
      qkv.nbytes * 4 / 3 + wheel.nbytes + 4 * math.prod(_rows(sizes)),
    ),
    interpret=interpret,
    name="t5_attention_forward",
  )(qkv, qkv, qkv, wheel, *_segment_args(sizes, segment_ids))
  return out, log_sum.reshape(sizes.batch, sizes.heads, sizes.length)


@functools.partial(jax.jit, static_argnames=("sizes", "with_bias", "interpret"))
def backward(
  qkv: jax.Array,
  wheel: jax.Array,
  segment_ids: jax.Array | None,
  grad: jax.Array,
  log_sum: jax.Array,
  delta: jax.Array,
  sizes: Sizes,
  with_bias: bool = True,
  interpret: bool = False,
) -> list[jax.Array]:
  """Gradients of `forward`.

  Args:
    qkv: as in `forward`.
    wheel: as in `forward`.
    segment_ids: as in `forward`.
    grad: of the output, `[batch, length, heads * kv]`.
    log_sum: from `forward`.
    delta: sum of output times its gradient over each head, shaped as
      `log_sum`.
    sizes: shapes.
    with_bias: also the gradient of `wheel` (which then has all heads).
    interpret: as in `forward`.

  Returns:
    Gradients of queries, keys and values, each `[batch, length, heads * kv]`,
    and with `with_bias` that of `wheel`.
  """
  block = pl.BlockSpec((1, sizes.block, sizes.width), lambda g, b, i: (b, i, g))
  row = pl.BlockSpec(
    (1, 1, sizes.group, sizes.block), lambda g, b, i: (b, g, 0, i)
  )
  whole = pl.BlockSpec(
    (1, sizes.length, sizes.width), lambda g, b, i: (b, 0, g)
  )
  packed = segment_ids is not None
  in_specs = _in_specs(sizes, wheel, packed)
  out_specs = [block, whole, whole]
  out_shape = [jax.ShapeDtypeStruct(grad.shape, qkv.dtype)] * 3
  if with_bias:
    out_specs.append(in_specs[3])
    out_shape.append(jax.ShapeDtypeStruct(wheel.shape, jnp.float32))
  shape = (sizes.padded, sizes.width)
  return pl.pallas_call(
    functools.partial(
      _backward_kernel, sizes=sizes, packed=packed, with_bias=with_bias
    ),
    grid=(sizes.num_groups, sizes.batch, sizes.num_blocks),
    in_specs=[*in_specs, block, row, row],
    out_specs=out_specs,
    out_shape=out_shape,
    scratch_shapes=[
      pltpu.VMEM(shape, qkv.dtype),
      pltpu.VMEM(shape, qkv.dtype),
      _tiles(sizes, wheel, sizes.near + 1),
      pltpu.VMEM(shape, jnp.float32),
      pltpu.VMEM(shape, jnp.float32),
      *[_tiles(sizes, wheel, sizes.near)] * with_bias,
    ],
    compiler_params=_params(),
    cost_estimate=_cost(
      sizes,
      5,
      qkv.nbytes * 7 / 3
      + wheel.nbytes * (1 + with_bias)
      + 8 * math.prod(_rows(sizes)),
    ),
    interpret=interpret,
    name="t5_attention_backward",
  )(
    qkv,
    qkv,
    qkv,
    wheel,
    *_segment_args(sizes, segment_ids),
    grad,
    log_sum.reshape(_rows(sizes)),
    delta.reshape(_rows(sizes)),
  )
