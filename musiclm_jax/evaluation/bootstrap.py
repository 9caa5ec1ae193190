# SPDX-License-Identifier: Apache-2.0
"""Intervals by resampling: scores per item in, a mean with its interval out.

Percentile bootstrap, and the jackknife for what drawing twice would change.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

# Resampled values held at once; bounds memory for long score lists.
_CHUNK_VALUES = 4_000_000


class Interval(NamedTuple):
  """A mean and the ends of its confidence interval, in the scores' unit."""

  mean: float
  low: float
  high: float

  def to_dict(self) -> dict[str, float]:
    """As `{'mean', 'low', 'high'}`, for `summary.json`."""
    return dict(self._asdict())


def mean_interval(
  values: np.ndarray,
  num_resamples: int = 2000,
  confidence: float = 0.95,
  seed: int = 0,
) -> Interval:
  """Percentile bootstrap interval of a mean.

  Args:
    values: scores, float `[items]`, finite, at least 1.
    num_resamples: bootstrap draws, each of `items` values with replacement.
    confidence: share of draws inside the interval, in (0, 1).
    seed: of the draws; the same seed gives the same interval.

  Returns:
    The plain mean with the `(1 ± confidence) / 2` quantiles of the draws.

  Raises:
    ValueError: if `values` is empty, not 1-d or not finite, or `confidence`
      or `num_resamples` is out of range.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not values.size:
    raise ValueError(f"values of shape {values.shape}: expected [items >= 1]")
  if not np.isfinite(values).all():
    raise ValueError("values: expected finite numbers, found NaN or Inf")
  if not 0 < confidence < 1:
    raise ValueError(f"confidence={confidence}: expected a number in (0, 1)")
  if num_resamples < 1:
    raise ValueError(f"num_resamples={num_resamples}: expected at least 1")
  generator = np.random.default_rng(seed)
  per_chunk = max(1, _CHUNK_VALUES // values.size)
  means = []
  for start in range(0, num_resamples, per_chunk):
    rows = min(per_chunk, num_resamples - start)
    drawn = generator.integers(0, values.size, (rows, values.size))
    means.append(values[drawn].mean(axis=1))
  tail = (1.0 - confidence) / 2.0
  low, high = np.quantile(np.concatenate(means), (tail, 1.0 - tail))
  return Interval(float(values.mean()), float(low), float(high))


def paired_difference(
  first: np.ndarray,
  second: np.ndarray,
  num_resamples: int = 2000,
  confidence: float = 0.95,
  seed: int = 0,
) -> Interval:
  """Interval of mean(first - second), item by item.

  Pairing removes what items have in common, so it can tell apart two means
  whose own intervals overlap.

  Args:
    first: float `[items]`.
    second: float `[items]`, the same items in the same order.
    num_resamples: bootstrap draws.
    confidence: share of draws inside the interval, in (0, 1).
    seed: of the draws.

  Raises:
    ValueError: if the shapes differ, or as `mean_interval`.
  """
  first, second = np.asarray(first), np.asarray(second)
  if first.shape != second.shape:
    raise ValueError(
      f"second of shape {second.shape}: expected {first.shape}, as first"
    )
  return mean_interval(first - second, num_resamples, confidence, seed)


def difference(
  first: np.ndarray,
  second: np.ndarray,
  num_resamples: int = 2000,
  confidence: float = 0.95,
  seed: int = 0,
) -> Interval:
  """Interval of mean(first) - mean(second) of items that have no partner.

  Args:
    first: float `[items]`.
    second: float `[other items]`.
    num_resamples: bootstrap draws, of both apart.
    confidence: share of draws inside the interval, in (0, 1).
    seed: of the draws.

  Raises:
    ValueError: as `mean_interval`.
  """
  first, second = np.asarray(first), np.asarray(second)
  check = [mean_interval(x, 1, confidence).mean for x in (first, second)]
  draws = []
  generator = np.random.default_rng(seed)
  for _ in range(num_resamples):
    means = [
      x[generator.integers(0, x.size, x.size)].mean() for x in (first, second)
    ]
    draws.append(means[0] - means[1])
  return percentile_interval(check[0] - check[1], np.array(draws), confidence)


def resample_groups(
  groups: Sequence[str], num_resamples: int = 1000, seed: int = 0
) -> np.ndarray:
  """How often each item counts in draws of whole groups, with replacement.

  Items of one group (clips of one work) are alike; drawing them apart would
  give intervals that are too narrow.

  Args:
    groups: the group of each item, at least 1 item.
    num_resamples: draws, each of as many groups as there are.
    seed: of the draws.

  Returns:
    float32 `[draws, items]`, whole numbers.

  Raises:
    ValueError: if there is no item or no draw.
  """
  if not len(groups) or num_resamples < 1:
    raise ValueError(
      f"{len(groups)} items, num_resamples={num_resamples}: expected at least "
      "1 of each"
    )
  names, places = np.unique(np.asarray(groups, str), return_inverse=True)
  generator = np.random.default_rng(seed)
  drawn = generator.multinomial(
    len(names), np.full(len(names), 1 / len(names)), size=num_resamples
  )
  return drawn[:, places].astype(np.float32)


def percentile_interval(
  value: float, draws: np.ndarray, confidence: float = 0.95
) -> Interval:
  """A statistic with the interval of its values over draws.

  Args:
    value: of the items as they are.
    draws: float `[draws]`; NaN where a draw has no value.
    confidence: share of draws inside the interval, in (0, 1).

  Raises:
    ValueError: if `confidence` is out of range.
  """
  if not 0 < confidence < 1:
    raise ValueError(f"confidence={confidence}: expected a number in (0, 1)")
  draws = np.asarray(draws, np.float64)
  draws = draws[np.isfinite(draws)]
  if not draws.size:
    return Interval(float(value), float("nan"), float("nan"))
  tail = (1.0 - confidence) / 2.0
  low, high = np.quantile(draws, (tail, 1.0 - tail))
  return Interval(float(value), float(low), float(high))


def grouped_mean(values: np.ndarray, counts: np.ndarray) -> Interval:
  """Mean over items with an interval over groups.

  Args:
    values: float `[items]`.
    counts: of `resample_groups`, `[draws, items]`.
  """
  values = np.asarray(values, np.float64)
  draws = (counts @ values) / np.maximum(counts.sum(1), 1.0)
  draws = np.where(counts.sum(1) > 0, draws, np.nan)
  return percentile_interval(values.mean(), draws)


def grouped_median(values: np.ndarray, counts: np.ndarray) -> Interval:
  """Median over items with an interval over groups; see `grouped_mean`."""
  values = np.asarray(values, np.float64)
  order = np.argsort(values, kind="stable")
  running = counts[:, order].cumsum(1, dtype=np.float64)
  half = running[:, -1:] / 2
  # The mean of the two in the middle, where their number is even.
  lower, upper = (running >= half).argmax(1), (running > half).argmax(1)
  draws = (values[order][lower] + values[order][upper]) / 2
  draws = np.where(running[:, -1] > 0, draws, np.nan)
  return percentile_interval(np.median(values), draws)


def jackknife_interval(value: float, without: np.ndarray) -> Interval:
  """A statistic with its 95 % interval by the jackknife.

  Args:
    value: of all items.
    without: float `[groups]`, its value as each group of items is left out.

  Returns:
    The ends are NaN with fewer than 3 groups, or where one has no value.
  """
  without = np.asarray(without, np.float64)
  num_groups = len(without)
  if num_groups < 3 or not np.isfinite(without).all():
    return Interval(float(value), math.nan, math.nan)
  spread = np.var(without) * (num_groups - 1)
  reach = float(special.stdtrit(num_groups - 1, 0.975) * math.sqrt(spread))
  return Interval(float(value), float(value) - reach, float(value) + reach)
