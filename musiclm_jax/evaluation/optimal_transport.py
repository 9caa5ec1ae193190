# SPDX-License-Identifier: Apache-2.0
"""How far apart two sets of tokens are: optimal transport of histograms.

Token sequences flow in; what it costs to move one histogram over clusters to
the other flows out, in units of the Euclidean distance between the clusters'
centroids (MusicLM sec. 5.6). Sinkhorn's iteration runs in the log domain, on
the bins that are not empty, over batches split over all devices.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special

from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.partitioning import partitioner as partitioner_lib

# Pairs have tables of so many bins a side; few sizes, few compiled programs.
_MIN_BINS = 8
_CHECK_EVERY = 10
# Rounding must not put a lower bound above what it bounds.
_SLACK = 1e-4


@dataclasses.dataclass(frozen=True)
class SinkhornConfig:
  """How closely optimal transport is approached.

  Attributes:
    regularization: weight of the plan's entropy, as a share of the mean
      distance between two centroids.
    tolerance: L1 distance of the plan's row sums from the histogram at which
      the iteration ends.
    max_iterations: it ends there too.
  """

  regularization: float = 0.02
  tolerance: float = 1e-3
  max_iterations: int = 1000

  def __post_init__(self):
    for name in ("regularization", "tolerance", "max_iterations"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name}={getattr(self, name)}: expected > 0")


class Histograms(NamedTuple):
  """Shares of tokens in a batch of sequences, without the empty bins.

  Attributes:
    bins: int32 `[rows, bins]`, tokens in ascending order, then 0.
    weights: float32 `[rows, bins]`, add up to 1; 0 behind the last bin.
  """

  bins: np.ndarray
  weights: np.ndarray

  @property
  def counts(self) -> np.ndarray:
    """Bins that are not empty, int64 `[rows]`."""
    return (self.weights > 0).sum(-1)

  def take(self, rows: np.ndarray) -> "Histograms":
    """Some rows, in that order."""
    return Histograms(self.bins[rows], self.weights[rows])


def histograms(tokens: np.ndarray) -> Histograms:
  """Histograms of token sequences.

  Args:
    tokens: int `[rows, length]`, at least 1 token each.
  """
  tokens = np.sort(np.asarray(tokens), axis=-1)
  if tokens.ndim != 2 or not tokens.shape[1]:
    raise ValueError(f"tokens of shape {tokens.shape}: [rows, length >= 1]")
  rows, length = tokens.shape
  is_new = np.ones(tokens.shape, bool)
  is_new[:, 1:] = tokens[:, 1:] != tokens[:, :-1]
  place = is_new.cumsum(-1) - 1
  most = int(place.max(initial=0)) + 1
  row = np.broadcast_to(np.arange(rows)[:, None], tokens.shape)
  bins = np.zeros((rows, most), np.int32)
  bins[row[is_new], place[is_new]] = tokens[is_new]
  flat = np.bincount((row * most + place).reshape(-1), minlength=rows * most)
  weights = flat.reshape(rows, most).astype(np.float32) / length
  return Histograms(bins, weights)


def entropy_bits(weights: np.ndarray) -> np.ndarray:
  """Empirical entropy of histograms `[..., bins]`, in bits `[...]`."""
  weights = np.asarray(weights, np.float64)
  logs = np.log2(weights, out=np.zeros_like(weights), where=weights > 0)
  return np.maximum(-(weights * logs).sum(-1), 0.0)


def centroid_distances(centroids: np.ndarray) -> np.ndarray:
  """Euclidean distances, float32 `[clusters, clusters]`."""
  points = np.asarray(centroids, np.float64)
  norms = (points**2).sum(-1)
  squares = norms[:, None] + norms[None, :] - 2 * points @ points.T
  distances = np.sqrt(np.maximum(squares, 0.0))
  np.fill_diagonal(distances, 0.0)
  return distances.astype(np.float32)


def _log(weights: jax.Array) -> jax.Array:
  return jnp.where(
    weights > 0, jnp.log(jnp.where(weights > 0, weights, 1)), -jnp.inf
  )


def _rounded(plan: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
  """The nearest plan whose sums are exactly the histograms.

  Altschuler, Weed and Rigollet (1705.09634), algorithm 2. So what it costs is
  never less than optimal transport, however early the iteration ended.
  """
  rows = plan.sum(-1)
  plan = plan * jnp.minimum(first / jnp.maximum(rows, 1e-30), 1.0)[..., None]
  columns = plan.sum(-2)
  plan *= jnp.minimum(second / jnp.maximum(columns, 1e-30), 1.0)[..., None, :]
  missing = jnp.maximum(first - plan.sum(-1), 0.0)
  wanted = jnp.maximum(second - plan.sum(-2), 0.0)
  total = jnp.maximum(missing.sum(-1), 1e-30)[..., None, None]
  return plan + missing[..., None] * wanted[..., None, :] / total


def sinkhorn(
  costs: jax.Array,
  first: jax.Array,
  second: jax.Array,
  regularization: float,
  tolerance: float,
  max_iterations: int,
) -> jax.Array:
  """Cost of regularised transport plans, made exactly feasible.

  Args:
    costs: float32 `[pairs, bins, other bins]`, >= 0.
    first: float32 `[pairs, bins]`, adds up to 1; empty bins have weight 0.
    second: float32 `[pairs, other bins]`, likewise.
    regularization: in the unit of `costs`.
    tolerance: see `SinkhornConfig`.
    max_iterations: see `SinkhornConfig`.

  Returns:
    float32 `[pairs]`, the sum of plan times cost, without the entropy.
  """
  log_first, log_second = _log(first), _log(second)

  def half(potential, log_weights, epsilon, axis):
    other = jnp.expand_dims(potential / epsilon + log_weights, 3 - axis)
    return -epsilon * special.logsumexp(other - costs / epsilon, axis=axis)

  def update(potentials, epsilon):
    rows = half(potentials[1], log_second, epsilon, 2)
    return rows, half(rows, log_first, epsilon, 1)

  def plan_of(potentials):
    logs = potentials[0][..., None] + potentials[1][..., None, :] - costs
    logs = logs / regularization + log_first[..., None]
    return jnp.exp(logs + log_second[..., None, :])

  # From a coarse problem to the fine one: far fewer iterations.
  start = jnp.maximum(costs.max(), regularization)
  num_coarse = jnp.ceil(jnp.log2(start / regularization)).astype(jnp.int32)

  def coarse(index, potentials):
    return update(potentials, jnp.maximum(start * 0.5**index, regularization))

  potentials = (jnp.zeros_like(first), jnp.zeros_like(second))
  potentials = jax.lax.fori_loop(0, num_coarse, coarse, potentials)

  def is_rough(state):
    count, _, error = state
    return (count < max_iterations) & (error > tolerance)

  def fine(state):
    count, potentials, _ = state
    for _ in range(_CHECK_EVERY):
      potentials = update(potentials, regularization)
    # The columns fit after each update; the rows tell what is left to do.
    error = jnp.abs(plan_of(potentials).sum(-1) - first).sum(-1).max()
    return count + _CHECK_EVERY, potentials, error

  _, potentials, _ = jax.lax.while_loop(
    is_rough, fine, (0, potentials, jnp.float32(jnp.inf))
  )
  return (_rounded(plan_of(potentials), first, second) * costs).sum((-1, -2))


class Transport:
  """Costs of moving histograms over some clusters to others.

  Attributes:
    config: of Sinkhorn's iteration.
    mean_distance: between two different centroids, the unit of the
      regularization.
    num_clusters: of the histograms.
  """

  def __init__(
    self,
    centroids: np.ndarray,
    config: SinkhornConfig = SinkhornConfig(),
    devices: Sequence[Any] | None = None,
    table_values_per_device: int = 1 << 18,
  ):
    """Sends the distances to all devices.

    Args:
      centroids: float `[clusters, dim]`, at least 2, not all alike.
      config: see `SinkhornConfig`.
      devices: those of this process by default.
      table_values_per_device: entries of the cost tables of a batch, which
        bound its memory.

    Raises:
      ValueError: if there are fewer than 2 different centroids.
    """
    self._centroids = np.asarray(centroids, np.float32)
    distances = centroid_distances(centroids)
    self.num_clusters = len(distances)
    self.mean_distance = float(
      distances.sum(dtype=np.float64) / max(distances.size - len(distances), 1)
    )
    if not self.mean_distance > 0:
      raise ValueError(
        f"centroids of shape {self._centroids.shape}: expected at least 2 "
        "different ones"
      )
    self.config = config
    devices = jax.local_devices() if devices is None else list(devices)
    self._num_devices = len(devices)
    self._table_values = table_values_per_device
    partitioner = partitioner_lib.Partitioner(mesh_lib.MeshConfig(), devices)
    self._put_batch = partitioner.put_batch
    # Lengths are measured in mean distances, so that float32 is well used.
    self._distances = jax.device_put(
      distances / np.float32(self.mean_distance), partitioner.replicated
    )
    self._program = partitioner.jit_per_device(
      functools.partial(_program, config=config)
    )

  def costs(self, first: Histograms, second: Histograms) -> np.ndarray:
    """What it costs to move each first histogram to the second one.

    Args:
      first: `[pairs]`.
      second: `[pairs]`, of the same clusters.

    Returns:
      float64 `[pairs]`, in the unit of the centroids.
    """
    sizes = np.maximum(first.counts, second.counts)
    buckets = np.maximum(_MIN_BINS, 2 ** np.ceil(np.log2(np.maximum(sizes, 1))))
    costs = np.zeros(len(sizes))
    for size in np.unique(buckets).astype(int):
      rows = np.flatnonzero(buckets == size)
      # Few pairs are not filled up to many.
      wanted = -(-len(rows) // self._num_devices)
      most = max(1, self._table_values // size**2)
      filled = 8 ** math.ceil(math.log(wanted, 8))
      batch = min(most, filled) * self._num_devices
      for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        costs[part] = self._batch(
          first.take(part), second.take(part), size, batch
        )
    return costs * self.mean_distance

  def _batch(
    self, first: Histograms, second: Histograms, size: int, batch: int
  ) -> np.ndarray:
    """Costs of at most `batch` pairs, filled up to it."""
    count = len(first.bins)
    arrays = {}
    for name, one in (("first", first), ("second", second)):
      for field, array in one._asdict().items():
        full = np.zeros((batch, size), array.dtype)
        kept = min(size, array.shape[1])
        full[:count, :kept] = array[:, :kept]
        if field == "weights":
          full[count:, 0] = 1.0  # a pair of the same token: done at once
        arrays[f"{name}_{field}"] = full
    result = self._program(self._distances, self._put_batch(arrays))
    return np.asarray(jax.device_get(result))[:count]

  def means(self, one: Histograms) -> np.ndarray:
    """Mean centroid of each histogram, float32 `[rows, dim]`."""
    out = np.zeros((len(one.bins), self._centroids.shape[1]), np.float32)
    for row in range(0, len(out), 1024):
      part = slice(row, row + 1024)
      points = self._centroids[one.bins[part]]
      out[part] = np.einsum("rb,rbd->rd", one.weights[part], points)
    return out

  def lower_bounds(
    self, first_means: np.ndarray, second_means: np.ndarray
  ) -> np.ndarray:
    """What `costs` cannot be below: the distance of the means (Rubner 2000).

    Args:
      first_means: of `means`, `[pairs, dim]`.
      second_means: likewise.
    """
    bounds = np.linalg.norm(first_means - second_means, axis=-1)
    return np.maximum(bounds - _SLACK * self.mean_distance, 0.0)


def _program(
  distances: jax.Array,
  batch: Mapping[str, jax.Array],
  config: SinkhornConfig,
) -> jax.Array:
  """Costs of the pairs of one device, in mean distances."""
  costs = distances[
    batch["first_bins"][:, :, None], batch["second_bins"][:, None, :]
  ]
  return sinkhorn(
    costs,
    batch["first_weights"],
    batch["second_weights"],
    config.regularization,
    config.tolerance,
    config.max_iterations,
  )
