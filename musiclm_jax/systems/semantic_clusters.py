# SPDX-License-Identifier: Apache-2.0
"""Features of a corpus in; their statistics, clusters and a usage report out.

Mean and deviation are those of each dimension over the whole corpus (AudioLM
sec. III-B), never of a clip or a frame; the clusters are fitted on a uniform
sample of the standardised frames. `fit` runs on one device; `fit_on_mesh` on
all devices of all processes, with the same result for any number of them.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from musiclm_jax.core import errors, rng
from musiclm_jax.layers import kmeans, mesh_kmeans

# Dimensions that never vary would be divided by nothing.
_MIN_STD = 1e-5
# A frame's id is its clip's number and its place in it.
_FRAME_BITS = 24


class SemanticClusters(NamedTuple):
  """What a semantic tokenizer adds to a network.

  Attributes:
    mean: float32 `[dim]`.
    std: float32 `[dim]`.
    centroids: float32 `[clusters, dim]`, of standardised features.
    report: how the clusters are used; JSON-compatible.
  """

  mean: np.ndarray
  std: np.ndarray
  centroids: np.ndarray
  report: dict[str, Any]


def usage_report(counts: np.ndarray, inertia: float, dim: int) -> dict:
  """How even the clusters are used, and what they leave.

  Args:
    counts: `[clusters]`, points nearest to each.
    inertia: mean squared distance of a point to its centroid.
    dim: of the points, which have unit variance in each dimension.

  Returns:
    `num_clusters`, `clusters_used`, `perplexity` (of the distribution over
    clusters, in [1, clusters]), `largest_share` (of points in one cluster) and
    `quantization_error`, the share of the variance that the clusters leave.
  """
  shares = counts[counts > 0] / max(counts.sum(), 1)
  return {
    "num_clusters": len(counts),
    "clusters_used": len(shares),
    "perplexity": round(float(np.exp(-(shares * np.log(shares)).sum())), 2),
    "largest_share": round(float(shares.max(initial=0.0)), 5),
    "quantization_error": round(inertia / dim, 5),
    "num_points": int(counts.sum()),
  }


def describe(report: dict[str, Any]) -> str:
  """A usage report in a line."""
  return (
    f"k-means: {report['clusters_used']} of {report['num_clusters']} clusters "
    f"used, perplexity {report['perplexity']:g}, largest share "
    f"{report['largest_share']:.1%}, {report['quantization_error']:.1%} of the "
    f"variance left, {report['num_points']} of {report['num_frames']} frames"
  )


def _check_count(count: int, num_clusters: int) -> None:
  if count < num_clusters:
    raise errors.UserError(
      f"{count} frames of features: expected at least {num_clusters}, the "
      "semantic codebook_size"
    )


def _moments(
  count: int, total: np.ndarray, square: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation from float64 sums."""
  mean = total / count
  std = np.sqrt(np.maximum(square / count - mean**2, 0.0))
  return mean.astype(np.float32), np.maximum(std, _MIN_STD).astype(np.float32)


def fit(
  features: Iterable[np.ndarray],
  num_clusters: int,
  key: jax.Array,
  max_points: int = 500_000,
  num_iterations: int = 50,
) -> SemanticClusters:
  """Statistics and clusters of features of a corpus, on one device.

  Args:
    features: arrays `[..., dim]`, read once.
    num_clusters: codebook size.
    key: typed key.
    max_points: frames kept for k-means, a uniform sample.
    num_iterations: most Lloyd iterations.

  Raises:
    UserError: if there are fewer frames than clusters.
  """
  # Each frame gets a random rank and the lowest stay: a uniform sample of a
  # stream whose length is not known.
  generator = np.random.default_rng(
    np.asarray(jax.random.key_data(rng.named(key, "sample")))
  )
  count, total, square = 0, 0.0, 0.0
  kept, ranks = None, np.empty(0)
  for array in features:
    rows = np.asarray(array, np.float32).reshape(-1, array.shape[-1])
    count += len(rows)
    total = total + rows.sum(0, dtype=np.float64)
    square = square + (rows.astype(np.float64) ** 2).sum(0)
    ranks = np.concatenate([ranks, generator.random(len(rows))])
    kept = rows if kept is None else np.concatenate([kept, rows])
    if len(kept) > max_points:
      lowest = np.argpartition(ranks, max_points)[:max_points]
      kept, ranks = kept[lowest], ranks[lowest]
  _check_count(count, num_clusters)
  mean, std = _moments(count, total, square)
  points = (kept - mean) / std
  result = kmeans.fit(points, num_clusters, key, num_iterations=num_iterations)
  centroids = np.asarray(result.centroids)
  codes, distances = kmeans.assign(points, centroids)
  report = usage_report(
    np.bincount(np.asarray(codes), minlength=num_clusters),
    float(np.asarray(distances).mean(dtype=np.float64)),
    points.shape[1],
  )
  report |= {
    "num_frames": count,
    "num_iterations": int(result.num_iterations),
    "method": "one device",
  }
  return SemanticClusters(mean, std, centroids, report)


def _draws(ids: np.ndarray, seed: int) -> np.ndarray:
  """A random uint64 for each id (SplitMix64)."""
  with np.errstate(over="ignore"):
    bits = ids.astype(np.uint64) + np.uint64(seed % (1 << 63) + 1) * np.uint64(
      0x9E3779B97F4A7C15
    )
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _highest_kept(draws: np.ndarray, max_points: int) -> int:
  """The draw up to which `max_points` of all processes' draws lie."""
  low, high = 0, (1 << 64) - 1
  draws = np.sort(draws)
  while low < high:
    middle = (low + high) // 2
    here = np.searchsorted(draws, np.uint64(middle), side="right")
    if int(mesh_kmeans.gather(np.array([here], np.int64)).sum()) >= max_points:
      high = middle
    else:
      low = middle + 1
  return low


def fit_on_mesh(
  blocks: Iterable[tuple[int, int, np.ndarray]],
  num_blocks: int,
  config: mesh_kmeans.MeshKMeansConfig,
  dim: int,
  mesh: jax.sharding.Mesh,
  seed: int = 0,
  max_points: int = 500_000,
) -> SemanticClusters:
  """Statistics and clusters of features of a corpus; a collective.

  Args:
    blocks: this process's part of the corpus: (number of the block, number of
      the first clip, features `[clips, frames, dim]`). A block may come in
      several arrays; all of them must come from one process, in order.
    num_blocks: in all processes together. Sums are taken by block and then in
      the order of blocks, so they do not depend on who had which.
    config: of k-means.
    dim: of the features; a process may have no block.
    mesh: all its devices fit the clusters.
    seed: of the sample and of the seeding.
    max_points: frames kept for k-means in all processes together.

  Raises:
    UserError: if there are fewer frames than clusters.
  """
  counts = np.zeros(num_blocks, np.int64)
  sums = np.zeros((2, num_blocks, dim))
  kept = [(np.empty(0, np.int64), np.empty((0, dim), np.float32))]
  num_kept = 0
  for block, first_clip, features in blocks:
    features = np.asarray(features, np.float32)
    clips, frames, _ = features.shape
    for row in features:
      sums[0, block] += row.sum(0, dtype=np.float64)
      sums[1, block] += (row.astype(np.float64) ** 2).sum(0)
    counts[block] += clips * frames
    numbers = np.arange(first_clip, first_clip + clips, dtype=np.int64)
    ids = (numbers[:, None] << _FRAME_BITS) + np.arange(frames)
    kept.append((ids.reshape(-1), features.reshape(-1, dim)))
    num_kept += clips * frames
    if num_kept > 2 * max_points:
      kept = [_lowest(kept, seed, max_points)]
      num_kept = len(kept[0][0])
  ids, points = _lowest(kept, seed, max_points)
  count = int(mesh_kmeans.gather(counts).sum())
  _check_count(count, config.num_clusters)
  # Each block is zero but in one process: the sums stay exact.
  total, square = mesh_kmeans.gather(sums).sum(0).sum(1)
  mean, std = _moments(count, total, square)
  if count > max_points:
    draws = _draws(ids, seed)
    chosen = draws <= np.uint64(_highest_kept(draws, max_points))
    ids, points = ids[chosen], points[chosen]
  result = mesh_kmeans.fit((points - mean) / std, ids, config, mesh, seed)
  report = usage_report(result.counts, result.inertia, len(mean))
  report |= {
    "num_frames": count,
    "num_iterations": result.num_iterations,
    "num_repaired": result.num_repaired,
    "method": f"mesh, seeding {config.seeding}",
  }
  return SemanticClusters(mean, std, result.centroids, report)


def _lowest(
  parts: list[tuple[np.ndarray, np.ndarray]], seed: int, max_points: int
) -> tuple[np.ndarray, np.ndarray]:
  """The frames with the lowest draws, in the order of their ids."""
  ids = np.concatenate([part[0] for part in parts])
  points = np.concatenate([part[1] for part in parts])
  if len(ids) > max_points:
    chosen = np.argpartition(_draws(ids, seed), max_points - 1)[:max_points]
    ids, points = ids[chosen], points[chosen]
  order = np.argsort(ids)
  return ids[order], points[order]
