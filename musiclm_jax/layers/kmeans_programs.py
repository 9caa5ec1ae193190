# SPDX-License-Identifier: Apache-2.0
"""Passes of k-means over vectors that lie on all devices of a mesh.

Points `[chunks, chunk_size, dim]` and ranks int32 `[chunks, chunk_size]`, split
over all devices by chunks, flow in; sums, draws and rows that are the same on
every device flow out. What a pass returns does not depend on the number of
devices: sums are sums of integers, draws are functions of the ranks.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.layers import kmeans

LIMB_BITS = 12
LIMB = 1 << LIMB_BITS
# Sums of a chunk's limbs stay whole numbers in float32 up to so many rows.
MAX_CHUNK = 1 << 12
# Rank of rows that fill a chunk.
UNUSED_RANK = np.int32(2**31 - 1)


def _mix(bits: jax.Array) -> jax.Array:
  """Scatters uint32; a bijection (the finaliser of MurmurHash3)."""
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
  return bits ^ (bits >> 16)


def host_mix(bits: np.ndarray) -> np.ndarray:
  """The same on the host."""
  with np.errstate(over="ignore"):
    bits = bits.astype(np.uint32)
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def _carry(limbs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
  """Moves what exceeds 12 bits to the next of three limbs."""
  low, middle, high = limbs
  middle = middle + (low >> LIMB_BITS)
  high = high + (middle >> LIMB_BITS)
  return low & (LIMB - 1), middle & (LIMB - 1), high


def whole(limbs: Sequence[Any]) -> np.ndarray:
  """Three limbs as int64."""
  low, middle, high = (np.asarray(limb, np.int64) for limb in limbs)
  return (high * LIMB + middle) * LIMB + low


class Programs:
  """The passes, each run by all devices on their own part of the data.

  Attributes:
    statistics: points, ranks, centroids, scales -> limbs of the sums
      `[3, clusters, dim]` and of the error `[3]`, and counts.
    nearest: points, ranks, distances, rows -> distances.
    fetch: points, ranks, wanted ranks -> rows `[wanted, dim]`.
    filled: ranks, value -> distances of one value.
    lowest: count -> program: ranks, distances, salt -> scores, ranks.
    farthest: count -> program: points, ranks, distances, rows -> the same.
  """

  def __init__(self, mesh: jax.sharding.Mesh):
    """Takes all devices of a mesh, along all its axes."""
    self.mesh = mesh
    self._axes = tuple(mesh.axis_names)
    self._split = jax.sharding.PartitionSpec(self._axes)
    self._copied = jax.sharding.PartitionSpec()
    self.statistics = self._program(self._statistics, "ddcc", "ccc")
    self.nearest = self._program(self._nearest, "dddc", "d")
    self.fetch = self._program(self._fetch, "ddc", "c")
    self.filled = self._program(
      lambda ranks, value: jnp.full(ranks.shape, value), "dc", "d"
    )
    # One program for each number of vectors drawn.
    self.lowest = functools.cache(
      lambda count: self._program(
        functools.partial(self._lowest, count), "ddc", "cc"
      )
    )
    self.farthest = functools.cache(
      lambda count: self._program(
        functools.partial(self._farthest, count), "dddc", "cc"
      )
    )

  def _program(self, function: Any, inputs: str, outputs: str) -> Any:
    """`d`: split over all devices by the first axis; `c`: a copy on each."""
    specs = {"d": self._split, "c": self._copied}
    results = tuple(specs[letter] for letter in outputs)
    return jax.jit(
      jax.shard_map(
        function,
        mesh=self.mesh,
        in_specs=tuple(specs[letter] for letter in inputs),
        out_specs=results if len(results) > 1 else results[0],
        check_vma=False,
      )
    )

  def put(self, local: np.ndarray) -> jax.Array:
    """This process's part of an array that is split over all devices."""
    sharding = jax.sharding.NamedSharding(self.mesh, self._split)
    return jax.make_array_from_process_local_data(sharding, local)

  def _statistics(self, points, ranks, centroids, scales):
    """Limbs of the sums of each cluster and of the error, and counts."""
    num_clusters = len(centroids)

    def accumulate(carry, chunk):
      sums, counts, error = carry
      points, ranks = chunk
      valid = ranks != UNUSED_RANK
      distances = kmeans.squared_distances(points, centroids)
      member = jax.nn.one_hot(distances.argmin(-1), num_clusters)
      member = member * valid[:, None]
      fixed = jnp.round(points * scales[0]).astype(jnp.int32)

      def total(limb):
        return jnp.einsum(
          "nk,nd->kd",
          member,
          limb.astype(jnp.float32),
          precision=kmeans.PRECISION,
        ).astype(jnp.int32)

      low, middle = total(fixed & (LIMB - 1)), total(fixed >> LIMB_BITS)
      sums = _carry((sums[0] + low, sums[1] + middle, sums[2]))
      nearest = jnp.where(valid, distances.min(-1) * scales[1], 0.0)
      nearest = jnp.round(nearest).astype(jnp.int32)
      error = _carry(
        (
          error[0] + (nearest & (LIMB - 1)).sum(),
          error[1] + (nearest >> LIMB_BITS).sum(),
          error[2],
        )
      )
      counts = counts + member.sum(0).astype(jnp.int32)
      return (sums, counts, error), None

    def zeros(*shape):
      return jnp.zeros(shape, jnp.int32)

    start = (
      (zeros(*centroids.shape),) * 3,
      zeros(num_clusters),
      (zeros(),) * 3,
    )
    (sums, counts, error), _ = jax.lax.scan(accumulate, start, (points, ranks))
    sums, counts, error = jax.lax.psum((sums, counts, error), self._axes)
    return jnp.stack(sums), jnp.stack(error), counts

  def _nearest(self, points, ranks, distances, rows):
    """Squared distances after `rows` have joined the candidates."""

    def lower(chunk):
      points, ranks, before = chunk
      found = kmeans.squared_distances(points, rows).min(-1)
      return jnp.where(ranks == UNUSED_RANK, 0.0, jnp.minimum(before, found))

    return jax.lax.map(lower, (points, ranks, distances))

  def _smallest(self, scores, ranks, count):
    """The lowest scores of every device, with their ranks."""
    scores, ranks = scores.reshape(-1), ranks.reshape(-1)
    count = min(count, scores.size)
    found, at = jax.lax.top_k(-scores, count)
    gather = functools.partial(
      jax.lax.all_gather, axis_name=self._axes, tiled=True
    )
    return gather(-found), gather(ranks[at])

  def _lowest(self, count, ranks, distances, salt):
    """Draws without replacement, in proportion to `distances`.

    Each vector's time is exponential with its distance as rate; the first
    ones win. Needs no sum over all vectors.
    """

    def race(chunk):
      ranks, distances = chunk
      bits = _mix(_mix(ranks.astype(jnp.uint32)) ^ salt)
      # Small values keep all their digits, so ties are rare.
      value = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
      return -jnp.log1p(-jnp.minimum(value, 1.0 - 2.0**-24)) / distances

    scores = jax.lax.map(race, (ranks, distances))
    scores = jnp.where(ranks == UNUSED_RANK, jnp.inf, scores)
    return self._smallest(scores, ranks, count)

  def _farthest(self, count, points, ranks, distances, rows):
    """The vectors that `rows` represent worst."""
    found = self._nearest(points, ranks, distances, rows)
    found = jnp.where(ranks == UNUSED_RANK, jnp.inf, -found)
    return self._smallest(found, ranks, count)

  def _fetch(self, points, ranks, wanted):
    """Rows `[wanted, dim]` by rank; zeros for ranks that nobody has."""

    def find(rows, chunk):
      points, ranks = chunk
      same = (ranks[None] == wanted[:, None]) & (wanted[:, None] != UNUSED_RANK)
      found = points[same.argmax(1)]
      return jnp.where(same.any(1)[:, None], found, rows), None

    start = jnp.zeros((len(wanted), points.shape[-1]), points.dtype)
    rows, _ = jax.lax.scan(find, start, (points, ranks))
    # One device has the row, the others add zeros.
    return jax.lax.psum(rows, self._axes)
