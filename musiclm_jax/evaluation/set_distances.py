# SPDX-License-Identifier: Apache-2.0
"""Distances of two sets of clips whose embeddings lie in a store.

Embeddings are read a few clips at a time. FAD needs moments alone, which are
merged; what needs the vectors themselves takes a bounded number of them,
spread evenly over all clips and over the windows of each.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from musiclm_jax.evaluation import (
  bootstrap,
  embedding_store,
  frechet_distance,
  gaussian_statistics,
)

# Google's music papers leave covariances out beyond this width.
DIAGONAL_ABOVE = 1024
MAX_VECTORS, MAX_KERNEL_VECTORS = 20_000, 8_000
# Values held at once, float64: 128 MB.
_MAX_VALUES = 1 << 24
_CHUNK_CLIPS = 256
# Of a jackknife.
NUM_GROUPS = 20
# Multiples of it fill [0, 1) evenly.
_GOLDEN = 0.6180339887498949
Store = embedding_store.EmbeddingStore


def chunks(
  store: Store, keys: Sequence[str], size: int = _CHUNK_CLIPS
) -> Iterator[list[np.ndarray]]:
  """Arrays of clips, a bounded number of clips at a time, in order."""
  for start in range(0, len(keys), size):
    yield list(store.read(keys[start : start + size]))


def moments(
  store: Store, keys: Sequence[str], diagonal: bool
) -> gaussian_statistics.GaussianStatistics:
  """Statistics of all windows of clips, in memory that does not grow.

  Raises:
    ValueError: if there is no clip.
  """
  return gaussian_statistics.GaussianStatistics.over(
    (np.concatenate(rows) for rows in chunks(store, keys)), diagonal
  )


def frechet(
  store: Store,
  reference: gaussian_statistics.GaussianStatistics,
  keys: Sequence[str],
) -> bootstrap.Interval:
  """FAD with a jackknife interval over clips.

  The clips fall into 20 groups, and FAD is computed without each. (Draws with
  replacement, as of a bootstrap, would raise FAD itself.) With fewer than 3
  clips, or too few windows, the ends are NaN.

  Args:
    store: of the evaluated clips.
    reference: moments of the other set.
    keys: of the evaluated clips.

  Raises:
    ValueError: if there are fewer than 2 windows.
  """
  num_groups = min(NUM_GROUPS, len(keys))
  parts = [
    moments(store, keys[index::num_groups], reference.is_diagonal)
    for index in range(num_groups)
  ]
  return bootstrap.jackknife_interval(*frechet_without(reference, parts))


def frechet_without(
  reference: gaussian_statistics.GaussianStatistics,
  parts: Sequence[gaussian_statistics.GaussianStatistics],
) -> tuple[float, np.ndarray]:
  """FAD of all parts together, and of all but each.

  Args:
    reference: moments of the other set.
    parts: moments of groups of evaluated clips, at least 1.

  Returns:
    The distance, and float64 `[parts]`, NaN where too few windows are left.

  Raises:
    ValueError: if there are fewer than 2 windows.
  """
  gaussian = frechet_distance.Reference(reference)
  value = gaussian.distance(_merged(parts))
  without = np.full(len(parts), np.nan)
  for index in range(len(parts) if len(parts) > 1 else 0):
    rest = _merged([*parts[:index], *parts[index + 1 :]])
    if rest.count >= 2:
      without[index] = gaussian.distance(rest)
  return value, without


def _merged(
  parts: Sequence[gaussian_statistics.GaussianStatistics],
) -> gaussian_statistics.GaussianStatistics:
  total = parts[0]
  for part in parts[1:]:
    total = total.merge(part)
  return total


def sample(
  store: Store, keys: Sequence[str], most: int = MAX_VECTORS
) -> tuple[np.ndarray, np.ndarray]:
  """Vectors of clips, at most about `most`, and the clip of each.

  Args:
    store: of the clips.
    keys: of their content.
    most: vectors; fewer where they are wide.

  Returns:
    float32 `[vectors, width]` and int64 `[vectors]`.

  Raises:
    ValueError: if there is no clip.
  """
  if not keys:
    raise ValueError("keys=[]: expected at least one clip")
  found, clips = [], []
  step = 1
  for start, rows in enumerate(chunks(store, keys)):
    if start == 0:
      most = min(most, _MAX_VALUES // rows[0].shape[1])
      step = -(-len(keys) // most)
    per_clip = max(1, most * step // len(keys))
    for index, one in enumerate(rows, start * _CHUNK_CLIPS):
      if index % step:
        continue
      count = min(per_clip, len(one))
      # From another place in each clip, so that no part of them is preferred:
      # music begins and ends in its own ways.
      offset = index * _GOLDEN % 1.0
      places = ((np.arange(count) + offset) * len(one) / count).astype(int)
      found.append(one[places])
      clips.append(np.full(count, index))
  return np.concatenate(found), np.concatenate(clips)


def means(store: Store, keys: Sequence[str]) -> np.ndarray:
  """Mean of the windows of each clip, float64 `[clips, width]`."""
  return np.stack([rows.mean(0, np.float64) for rows in store.read(keys)])
