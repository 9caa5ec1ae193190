# SPDX-License-Identifier: Apache-2.0
"""K-means over a mesh: each process's vectors in, the same centroids out.

The result does not depend on how the vectors lie on devices and processes.
Random draws are functions of a vector's rank among all. Sums over vectors are
sums of integers (vectors are rounded to 24 bits of their largest magnitude),
which give the same in any order; what is done with the sums is done on the
host in float64. Distances are computed in chunks of one shape. On devices of
one kind the centroids are equal bit by bit; where two kinds round a distance
differently, a vector halfway between two centroids may change sides.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from musiclm_jax.layers import kmeans_programs

SEEDINGS = ("parallel", "plusplus")


@dataclasses.dataclass(frozen=True)
class MeshKMeansConfig:
  """How a fit runs.

  Attributes:
    num_clusters: centroids.
    seeding: 'parallel' is k-means|| (arXiv 1203.6402): a few rounds draw many
      candidates, which k-means++ then thins out; 'plusplus' draws one vector
      after the other, a pass over the data each.
    num_rounds: of 'parallel'.
    oversampling: candidates of a round, as a multiple of `num_clusters`.
    num_iterations: most Lloyd iterations, or mini-batches.
    batch_size: vectors of a mini-batch, about; 0 takes all in each iteration.
    tolerance: stop when the error falls by less than this share; not used
      with mini-batches.
    chunk_size: vectors whose distances to all centroids a device holds.
  """

  num_clusters: int
  seeding: str = "parallel"
  num_rounds: int = 5
  oversampling: float = 2.0
  num_iterations: int = 50
  batch_size: int = 0
  tolerance: float = 1e-4
  chunk_size: int = 1024

  def __post_init__(self):
    if self.seeding not in SEEDINGS:
      raise ValueError(f"seeding={self.seeding!r}: expected one of {SEEDINGS}")
    for name in ("num_clusters", "num_rounds", "num_iterations"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name}={getattr(self, name)}: expected a positive number"
        )
    if self.num_rounds * self.oversampling < 1.0:
      raise ValueError(
        f"oversampling={self.oversampling}: expected at least "
        f"1 / num_rounds={1 / self.num_rounds:g}"
      )
    if self.batch_size < 0:
      raise ValueError(f"batch_size={self.batch_size}: expected 0 or more")
    if not 1 <= self.chunk_size <= kmeans_programs.MAX_CHUNK:
      raise ValueError(
        f"chunk_size={self.chunk_size}: expected 1 to "
        f"{kmeans_programs.MAX_CHUNK}"
      )


class MeshKMeansResult(NamedTuple):
  """What `fit` returns, the same on every process.

  Attributes:
    centroids: float32 `[clusters, dim]`.
    counts: int64 `[clusters]`, vectors nearest to each of them.
    inertia: mean squared distance to the nearest centroid.
    num_iterations: Lloyd iterations or mini-batches run.
    num_repaired: how often an empty cluster was moved.
  """

  centroids: np.ndarray
  counts: np.ndarray
  inertia: float
  num_iterations: int
  num_repaired: int


@dataclasses.dataclass(frozen=True)
class _Data:
  """Vectors on the devices; with mini-batches still on the host.

  Attributes:
    groups: points `[chunks, chunk_size, dim]` and ranks `[chunks,
      chunk_size]` of each mini-batch, this process's part.
    num_points: in all processes together.
    scales: float32 `[2]` of points and of squared distances, powers of two
      that make them integers of 24 and 30 bits.
  """

  programs: kmeans_programs.Programs
  groups: list[tuple[Any, Any]]
  num_points: int
  scales: np.ndarray

  def group(self, index: int) -> tuple[jax.Array, jax.Array]:
    """Points and ranks of a mini-batch, on the devices."""
    points, ranks = self.groups[index % len(self.groups)]
    if isinstance(points, jax.Array):
      return points, ranks
    return self.programs.put(points), self.programs.put(ranks)

  def statistics(
    self, index: int, centroids: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, float]:
    """Sums `[clusters, dim]`, counts and summed error of a mini-batch."""
    sums, error, counts = self.programs.statistics(
      *self.group(index), centroids, self.scales
    )
    sums = kmeans_programs.whole(np.asarray(sums)) / float(self.scales[0])
    error = float(kmeans_programs.whole(np.asarray(error))) / float(
      self.scales[1]
    )
    return sums, np.asarray(counts, np.int64), error

  def best(self, scores: jax.Array, ranks: jax.Array, count: int) -> np.ndarray:
    """Ranks of the lowest finite scores, ties by rank."""
    scores, ranks = np.asarray(scores), np.asarray(ranks)
    order = np.lexsort((ranks, scores))[:count]
    return ranks[order][np.isfinite(scores[order])]

  def rows(self, index: int, wanted: np.ndarray, count: int) -> np.ndarray:
    """Vectors by rank; `count` fixes the shape of the program."""
    padded = np.full(count, kmeans_programs.UNUSED_RANK)
    padded[: len(wanted)] = wanted
    rows = self.programs.fetch(*self.group(index), padded)
    return np.asarray(rows)[: len(wanted)]


def gather(array: np.ndarray) -> np.ndarray:
  """`[processes, ...]`, what each process has, of equal shapes."""
  array = np.asarray(array)
  if jax.process_count() == 1:
    return array[None]
  if array.itemsize < 8:
    return np.asarray(multihost_utils.process_allgather(array))
  # In words, for jax would cut 64 bits to 32.
  words = np.ascontiguousarray(array).view(np.uint32)
  found = np.asarray(multihost_utils.process_allgather(words))
  return np.ascontiguousarray(found).view(array.dtype)


def _same(array: np.ndarray) -> np.ndarray:
  """What process 0 has: hosts of two kinds may round differently."""
  if jax.process_count() == 1:
    return array
  return np.asarray(multihost_utils.broadcast_one_to_all(array))


def _ranks(ids: np.ndarray) -> tuple[np.ndarray, int]:
  """Place of each id among those of all processes, and their number."""
  counts = gather(np.int32(len(ids)))
  padded = np.zeros(counts.max(), np.int64)
  padded[: len(ids)] = ids
  found = [part[:count] for part, count in zip(gather(padded), counts)]
  every = np.sort(np.concatenate(found))
  if (every[1:] == every[:-1]).any():
    raise ValueError("ids occur twice: expected one of its own for each vector")
  return np.searchsorted(every, ids).astype(np.int32), len(every)


def _place(
  points: np.ndarray,
  ids: np.ndarray,
  config: MeshKMeansConfig,
  mesh: jax.sharding.Mesh,
) -> _Data:
  """Deals vectors into mini-batches and chunks."""
  ranks, num_points = _ranks(ids)
  if not config.num_clusters <= num_points:
    raise ValueError(
      f"num_clusters={config.num_clusters}: expected 1 to {num_points}, the "
      "number of points"
    )
  num_groups = 1
  if config.batch_size:
    num_groups = max(1, num_points // config.batch_size)
  group_of = kmeans_programs.host_mix(ranks) % num_groups
  members = [
    np.flatnonzero(group_of == group)[
      np.argsort(ranks[group_of == group], kind="stable")
    ]
    for group in range(num_groups)
  ]
  most = int(gather(np.int32(max(map(len, members)))).max())
  devices = sum(
    device.process_index == jax.process_index() for device in mesh.devices.flat
  )
  num_chunks = devices * max(1, -(-most // (devices * config.chunk_size)))
  peak = float(gather(np.float32(np.abs(points).max(initial=0.0))).max())
  if not np.isfinite(peak):
    raise ValueError("points hold NaN or infinity: expected finite numbers")
  peak = max(peak, 1e-6)
  bound = 4.0 * points.shape[1] * peak**2
  scales = np.exp2(
    [22 - np.ceil(np.log2(peak)), 29 - np.ceil(np.log2(bound))]
  ).astype(np.float32)
  programs = kmeans_programs.Programs(mesh)
  groups = []
  for member in members:
    shape = (num_chunks * config.chunk_size, points.shape[1])
    part = np.zeros(shape, np.float32)
    part[: len(member)] = points[member]
    rank = np.full(len(part), kmeans_programs.UNUSED_RANK)
    rank[: len(member)] = ranks[member]
    groups.append(
      (
        part.reshape(num_chunks, config.chunk_size, -1),
        rank.reshape(num_chunks, config.chunk_size),
      )
    )
  if num_groups == 1:
    groups = [tuple(programs.put(array) for array in groups[0])]
  return _Data(programs, groups, num_points, scales)


@functools.partial(jax.jit, static_argnums=2)
def _thin(
  candidates: jax.Array, counts: jax.Array, num_clusters: int, key: jax.Array
) -> jax.Array:
  """K-means++ among candidates that stand for `counts` vectors each."""

  def draw(index, carry):
    rows, distances = carry
    scores = jnp.log(distances) + jnp.log(counts)
    row = candidates[
      jax.random.categorical(jax.random.fold_in(key, index), scores)
    ]
    distances = jnp.minimum(distances, ((candidates - row) ** 2).sum(-1))
    return rows.at[index].set(row), distances

  rows = jnp.zeros((num_clusters, candidates.shape[1]), candidates.dtype)
  start = (rows, jnp.ones(len(candidates)) * jnp.finfo(jnp.float32).max)
  return jax.lax.fori_loop(0, num_clusters, draw, start)[0]


def _seed(data: _Data, config: MeshKMeansConfig, seed: int) -> np.ndarray:
  """First centroids, from the first mini-batch."""
  salts = np.random.default_rng(seed)
  points, ranks = data.group(0)
  if config.seeding == "plusplus":
    rounds, count = config.num_clusters - 1, 1
  else:
    rounds = config.num_rounds
    count = int(np.ceil(config.oversampling * config.num_clusters))
  count = min(count, data.num_points)
  # Before any candidate, all vectors are as likely.
  distances = data.programs.filled(ranks, np.float32(1.0))
  candidates, drawn = [], 1
  for index in range(rounds + 1):
    salt = np.uint32(salts.integers(1 << 32))
    found = data.programs.lowest(drawn)(ranks, distances, salt)
    chosen = data.best(*found, drawn)
    if not len(chosen):
      break  # Every vector coincides with a candidate.
    rows = data.rows(0, chosen, drawn)
    candidates.append(rows)
    if index == rounds:
      break
    # One shape for all rounds but the first.
    rows = np.concatenate([rows, np.repeat(rows[:1], drawn - len(rows), 0)])
    if index == 0:
      distances = data.programs.filled(ranks, np.float32(np.inf))
    distances = data.programs.nearest(points, ranks, distances, rows)
    drawn = count
  rows = np.concatenate(candidates)
  if len(rows) > config.num_clusters:
    _, counts, _ = data.statistics(0, rows)
    key = jax.random.key(int(salts.integers(1 << 31)))
    rows = np.asarray(
      _thin(rows, counts.astype(np.float32), config.num_clusters, key)
    )
  # Too few different vectors: the copies are empty clusters.
  missing = config.num_clusters - len(rows)
  return _same(np.concatenate([rows, np.repeat(rows[:1], missing, axis=0)]))


def _repair(
  data: _Data, index: int, centroids: np.ndarray, empty: np.ndarray
) -> np.ndarray:
  """Moves empty clusters to the vectors that lie farthest from any centroid."""
  # Few different shapes.
  count = 1 << (len(empty) - 1).bit_length()
  points, ranks = data.group(index)
  distances = data.programs.filled(ranks, np.float32(np.inf))
  found = data.programs.farthest(count)(points, ranks, distances, centroids)
  rows = data.rows(index, data.best(*found, count), count)[: len(empty)]
  centroids = centroids.copy()
  centroids[empty[: len(rows)]] = rows
  return centroids


def fit(
  points: np.ndarray,
  ids: np.ndarray,
  config: MeshKMeansConfig,
  mesh: jax.sharding.Mesh,
  seed: int = 0,
) -> MeshKMeansResult:
  """Fits centroids to the vectors of all processes; a collective.

  Args:
    points: float32 `[n, dim]`, this process's vectors, any number.
    ids: int64 `[n]`, different over all processes; the result is a function
      of the vectors by id and of the seed.
    config: how.
    mesh: all its devices take part, along all axes.
    seed: of the seeding.

  Returns:
    The centroids and how the fit went.

  Raises:
    ValueError: if shapes, ids or numbers do not fit.
  """
  points = np.asarray(points, np.float32)
  if points.ndim != 2 or np.shape(ids) != points.shape[:1]:
    raise ValueError(
      f"points of shape {points.shape}, ids of shape {np.shape(ids)}: expected "
      "[n, dim] and [n]"
    )
  data = _place(points, np.asarray(ids), config, mesh)
  centroids = _seed(data, config, seed)
  seen = np.zeros(config.num_clusters)
  repaired, before, iteration = 0, np.inf, 0
  while iteration < config.num_iterations:
    sums, counts, error = data.statistics(iteration, centroids)
    if len(data.groups) == 1:
      seen[:] = 0
    seen += counts
    # Each vector seen so far has the same say (Sculley 2010).
    step = (sums - counts[:, None] * centroids.astype(np.float64)) / np.maximum(
      seen, 1
    )[:, None]
    moved = (centroids + step).astype(np.float32)
    empty = np.flatnonzero(seen == 0)
    if len(empty) and (iteration + 1) % len(data.groups) == 0:
      moved = _repair(data, iteration, moved, empty)
      repaired += len(empty)
    centroids, iteration = _same(moved), iteration + 1
    stands = before - error <= config.tolerance * before < np.inf
    before = error
    if stands and len(data.groups) == 1 and not len(empty):
      break
  parts = [
    data.statistics(index, centroids) for index in range(len(data.groups))
  ]
  return MeshKMeansResult(
    centroids,
    sum(counts for _, counts, _ in parts),
    sum(error for _, _, error in parts) / data.num_points,
    iteration,
    repaired,
  )
