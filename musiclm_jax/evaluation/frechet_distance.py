# SPDX-License-Identifier: Apache-2.0
"""Frechet audio distance (FAD, arXiv 1812.08466): embeddings in, distance out.

||mu_r - mu_e||^2 + tr(S_r + S_e - 2 (S_r S_e)^(1/2)) between Gaussians with the
moments of two sets of embeddings, covariances over count - 1. Lower is better;
the unit is that of the squared embedding, so that numbers of two embedders do
not compare. It is too high by about c/n for n vectors: `extrapolated` takes
this out (FAD-infinity, arXiv 2311.01616).

The trace of the root is the sum of the singular values of A_r A_e^T where
S = A^T A by symmetric eigendecomposition: real in every case, and without the
square that costs half of the digits, singular covariances included.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.evaluation import gaussian_statistics

# Fewer vectors have a bias that a line in 1/n no longer describes.
DEFAULT_SMALLEST_SIZE = 500
_Vectors = np.ndarray | gaussian_statistics.GaussianStatistics


def frechet_distance(
  reference: _Vectors, evaluated: _Vectors, diagonal: bool = False
) -> float:
  """FAD of two sets.

  Args:
    reference: float `[reference vectors >= 2, dim]`, or their statistics.
    evaluated: float `[vectors >= 2, dim]`, or their statistics.
    diagonal: with variances alone; what Google's music papers do beyond 1024
      dimensions (Trill).

  Returns:
    At least 0.

  Raises:
    ValueError: if dimensions differ, there are too few vectors, or one is not
      finite.
  """
  return Reference(_statistics("reference", reference, diagonal)).distance(
    _statistics("evaluated", evaluated, diagonal)
  )


@dataclasses.dataclass(frozen=True)
class Extrapolation:
  """FAD at an infinite number of vectors.

  Attributes:
    value: the intercept of the line over 1/n; below 0 by chance at most.
    r_squared: of the line, at most 1; 1 if the line is exact. A low one says
      that FAD does not depend on n beyond chance, or not like 1/n.
    slope: of the line, the distance times vectors.
    standard_error: of the intercept by its residuals. Draws overlap, so it is
      a lower bound of what another sample would show.
    finite_value: the plain FAD of all vectors.
    sizes: numbers of evaluated vectors.
    distances: FAD at each.
  """

  value: float
  r_squared: float
  slope: float
  standard_error: float
  finite_value: float
  sizes: tuple[int, ...]
  distances: tuple[float, ...]

  def to_dict(self) -> dict[str, Any]:
    """JSON-compatible."""
    return dataclasses.asdict(self)


def extrapolated(
  reference: _Vectors,
  evaluated: np.ndarray,
  seed: int = 0,
  *,
  num_sizes: int = 25,
  smallest_size: int | None = None,
  replacement: bool = False,
  fixed_reference: bool = False,
  diagonal: bool = False,
) -> Extrapolation:
  """FAD-infinity: a line through FAD over 1/n, at 1/n = 0.

  Draws are subsets, and the reference shrinks in proportion, so that the bias
  of both sets is the c/n that the line takes out; FAD-infinity of two halves
  of one set is then 0 but for chance. The published toolkit (fadtk) draws with
  replacement from all n vectors against the whole reference. Its line ends at
  the plain FAD of all vectors, whose bias it cannot see; `replacement=True,
  fixed_reference=True` does that.

  Args:
    reference: float `[reference vectors, dim]`; with `fixed_reference` their
      statistics will do.
    evaluated: float `[vectors, dim]`.
    seed: of the draws.
    num_sizes: points of the line, evenly spaced in n.
    smallest_size: the least n; by default 500, or half of the evaluated
      vectors where these are fewer than 1000.
    replacement: draw with replacement.
    fixed_reference: use all reference vectors at every n.
    diagonal: as in `frechet_distance`.

  Raises:
    ValueError: if there are fewer than 4 vectors, `num_sizes` is below 3,
      `smallest_size` does not leave room below the number of vectors, or as
      `frechet_distance`.
  """
  if not fixed_reference:
    if isinstance(reference, gaussian_statistics.GaussianStatistics):
      raise ValueError(
        "reference as statistics: expected vectors, or fixed_reference=True"
      )
    reference = gaussian_statistics.check_vectors("reference", reference, 4)
  evaluated = gaussian_statistics.check_vectors("evaluated", evaluated, 4)
  total = len(evaluated)
  if smallest_size is None:
    smallest_size = min(DEFAULT_SMALLEST_SIZE, total // 2)
  if num_sizes < 3 or not 2 <= smallest_size < total:
    raise ValueError(
      f"num_sizes={num_sizes}, smallest_size={smallest_size}: expected at "
      f"least 3, and 2 to {total - 1} of {total} vectors"
    )
  if not fixed_reference and len(reference) * smallest_size < 2 * total:
    raise ValueError(
      f"smallest_size={smallest_size} of {total} vectors: expected more, so "
      f"that at least 2 of {len(reference)} reference vectors are left"
    )
  generator = np.random.default_rng(seed)

  def draw(vectors: np.ndarray, count: int) -> np.ndarray:
    return vectors[generator.choice(len(vectors), count, replacement)]

  whole = Reference(_statistics("reference", reference, diagonal))
  finite = whole.distance(_statistics("evaluated", evaluated, diagonal))
  sizes = np.unique(np.linspace(smallest_size, total, num_sizes).astype(int))
  distances = []
  for size in sizes:
    against = whole
    if not fixed_reference:
      part = draw(reference, round(len(reference) * size / total))
      against = Reference(_statistics("reference", part, diagonal))
    some = draw(evaluated, size)
    distances.append(against.distance(_statistics("", some, diagonal)))
  line = _fit_line(1.0 / sizes, np.array(distances))
  return Extrapolation(
    *line, finite, tuple(sizes.tolist()), tuple(map(float, distances))
  )


def per_song(
  reference: _Vectors, songs: Sequence[np.ndarray], diagonal: bool = False
) -> np.ndarray:
  """FAD of each song alone with the reference (arXiv 2311.01616, sec. 5).

  It ranks songs, to find outliers; a song has few frames, so the values are
  far above the FAD of all songs together.

  Args:
    reference: as in `frechet_distance`.
    songs: float `[frames, dim]` each.
    diagonal: as in `frechet_distance`.

  Returns:
    float64 `[songs]`; NaN for a song with fewer than 2 frames, which has no
    covariance.

  Raises:
    ValueError: as `frechet_distance`.
  """
  against = Reference(_statistics("reference", reference, diagonal))
  values = []
  for index, song in enumerate(songs):
    if len(song) < 2:
      values.append(float("nan"))
      continue
    statistics = _statistics(f"song {index}", song, diagonal)
    values.append(against.distance(statistics))
  return np.array(values, np.float64)


def covariance_root(covariance: np.ndarray) -> np.ndarray:
  """A with A^T A = covariance, float64 `[rank, dim]`.

  Eigenvalues that are 0 but for rounding are left out: the root would turn an
  error of 1e-16 into one of 1e-8 each.
  """
  values, vectors = np.linalg.eigh(covariance)
  largest = max(values[-1], 0.0)
  kept = values > largest * len(values) * np.finfo(np.float64).eps
  return np.sqrt(values[kept])[:, None] * vectors[:, kept].T


class Reference:
  """A Gaussian whose root is computed once, for many distances."""

  def __init__(self, statistics: gaussian_statistics.GaussianStatistics):
    self._statistics = statistics
    covariance = statistics.covariance
    if statistics.is_diagonal:
      self._root, self._trace = np.sqrt(covariance), covariance.sum()
    else:
      self._root = covariance_root(covariance)
      self._trace = np.trace(covariance)

  def distance(self, other: gaussian_statistics.GaussianStatistics) -> float:
    """FAD to another Gaussian, at least 0; ValueError if dimensions differ."""
    mine = self._statistics
    if other.mean.shape != mine.mean.shape:
      raise ValueError(
        f"evaluated vectors of {other.dim} dimensions: expected {mine.dim}, "
        "as in the reference"
      )
    apart = mine.mean - other.mean
    covariance = other.covariance
    if mine.is_diagonal:
      trace = ((self._root - np.sqrt(covariance)) ** 2).sum()
    else:
      product = self._root @ covariance_root(covariance).T
      both = np.linalg.svd(product, compute_uv=False).sum()
      trace = self._trace + np.trace(covariance) - 2.0 * both
    return float(max(apart @ apart + trace, 0.0))


def _statistics(
  name: str, vectors: _Vectors, diagonal: bool
) -> gaussian_statistics.GaussianStatistics:
  if isinstance(vectors, gaussian_statistics.GaussianStatistics):
    if vectors.is_diagonal and not diagonal:
      raise ValueError(f"{name} has variances alone: expected diagonal=True")
    return vectors.to_diagonal() if diagonal else vectors
  vectors = gaussian_statistics.check_vectors(name, vectors, 2)
  return gaussian_statistics.GaussianStatistics.of(vectors, diagonal)


def _fit_line(
  places: np.ndarray, values: np.ndarray
) -> tuple[float, float, float, float]:
  """Least squares: intercept, R^2, slope, standard error of the intercept."""
  centred = places - places.mean()
  spread = (centred**2).sum()
  slope = (centred * values).sum() / spread
  intercept = values.mean() - slope * places.mean()
  residual = ((values - intercept - slope * places) ** 2).sum()
  total = ((values - values.mean()) ** 2).sum()
  # Where all values are equal, the line is exact.
  r_squared = 1.0 - residual / total if total > 0 else 1.0
  variance = residual / (len(places) - 2)
  error = np.sqrt(variance * (1 / len(places) + places.mean() ** 2 / spread))
  return float(intercept), float(r_squared), float(slope), float(error)
