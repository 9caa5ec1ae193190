# SPDX-License-Identifier: Apache-2.0
"""Krippendorff's alpha: ratings of several raters in, their agreement out."""

from collections.abc import Callable

import numpy as np


def _nominal(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
  return (values[:, None] != values[None, :]).astype(np.float64)


def _interval(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
  return (values[:, None] - values[None, :]) ** 2


def _ordinal(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
  """Steps between ranks: by how many ratings lie between two values."""
  middle = np.cumsum(totals) - totals / 2
  return (middle[:, None] - middle[None, :]) ** 2


_DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
  "nominal": _nominal,
  "ordinal": _ordinal,
  "interval": _interval,
}


def krippendorff_alpha(ratings: np.ndarray, metric: str = "ordinal") -> float:
  """Agreement beyond chance (Krippendorff, Content Analysis, chapter 11).

  Args:
    ratings: float `[raters, units]`, NaN where a rater did not rate a unit.
      Units with fewer than two ratings do not count.
    metric: 'nominal', 'ordinal' or 'interval'.

  Returns:
    1 for full agreement, 0 for that of chance, less where raters disagree
    systematically; NaN where nothing can be said: no unit with two ratings, or
    all ratings equal.

  Raises:
    ValueError: for another shape or metric.
  """
  ratings = np.asarray(ratings, np.float64)
  if ratings.ndim != 2:
    raise ValueError(f"ratings of shape {ratings.shape}: expected 2 axes")
  if metric not in _DISTANCES:
    raise ValueError(f"metric={metric!r}: expected one of {list(_DISTANCES)}")
  values = np.unique(ratings[np.isfinite(ratings)])
  # [units, values]: how often a unit got a value.
  counts = (ratings.T[:, :, None] == values).sum(1).astype(np.float64)
  raters = counts.sum(1)
  counts, raters = counts[raters >= 2], raters[raters >= 2]
  weighted = counts / np.maximum(raters - 1, 1)[:, None]
  # Pairs of ratings of one unit; a rating makes no pair with itself.
  together = counts.T @ weighted - np.diag(weighted.sum(0))
  totals = together.sum(1)
  distances = _DISTANCES[metric](values, totals)
  expected = (np.outer(totals, totals) * distances).sum()
  if not expected:
    return float("nan")
  observed = (together * distances).sum()
  return float(1.0 - (totals.sum() - 1.0) * observed / expected)
