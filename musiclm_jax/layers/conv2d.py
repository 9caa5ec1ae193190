# SPDX-License-Identifier: Apache-2.0
"""2-D convolution over `[batch, height, width, channels]`, quick on CPU.

Forward it is XLA's own, and off CPU so are its gradients. On CPU two of these
take several times as long as the operations they consist of: the kernel's is a
convolution with a window as large as the picture, and the input's of a strided
one spreads zeros between outputs. Here the kernel's gradient is a sum of
products over pieces of pictures that fit into a cache, and the input's a
convolution without a stride whose outputs are dealt out to the phases of the
stride. MuLan's small residual network trains on 64 crops in two thirds of the
time; with 4 rows of the STFT critic there is no clear difference, for XLA's are
slow from 8 rows on.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

_NUMBERS = ("NHWC", "HWIO", "NHWC")
# With fewer input channels the products are too thin to pay.
_MIN_CHANNELS = 8
# Unfolded inputs of a piece (1.2 MB), and outputs from which there are pieces.
_PIECE_SIZE = 300_000
_MIN_OUTPUTS = 8_192


def _forward(x, kernel, strides, padding):
  return jax.lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=_NUMBERS
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x, kernel, strides, padding):
  return _forward(x, kernel, strides, padding)


def convolution_2d(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
) -> jax.Array:
  """Convolution of pictures.

  Args:
    x: `[batch, height, width, channels]`.
    kernel: `[taps, taps, channels, features]`.
    strides: inputs per output.
    padding: 'SAME' or 'VALID', or zeros before and behind each axis.

  Returns:
    `[batch, rows, columns, features]`.
  """
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(
      x.shape[1:3], kernel.shape[:2], strides, padding
    )
  padding = tuple((int(low), int(high)) for low, high in padding)
  return _convolution(x, kernel, tuple(strides), padding)


def general_dilated(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int],
  rhs_dilation: Sequence[int],
  dimension_numbers: jax.lax.ConvDimensionNumbers,
  feature_group_count: int,
  precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
  """`convolution_2d` with the signature that `flax.linen.Conv` calls.

  Raises:
    ValueError: if dilation, groups or a precision are asked for.
  """
  del dimension_numbers  # Those of `flax.linen.Conv` are ours.
  asked = (*lhs_dilation, *rhs_dilation, feature_group_count)
  if set(asked) != {1} or precision is not None:
    raise ValueError(
      f"lhs_dilation={lhs_dilation}, rhs_dilation={rhs_dilation}, "
      f"feature_group_count={feature_group_count}, precision={precision}: "
      "expected neither dilation nor groups nor a precision"
    )
  return convolution_2d(x, kernel, strides, padding)


def _keep(x, kernel, strides, padding):
  return _forward(x, kernel, strides, padding), (x, kernel)


def _native(x, kernel, slope, strides, padding):
  _, pull_back = jax.vjp(
    lambda x, kernel: _forward(x, kernel, strides, padding), x, kernel
  )
  return pull_back(slope)


def _input_slope(x, kernel, slope, strides, padding):
  """Input q = stride * (t + b) + r has tap (b, r) of output t."""
  height, width, channels = x.shape[1:]
  taps, features = kernel.shape[:2], kernel.shape[-1]
  phases = [min(k, s) for k, s in zip(taps, strides)]
  blocks = [-(-k // p) for k, p in zip(taps, phases)]
  extra = [b * p - k for b, p, k in zip(blocks, phases, taps)]
  kernel = jnp.pad(kernel, ((0, extra[0]), (0, extra[1]), (0, 0), (0, 0)))
  kernel = kernel.reshape(
    blocks[0], phases[0], blocks[1], phases[1], channels, features
  )[::-1, :, ::-1]
  kernel = kernel.transpose(0, 2, 5, 1, 3, 4)
  kernel = kernel.reshape(blocks[0], blocks[1], features, -1)
  y = _forward(slope, kernel, (1, 1), [(b - 1, b - 1) for b in blocks])
  batch, rows, columns, _ = y.shape
  y = y.reshape(batch, rows, columns, *phases, channels)
  missing = [(0, s - p) for s, p in zip(strides, phases)]
  y = jnp.pad(y, ((0, 0), (0, 0), (0, 0), *missing, (0, 0)))
  y = y.transpose(0, 1, 3, 2, 4, 5)
  y = y.reshape(batch, rows * strides[0], columns * strides[1], channels)
  # What lies behind the last tap has no part in any output.
  (top, _), (left, _) = padding
  y = y[:, top : top + height, left : left + width]
  short = (height - y.shape[1], width - y.shape[2])
  return jnp.pad(y, ((0, 0), (0, short[0]), (0, short[1]), (0, 0)))


def _seen(x, taps, strides, rows, columns):
  """What each tap sees: `[batch, rows, columns, channels]` of padded `x`."""
  height, width = (rows - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1
  return [
    x[:, i : i + height : strides[0], j : j + width : strides[1]]
    for i in range(taps[0])
    for j in range(taps[1])
  ]


def _product(seen, slope):
  """Sums over outputs in float32, which bfloat16 would lose."""
  return jnp.matmul(seen.T, slope, preferred_element_type=jnp.float32)


def _kernel_slope(x, kernel, slope, strides, padding):
  batch, rows, columns, features = slope.shape
  taps, channels = kernel.shape[:2], kernel.shape[2]
  depth = taps[0] * taps[1] * channels
  if taps == (1, 1) or batch * rows * columns < _MIN_OUTPUTS:
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    flat = slope.reshape(-1, features)
    seen = _seen(x, taps, strides, rows, columns)
    products = [_product(tap.reshape(-1, channels), flat) for tap in seen]
    return jnp.stack(products).reshape(kernel.shape).astype(kernel.dtype)
  piece = min(max(_PIECE_SIZE // (columns * depth), 1), rows)
  pieces = -(-rows // piece)
  spare = pieces * piece - rows
  bottom = padding[0][1] + spare * strides[0]
  x = jnp.pad(x, ((0, 0), (padding[0][0], bottom), padding[1], (0, 0)))
  slope = jnp.pad(slope, ((0, 0), (0, spare), (0, 0), (0, 0)))
  height = (piece - 1) * strides[0] + taps[0]

  def add(total, index):
    item, row = index // pieces, index % pieces * piece
    here = jax.lax.dynamic_slice(
      x,
      (item, row * strides[0], 0, 0),
      (1, height, x.shape[2], channels),
    )
    part = jax.lax.dynamic_slice(
      slope, (item, row, 0, 0), (1, piece, columns, features)
    )
    unfolded = jnp.concatenate(_seen(here, taps, strides, piece, columns), -1)
    unfolded = unfolded.reshape(-1, depth)
    return total + _product(unfolded, part.reshape(-1, features)), None

  total = jnp.zeros((depth, features), jnp.float32)
  total, _ = jax.lax.scan(add, total, jnp.arange(batch * pieces))
  return total.reshape(kernel.shape).astype(kernel.dtype)


def _products(x, kernel, slope, strides, padding):
  if max(strides) > 1:
    input_slope = _input_slope(x, kernel, slope, strides, padding)
  else:
    _, pull_back = jax.vjp(lambda x: _forward(x, kernel, strides, padding), x)
    (input_slope,) = pull_back(slope)
  if x.shape[-1] >= _MIN_CHANNELS:
    kernel_slope = _kernel_slope(x, kernel, slope, strides, padding)
  else:
    _, pull_back = jax.vjp(lambda k: _forward(x, k, strides, padding), kernel)
    (kernel_slope,) = pull_back(slope)
  return input_slope, kernel_slope


def _pull_back(strides, padding, kept, slope):
  """Gradients of input and kernel, by what the backend is good at."""
  here = {"strides": strides, "padding": padding}
  return jax.lax.platform_dependent(
    *kept,
    slope,
    cpu=functools.partial(_products, **here),
    default=functools.partial(_native, **here),
  )


_convolution.defvjp(_keep, _pull_back)
