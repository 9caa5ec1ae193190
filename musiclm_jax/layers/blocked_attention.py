# SPDX-License-Identifier: Apache-2.0
"""Causal attention that never holds the scores of a whole sequence.

Packed queries, keys and values in, heads' outputs out. Blocks of queries are
done one after the other; the backward pass computes their weights again. On
TPU a kernel does this without leaving the chip's fast memory
(`attention_kernel.py`), elsewhere XLA.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention

from musiclm_jax.layers import attention_kernel, positions
from musiclm_jax.partitioning import axes

# Scores of a block, of some heads of one row, that a CPU works on at a time:
# 4 MB of float32.
_CACHED_SCORES = 2**20

# Names of what the backward pass needs, for checkpoint policies.
SAVED_NAMES = ("attention_context", "attention_log_sum")


def block_size(length: int) -> int:
  """Side of the tiles of scores.

  Args:
    length: positions of the sequence.
  """
  # Larger ones compute more pairs beyond the diagonal, and compile slower.
  return 256 if length > 128 else 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockedBias:
  """What takes the place of a bias of all pairs.

  Attributes:
    wheel: float32 `[heads or 1, tiles, 2 * block]`, from
      `positions.RelativeBias.near` or `positions.near_mask`.
    segment_ids: int32 `[batch, length]` below 2^24; positions see only those
      of the same segment. None: all are of one.
    learned: `wheel` has heads and wants a gradient.
    kernel: run the TPU kernel where there is a TPU and it takes the shape.
  """

  wheel: jax.Array
  segment_ids: jax.Array | None
  learned: bool = dataclasses.field(metadata={"static": True})
  kernel: bool = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What is static about a call.

  Attributes:
    sizes: shapes of this device's part.
    kernel: run the TPU kernel.
    interpret: ... without a TPU.
    learned: the bias has a gradient.
  """

  sizes: attention_kernel.Sizes
  kernel: bool
  interpret: bool
  learned: bool


def attend(
  qkv: jax.Array, bias: BlockedBias, interpret: bool = False
) -> jax.Array:
  """Causal softmax attention with a bias by distance.

  Args:
    qkv: `[batch, length, 3, heads, kv]`: queries, keys and values.
    bias: by distance, and masks.
    interpret: runs the kernel, without a TPU.

  Returns:
    `[batch, length, heads, kv]` in the dtype of `qkv`.
  """
  # A device needs the whole length; where that is split, it takes some of the
  # heads instead.
  heads = ("heads", "length")
  arguments = [qkv, bias.wheel]
  names = [
    ("batch", None, None, heads, None),
    (heads if bias.learned else None, None, None),
  ]
  if bias.segment_ids is not None:
    arguments.append(bias.segment_ids)
    names.append(("batch", None))
  run = functools.partial(
    _on_device,
    learned=bias.learned,
    kernel=interpret or (bias.kernel and axes.platform() == "tpu"),
    interpret=interpret,
  )
  out_names = ("batch", None, heads, None)
  return axes.on_each_device(run, names, out_names)(*arguments)


def _on_device(
  qkv: jax.Array,
  wheel: jax.Array,
  segment_ids: jax.Array | None = None,
  *,
  learned: bool,
  kernel: bool,
  interpret: bool,
) -> jax.Array:
  batch, length, _, heads, kv = qkv.shape
  if kernel and not learned:
    # Without a bias there is a kernel in jax that does this well.
    return _splash(qkv, segment_ids, interpret)
  sizes = attention_kernel.Sizes(
    batch=batch,
    length=length,
    heads=heads,
    kv=kv,
    block=wheel.shape[2] // 2,
    near=wheel.shape[1],
  )
  plan = _Plan(
    sizes=sizes,
    kernel=kernel and attention_kernel.supported(length, heads, kv),
    interpret=interpret,
    learned=learned,
  )
  out = _attend(
    plan, qkv.reshape(batch, length, 3 * heads * kv), wheel, segment_ids
  )
  return out.reshape(batch, length, heads, kv)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, qkv, wheel, segment_ids):
  return _attend_forward(plan, qkv, wheel, segment_ids)[0]


def _attend_forward(plan, qkv, wheel, segment_ids):
  if plan.kernel:
    out, log_sum = attention_kernel.forward(
      qkv, wheel, segment_ids, plan.sizes, plan.interpret
    )
  else:
    out, log_sum = _forward(qkv, wheel, segment_ids, plan.sizes)
  out = checkpoint_name(out, SAVED_NAMES[0])
  log_sum = checkpoint_name(log_sum, SAVED_NAMES[1])
  return out, (qkv, wheel, segment_ids, out, log_sum)


def _attend_backward(plan, saved, grad):
  qkv, wheel, segment_ids, out, log_sum = saved
  sizes = plan.sizes
  # Of each weight's gradient, its mean under the weights is taken off: that
  # is the product of output and gradient, without a pass over the keys.
  delta = grad.astype(jnp.float32) * out.astype(jnp.float32)
  delta = delta.reshape(sizes.batch, sizes.length, sizes.heads, sizes.kv)
  delta = delta.sum(-1).transpose(0, 2, 1)
  arguments = qkv, wheel, segment_ids, grad, log_sum, delta, sizes
  if plan.kernel:
    parts = attention_kernel.backward(
      *arguments, with_bias=plan.learned, interpret=plan.interpret
    )
  else:
    parts = _backward(*arguments, with_bias=plan.learned)
  wheel_grad = parts[3] if plan.learned else jnp.zeros_like(wheel)
  return jnp.concatenate(parts[:3], axis=-1), wheel_grad, None


_attend.defvjp(_attend_forward, _attend_backward)


# --- Without a bias, by jax's own kernel.


def _splash(
  qkv: jax.Array, segment_ids: jax.Array | None, interpret: bool
) -> jax.Array:
  """Causal attention of `[batch, length, 3, heads, kv]` by splash attention."""
  _, length, _, heads, kv = qkv.shape
  block = block_size(length)
  # What fills the last block comes after all queries: the mask hides it.
  rest = -length % block
  padded = length + rest
  mask = splash_attention.MultiHeadMask(
    [splash_attention.CausalMask((padded, padded))] * heads
  )
  sides = (
    "block_q",
    "block_kv",
    "block_kv_compute",
    "block_q_dkv",
    "block_kv_dkv",
    "block_kv_dkv_compute",
    "block_q_dq",
    "block_kv_dq",
  )
  run = splash_attention.make_splash_mha_single_device(
    mask=mask,
    block_sizes=splash_attention.BlockSizes(**dict.fromkeys(sides, block)),
    residual_checkpoint_name=SAVED_NAMES[0],
    interpret=interpret,
  )
  query, key, value = (
    jnp.pad(qkv[:, :, i].swapaxes(1, 2), ((0, 0), (0, 0), (0, rest), (0, 0)))
    for i in range(3)
  )
  query = query * jnp.asarray(kv**-0.5, query.dtype)
  if segment_ids is None:
    out = jax.vmap(run)(query, key, value)
  else:
    ids = jnp.pad(segment_ids, ((0, 0), (0, rest)))
    out = jax.vmap(run)(
      query, key, value, splash_attention.SegmentIds(ids, ids)
    )
  return out[:, :, :length].swapaxes(1, 2)


# --- The same, by XLA.


def _heads(x: jax.Array, sizes: attention_kernel.Sizes) -> jax.Array:
  """`[batch, length, heads * kv]` to `[heads, batch, length, kv]`."""
  x = x.reshape(sizes.batch, sizes.length, sizes.heads, sizes.kv)
  return x.transpose(2, 0, 1, 3)


def _flat(x: jax.Array) -> jax.Array:
  """The inverse of `_heads`."""
  heads, batch, length, kv = x.shape
  return x.transpose(1, 2, 0, 3).reshape(batch, length, heads * kv)


def _split(qkv: jax.Array, sizes: attention_kernel.Sizes) -> list[jax.Array]:
  query, key, value = (
    _heads(part, sizes) for part in jnp.split(qkv, 3, axis=-1)
  )
  return [query * jnp.asarray(sizes.kv**-0.5, query.dtype), key, value]


def _queries(i: int, sizes: attention_kernel.Sizes) -> slice:
  return slice(i * sizes.block, min((i + 1) * sizes.block, sizes.length))


def _near(i: int, sizes: attention_kernel.Sizes) -> tuple[int, slice]:
  """Which of `_biases` block i of queries has, and for which keys."""
  count = min(sizes.near, i + 1)
  start = (i + 1 - count) * sizes.block
  return count - 1, slice(start, _queries(i, sizes).stop)


def _biases(
  wheel: jax.Array, sizes: attention_kernel.Sizes
) -> tuple[jax.Array, ...]:
  """Bias and causal mask of 1, 2, ... near blocks of keys.

  Returns:
    Each `[heads, keys, queries]`, keys up to the last of the block of queries.
  """
  tiles = positions.toeplitz(wheel)
  tiles = jnp.broadcast_to(tiles, (sizes.heads, *tiles.shape[1:]))
  return tuple(
    jnp.concatenate([tiles[:, d] for d in reversed(range(count))], axis=1)
    for count in range(1, min(sizes.near, sizes.num_blocks) + 1)
  )


def _masked_scores(i, key, query, biases, ids, sizes) -> jax.Array:
  """Scores of block i of queries, `[..., keys, queries]`."""
  rows, (which, near) = _queries(i, sizes), _near(i, sizes)
  scores = jnp.einsum(
    "...kd,...qd->...kq",
    key[..., : rows.stop, :],
    query[..., rows, :],
    preferred_element_type=jnp.float32,
  )
  num_keys, num_queries = near.stop - near.start, rows.stop - rows.start
  bias = biases[which][..., :num_keys, :num_queries]
  if near.start:
    bias = jnp.concatenate(
      [jnp.zeros((*bias.shape[:-2], near.start, num_queries)), bias], axis=-2
    )
  scores = scores + bias
  if ids is None:
    return scores
  same = ids[..., : rows.stop, None] == ids[..., None, rows]
  return jnp.where(same, scores, positions.MASKED)


def _forward_rows(query, key, value, biases, ids, sizes):
  """Outputs `[..., length, kv]` and logs of denominators `[..., length]`."""
  outs, log_sums = [], []
  for i in range(sizes.num_blocks):
    scores = _masked_scores(i, key, query, biases, ids, sizes)
    top = scores.max(axis=-2, keepdims=True)
    weights = jnp.exp(scores - top)
    mass = weights.sum(axis=-2, keepdims=True)
    out = jnp.einsum(
      "...kq,...kd->...qd",
      weights.astype(value.dtype),
      value[..., : _queries(i, sizes).stop, :],
      preferred_element_type=jnp.float32,
    )
    outs.append((out / mass.swapaxes(-1, -2)).astype(value.dtype))
    log_sums.append((top + jnp.log(mass))[..., 0, :])
  return jnp.concatenate(outs, axis=-2), jnp.concatenate(log_sums, axis=-1)


def _backward_rows(
  query, key, value, grad, log_sum, delta, biases, ids, sizes, with_bias
):
  """Gradients of scaled queries, keys, values, and of `biases` if asked."""
  dtype, query_grads = query.dtype, []
  key_grad = jnp.zeros(key.shape, jnp.float32)
  value_grad = jnp.zeros(value.shape, jnp.float32)
  shapes = [(*key.shape[:-2], *bias.shape[-2:]) for bias in biases]
  bias_grads = [jnp.zeros(shape, jnp.float32) for shape in shapes]
  for i in range(sizes.num_blocks):
    rows, (which, near) = _queries(i, sizes), _near(i, sizes)
    seen = slice(0, rows.stop)
    scores = _masked_scores(i, key, query, biases, ids, sizes)
    weights = jnp.exp(scores - log_sum[..., None, rows])
    weights_grad = jnp.einsum(
      "...kd,...qd->...kq",
      value[..., seen, :],
      grad[..., rows, :],
      preferred_element_type=jnp.float32,
    )
    scores_grad = weights * (weights_grad - delta[..., None, rows])
    low = scores_grad.astype(dtype)
    query_grads.append(jnp.einsum("...kq,...kd->...qd", low, key[..., seen, :]))
    key_grad = key_grad.at[..., seen, :].add(
      jnp.einsum("...kq,...qd->...kd", low, query[..., rows, :])
    )
    value_grad = value_grad.at[..., seen, :].add(
      jnp.einsum(
        "...kq,...qd->...kd", weights.astype(dtype), grad[..., rows, :]
      )
    )
    if with_bias:
      part = scores_grad[..., near, :]
      size = part.shape[-2:]
      bias_grads[which] = (
        bias_grads[which].at[..., : size[0], : size[1]].add(part)
      )
  grads = (jnp.concatenate(query_grads, axis=-2), key_grad, value_grad)
  return grads, tuple(bias_grads) if with_bias else ()


def _group_size(sizes: attention_kernel.Sizes) -> int:
  """Heads of a row that are done together on a CPU.

  So many that their scores stay in the caches from one operation to the next,
  and so few operations that starting them costs little.
  """
  most = _CACHED_SCORES // (sizes.length * min(sizes.block, sizes.length))
  fitting = range(1, min(max(most, 1), sizes.heads) + 1)
  return max(size for size in fitting if sizes.heads % size == 0)


def _for_groups(function: Any, arrays: Any, sizes: attention_kernel.Sizes):
  """`function` of one group of heads after the other.

  Args:
    function: of a tree of arrays `[heads, ...]`, gives such a tree.
    arrays: of all heads.
    sizes: of the call.
  """
  size = _group_size(sizes)
  if size == sizes.heads:
    return function(arrays)
  groups = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), arrays)
  found = jax.lax.map(function, groups)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def _row_by_row() -> bool:
  """Whether rows of the batch are done one after the other.

  On a CPU: scores then stay in the caches from one operation to the next.
  """
  return axes.platform() == "cpu"


def _forward(qkv, wheel, segment_ids, sizes):
  """As `attention_kernel.forward`."""
  biases = _biases(wheel, sizes)
  if not _row_by_row():
    biases = tuple(bias[:, None] for bias in biases)
    out, log_sum = _forward_rows(
      *_split(qkv, sizes), biases, segment_ids, sizes
    )
    return _flat(out), log_sum.swapaxes(0, 1)
  single = dataclasses.replace(sizes, batch=1)

  def one_row(row):
    qkv, ids = row
    parts = [part[:, 0] for part in _split(qkv[None], single)]
    out, log_sum = _for_groups(
      lambda group: _forward_rows(*group[0], group[1], ids, single),
      (parts, biases),
      single,
    )
    return _flat(out[:, None])[0], log_sum

  return jax.lax.map(one_row, (qkv, segment_ids))


def _backward(qkv, wheel, segment_ids, grad, log_sum, delta, sizes, with_bias):
  """As `attention_kernel.backward`."""
  biases, transposed = jax.vjp(lambda wheel: _biases(wheel, sizes), wheel)
  if _row_by_row():
    single = dataclasses.replace(sizes, batch=1)

    def one_row(total, row):
      qkv, grad, log_sum, delta, ids = row
      parts = [*_split(qkv[None], single), _heads(grad[None], single)]
      grads, more = _for_groups(
        lambda group: _backward_rows(
          *group[0], group[1], ids, single, with_bias
        ),
        ([*(part[:, 0] for part in parts), log_sum, delta], biases),
        single,
      )
      flat = [part[0] for part in _flat_grads(grads, qkv.dtype, single)]
      return jax.tree.map(jnp.add, total, more), flat

    zeros = tuple(jnp.zeros_like(bias) for bias in biases) * with_bias
    rows = (qkv, grad, log_sum, delta, segment_ids)
    bias_grads, parts = jax.lax.scan(one_row, zeros, rows)
  else:
    grads, bias_grads = _backward_rows(
      *_split(qkv, sizes),
      _heads(grad, sizes),
      log_sum.swapaxes(0, 1),
      delta.swapaxes(0, 1),
      tuple(bias[:, None] for bias in biases),
      segment_ids,
      sizes,
      with_bias,
    )
    bias_grads = tuple(part.sum(1) for part in bias_grads)
    parts = _flat_grads(grads, qkv.dtype, sizes)
  return [*parts, transposed(bias_grads)[0]] if with_bias else parts


def _flat_grads(grads, dtype, sizes) -> list[jax.Array]:
  """What `_backward_rows` gives, as gradients of three parts of `qkv`."""
  query_grad, *others = grads
  query_grad = query_grad * jnp.asarray(sizes.kv**-0.5, dtype)
  return [
    _flat(part.reshape(sizes.heads, sizes.batch, *part.shape[-2:])).astype(
      dtype
    )
    for part in (query_grad, *others)
  ]
