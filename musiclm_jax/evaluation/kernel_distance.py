# SPDX-License-Identifier: Apache-2.0
"""Kernel audio distance (KAD, arXiv 2502.15602): embeddings in, distance out.

100 times the unbiased squared maximum mean discrepancy of two sets with the
kernel exp(-d^2 / (2 s^2 + 1e-8)), where s is the median pairwise distance of
the REFERENCE: the distance is not symmetric. Lower is better; 0 for equal
distributions at any number of vectors, and below 0 by chance, which is kept.

Pairs are visited block by block, so memory grows with the number of vectors
and not with its square.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from musiclm_jax.evaluation import bootstrap, gaussian_statistics

SCALE = 100.0
_KERNEL_FLOOR = 1e-8
# Vectors of a block; 2048^2 distances are 32 MB.
_BLOCK = 2048
_NUM_BINS = 1 << 16


@dataclasses.dataclass(frozen=True)
class KernelEstimate:
  """KAD with what its size is to be judged by.

  Attributes:
    value: the distance.
    standard_error: of `value`: to first order, and at least that of two sets
      of one distribution. About right where sets differ, and up to 1.4 times
      too large where they do not.
    bandwidth: of the kernel.
  """

  value: float
  standard_error: float
  bandwidth: float

  def interval(self) -> bootstrap.Interval:
    """95 % by the normal law: `value` -+ 1.96 standard errors."""
    reach = 1.959964 * self.standard_error
    return bootstrap.Interval(
      self.value, self.value - reach, self.value + reach
    )

  def to_dict(self) -> dict[str, Any]:
    """JSON-compatible."""
    return dataclasses.asdict(self)


def estimate(
  reference: np.ndarray,
  evaluated: np.ndarray,
  bandwidth: float | None = None,
  reference_groups: Sequence[Any] | None = None,
  evaluated_groups: Sequence[Any] | None = None,
) -> KernelEstimate:
  """KAD with its standard error.

  Args:
    reference: float `[reference vectors >= 2, dim]`.
    evaluated: float `[vectors >= 2, dim]`.
    bandwidth: s; by default `median_distance(reference)`.
    reference_groups: the clip or work of each reference vector: vectors of one
      are alike, and without this the error comes out too small.
    evaluated_groups: of each evaluated vector.

  Returns:
    The value is in [-100, 200].

  Raises:
    ValueError: if shapes do not fit, a vector is not finite, the bandwidth is
      not above 0 (where most reference vectors are equal), or lengths of
      groups differ.
  """
  reference = gaussian_statistics.check_vectors("reference", reference, 2)
  evaluated = gaussian_statistics.check_vectors("evaluated", evaluated, 2)
  if reference.shape[1] != evaluated.shape[1]:
    raise ValueError(
      f"evaluated of {evaluated.shape[1]} dimensions: expected "
      f"{reference.shape[1]}, as in the reference"
    )
  # Distances do not change, and the squares they come from lose fewer digits.
  centre = reference.mean(0)
  reference, evaluated = reference - centre, evaluated - centre
  if bandwidth is None:
    bandwidth = median_distance(reference)
  if not bandwidth > 0:
    raise ValueError(f"bandwidth={bandwidth}: expected > 0")
  own, squares = _own_means(reference, bandwidth)
  other, _ = _own_means(evaluated, bandwidth)
  across, back = _means_across(reference, evaluated, bandwidth)
  value = own.mean() + other.mean() - 2.0 * across.mean()
  variance = 4.0 * _variance(own - across, reference_groups)
  variance += 4.0 * _variance(other - back, evaluated_groups)
  # The first order vanishes for equal sets, and may by chance for near ones.
  centred = max(squares - 2.0 * (own**2).mean() + own.mean() ** 2, 0.0)
  counts = [
    len(one) if groups is None else len(set(groups))
    for one, groups in (
      (reference, reference_groups),
      (evaluated, evaluated_groups),
    )
  ]
  first, second = (max(count, 2) for count in counts)
  pairs = 1 / (first * (first - 1)) + 1 / (second * (second - 1))
  pairs += 2 / (first * second)
  variance = np.maximum(variance, 2.0 * centred * pairs)
  return KernelEstimate(
    float(SCALE * value),
    float(SCALE * np.sqrt(variance)),
    float(bandwidth),
  )


def estimate_without(
  reference: np.ndarray,
  evaluated: np.ndarray,
  groups: np.ndarray,
  bandwidth: float,
) -> tuple[float, np.ndarray]:
  """KAD of all evaluated vectors, and of all but each group, in one pass.

  Args:
    reference: float `[reference vectors >= 2, dim]`.
    evaluated: float `[vectors >= 2, dim]`.
    groups: int `[vectors]`, from 0; every number up to the last one is there.
    bandwidth: s, above 0.

  Returns:
    The distance, and float64 `[groups]`, NaN where fewer than 2 are left.

  Raises:
    ValueError: as `estimate`.
  """
  reference = gaussian_statistics.check_vectors("reference", reference, 2)
  evaluated = gaussian_statistics.check_vectors("evaluated", evaluated, 2)
  groups = np.asarray(groups)
  if groups.shape != (len(evaluated),):
    raise ValueError(
      f"groups of shape {groups.shape}: expected [{len(evaluated)}]"
    )
  if not bandwidth > 0:
    raise ValueError(f"bandwidth={bandwidth}: expected > 0")
  centre = reference.mean(0)
  reference, evaluated = reference - centre, evaluated - centre
  own, _ = _own_means(reference, bandwidth)
  _, across = _means_across(reference, evaluated, bandwidth)
  member = np.eye(groups.max() + 1)[groups]
  # Sums of the kernel between any two groups, vectors with themselves left out.
  inside = np.zeros((member.shape[1],) * 2)
  for rows, columns, kernel in _kernels(evaluated, evaluated, bandwidth):
    if rows == columns:
      np.fill_diagonal(kernel, 0.0)
    inside += member[rows].T @ kernel @ member[columns]
  counts, sums = member.sum(0), member.T @ across

  def distance(count, within, between):
    with np.errstate(divide="ignore", invalid="ignore"):
      mean = np.where(count > 1, within / (count * (count - 1)), np.nan)
      return SCALE * (own.mean() + mean - 2.0 * between / count)

  total = distance(counts.sum(), inside.sum(), sums.sum())
  left = inside.sum() - 2.0 * inside.sum(1) + np.diag(inside)
  return float(total), distance(counts.sum() - counts, left, sums.sum() - sums)


def median_distance(vectors: np.ndarray) -> float:
  """Median Euclidean distance over all pairs of different vectors.

  Exact: one pass counts distances in narrow bins, another one looks into the
  bin of the median only.

  Args:
    vectors: float `[count >= 2, dim]`.

  Raises:
    ValueError: as `kernel_distance`.
  """
  vectors = gaussian_statistics.check_vectors("vectors", vectors, 2)
  vectors = vectors - vectors.mean(0)
  largest = 2.0 * np.sqrt((vectors**2).sum(1).max())
  if largest == 0.0:
    return 0.0
  # The largest possible distance stays inside the last bin.
  width = largest * (1.0 + 1e-9) / _NUM_BINS
  counts = np.zeros(_NUM_BINS, np.int64)
  for distances in _pair_distances(vectors):
    bins = (distances / width).astype(np.int64)
    counts += np.bincount(bins, minlength=_NUM_BINS)
  total = counts.sum()
  below = counts.cumsum()
  # The two in the middle; one and the same for an odd number.
  places = np.array([(total - 1) // 2, total // 2])
  first, last = np.searchsorted(below, places, "right")
  found = np.concatenate(
    [
      distances[(bins == first) | (bins == last)]
      for distances in _pair_distances(vectors)
      for bins in [(distances / width).astype(np.int64)]
    ]
  )
  found.sort()
  rest = places - (below[first] - counts[first])
  if first != last:
    # Between the two bins there are none, so they are neighbours in `found`.
    rest = np.array([counts[first] - 1, counts[first]])
  return float(found[rest].mean())


def _blocks(count: int) -> Iterator[slice]:
  for start in range(0, count, _BLOCK):
    yield slice(start, min(start + _BLOCK, count))


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """float64 `[first, second]`, at least 0."""
  squares = (first**2).sum(1)[:, None] + (second**2).sum(1)
  return np.maximum(squares - 2.0 * (first @ second.T), 0.0)


def _pair_distances(vectors: np.ndarray) -> Iterator[np.ndarray]:
  """Distances of all pairs i < j, some at a time, each `[pairs]`."""
  for rows in _blocks(len(vectors)):
    for columns in _blocks(len(vectors)):
      if columns.start < rows.start:
        continue
      distances = np.sqrt(_squared_distances(vectors[rows], vectors[columns]))
      if columns == rows:
        yield distances[np.triu_indices(len(distances), 1)]
      else:
        yield distances.reshape(-1)


def _kernels(
  first: np.ndarray, second: np.ndarray, bandwidth: float
) -> Iterator[tuple[slice, slice, np.ndarray]]:
  """Blocks of the kernel: rows, columns, float64 `[rows, columns]`."""
  gamma = 1.0 / (2.0 * bandwidth**2 + _KERNEL_FLOOR)
  for rows in _blocks(len(first)):
    for columns in _blocks(len(second)):
      squares = _squared_distances(first[rows], second[columns])
      yield rows, columns, np.exp(-gamma * squares)


def _own_means(
  vectors: np.ndarray, bandwidth: float
) -> tuple[np.ndarray, float]:
  """Mean kernel of each vector with the others, and mean squared kernel."""
  total, squares = np.zeros(len(vectors)), 0.0
  for rows, columns, kernel in _kernels(vectors, vectors, bandwidth):
    if rows == columns:
      np.fill_diagonal(kernel, 0.0)
    total[rows] += kernel.sum(1)
    squares += (kernel**2).sum()
  others = len(vectors) - 1
  return total / others, float(squares / (len(vectors) * others))


def _means_across(
  first: np.ndarray, second: np.ndarray, bandwidth: float
) -> tuple[np.ndarray, np.ndarray]:
  """Mean kernel of each vector with the other set, `[first]`, `[second]`."""
  there, back = np.zeros(len(first)), np.zeros(len(second))
  for rows, columns, kernel in _kernels(first, second, bandwidth):
    there[rows] += kernel.sum(1)
    back[columns] += kernel.sum(0)
  return there / len(second), back / len(first)


def _variance(values: np.ndarray, groups: Sequence[Any] | None) -> float:
  """Of the mean of values, of which those of a group move together."""
  centred = values - values.mean()
  if groups is not None:
    if len(groups) != len(values):
      raise ValueError(f"{len(groups)} groups: expected {len(values)}")
    _, places = np.unique(np.asarray(groups), return_inverse=True)
    centred = np.bincount(places, centred)
  count = len(centred)
  if count < 2:
    return float("nan")
  return float((centred**2).sum() / len(values) ** 2 * count / (count - 1))
