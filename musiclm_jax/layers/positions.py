# SPDX-License-Identifier: Apache-2.0
"""Positions: the T5 relative bias and rotary embedding.

Distances in, additive attention bias out (T5); or queries and keys in, rotated
ones out (rotary).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.partitioning import axes

# Large enough to vanish in a float32 softmax, and finite, so that a row with
# no key at all gives no NaN.
MASKED = -1e30


def relative_buckets(
  relative: np.ndarray, num_buckets: int, max_distance: int, causal: bool
) -> np.ndarray:
  """Bucket of each relative position (key minus query).

  Half of the buckets hold one distance each, the others grow geometrically up
  to `max_distance`; all beyond share the last one (T5, arXiv 1910.10683).

  Args:
    relative: integers of any shape.
    num_buckets: buckets in all; bidirectional bias uses half per direction.
    max_distance: distance at which the last bucket starts.
    causal: keys after the query get bucket 0, as distance 0 does.

  Returns:
    int32 of the same shape in `[0, num_buckets)`.
  """
  relative = np.asarray(relative)
  offset = np.zeros(relative.shape, np.int32)
  if causal:
    distance = np.maximum(-relative, 0)
  else:
    num_buckets //= 2
    offset = np.where(relative > 0, num_buckets, 0)
    distance = np.abs(relative)
  num_exact = num_buckets // 2
  growth = np.log(np.maximum(distance, 1) / num_exact) / np.log(
    max_distance / num_exact
  )
  far = num_exact + (growth * (num_buckets - num_exact)).astype(np.int32)
  far = np.minimum(far, num_buckets - 1)
  return (offset + np.where(distance < num_exact, distance, far)).astype(
    np.int32
  )


def _wheel_offsets(length: int) -> np.ndarray:
  """Offsets -length to length - 1, starting with 0 and going round."""
  return (np.arange(2 * length) + length) % (2 * length) - length


def toeplitz(wheel: jax.Array) -> jax.Array:
  """Matrices that are constant along diagonals.

  Made by reshaping, so that the gradient sums over diagonals and never
  scatters length^2 elements.

  Args:
    wheel: `[..., 2 * length]`; entry d is the value at column minus row = d
      (mod 2 * length).

  Returns:
    `[..., length, length]`.
  """
  *leading, size = wheel.shape
  length = size // 2
  # Each row of the matrix is the wheel, turned by one from the row before.
  tiled = jnp.broadcast_to(wheel[..., None, :], (*leading, length, size))
  tiled = tiled.reshape(*leading, length * size)
  rows = tiled[..., : length * (size - 1)]
  return rows.reshape(*leading, length, size - 1)[..., :length]


def num_near_tiles(block: int, max_distance: int) -> int:
  """Diagonals of tiles in which some key is nearer than `max_distance`."""
  return -(-(max_distance + block - 1) // block)


def _near_distances(block: int, num_tiles: int) -> np.ndarray:
  """Query minus key for each entry of a near wheel, `[num_tiles, 2 block]`."""
  return np.arange(num_tiles)[:, None] * block + _wheel_offsets(block)


def near_mask(block: int, num_tiles: int) -> np.ndarray:
  """The causal mask by distance within tiles near the diagonal.

  Tile t holds keys of one block and queries of the t-th block after it, as
  `[keys, queries]`: it is `toeplitz` of entry t.

  Returns:
    float32 `[1, num_tiles, 2 * block]`: 0, or `MASKED` before the query.
  """
  distances = _near_distances(block, num_tiles)[None]
  return np.where(distances < 0, MASKED, 0).astype(np.float32)


class RelativeBias(nn.Module):
  """One learned scalar per (bucket, head), shared by all layers.

  Attributes:
    num_heads: heads.
    num_buckets: rows of the table.
    max_distance: see `relative_buckets`.
    causal: one direction only.
    precision: dtypes of the table; the bias is float32.
  """

  num_heads: int
  num_buckets: int = 32
  max_distance: int = 128
  causal: bool = True
  precision: precision_lib.Precision = precision_lib.Precision()

  def setup(self):
    self.table = self.param(
      "table",
      axes.named(nn.initializers.normal(0.1), ("relpos_buckets", "heads")),
      (self.num_buckets, self.num_heads),
      self.precision.param_dtype,
    )

  def _by_distance(self, relative: np.ndarray) -> jax.Array:
    """Bias `[heads, ...]` float32 for constant distances `[...]`."""
    buckets = relative_buckets(
      relative, self.num_buckets, self.max_distance, self.causal
    )
    return jnp.moveaxis(self.table.astype(jnp.float32)[buckets], -1, 0)

  def __call__(self, length: int) -> jax.Array:
    """Bias of a whole sequence, float32 `[heads, queries, keys]`."""
    return toeplitz(self._by_distance(_wheel_offsets(length)))

  def near(self, block: int, num_tiles: int) -> jax.Array:
    """Bias by distance within the causal tiles near the diagonal.

    What all far keys share is taken off everywhere, which a softmax over keys
    does not notice: beyond `num_near_tiles` tiles there is then no bias.

    Args:
      block: side of a tile.
      num_tiles: diagonals of tiles, at least `num_near_tiles` of them or as
        many as the sequence has.

    Returns:
      float32 `[heads, num_tiles, 2 * block]`, with the causal mask in it:
      see `near_mask`.
    """
    far = self.table.astype(jnp.float32)[-1][:, None, None]
    bias = self._by_distance(-_near_distances(block, num_tiles)) - far
    return jnp.where(near_mask(block, num_tiles) == 0, bias, MASKED)

  def row(self, position: jax.Array, num_keys: int) -> jax.Array:
    """Bias of one (traced) query position, float32 `[heads, 1, keys]`."""
    # Index k of `line` is relative position k - (num_keys - 1): a constant of
    # the decode loop, sliced at each step.
    relative = np.arange(2 * num_keys - 1) - (num_keys - 1)
    line = self._by_distance(relative)
    start = num_keys - 1 - position
    return jax.lax.dynamic_slice_in_dim(line, start, num_keys, axis=1)[
      :, None, :
    ]


def rotate(
  x: jax.Array, positions: jax.Array, max_wavelength: float = 10_000.0
) -> jax.Array:
  """Rotary embedding (arXiv 2104.09864): rotates halves of each head.

  Args:
    x: `[batch, length, heads, kv]`, kv even.
    positions: int32 `[length]`.
    max_wavelength: of the slowest pair.

  Returns:
    Same shape and dtype; computed in float32.
  """
  half = x.shape[-1] // 2
  rates = max_wavelength ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions.astype(jnp.float32)[:, None, None] * rates
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  ).astype(x.dtype)
