# SPDX-License-Identifier: Apache-2.0
"""Mean and covariance of embeddings, gathered batch by batch.

Embeddings flow in, in any number of batches; out flow mean and covariance of
all of them, from memory that does not grow with their number. Parts gathered
apart (batches, hosts, runs before a restart) merge into what one pass over
everything gives.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class GaussianStatistics:
  """First and second moments of a set of vectors.

  Attributes:
    count: how many vectors.
    mean: float64 `[dim]`.
    scatter: float64 `[dim, dim]`, the sum of (x - mean)(x - mean)^T; of a
      diagonal one `[dim]`, the sums of (x - mean)^2.
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray

  def __post_init__(self):
    """Checks shapes.

    Raises:
      ValueError: if they do not fit or `count` is below 1.
    """
    object.__setattr__(self, "mean", np.asarray(self.mean, np.float64))
    object.__setattr__(self, "scatter", np.asarray(self.scatter, np.float64))
    shape = self.mean.shape
    fits = self.scatter.shape in (shape, 2 * shape)
    if self.count < 1 or len(shape) != 1 or not fits:
      raise ValueError(
        f"count={self.count}, mean of shape {self.mean.shape}, scatter of "
        f"shape {self.scatter.shape}: expected count >= 1, [dim], and "
        "[dim, dim] or [dim]"
      )

  @classmethod
  def of(
    cls, vectors: np.ndarray, diagonal: bool = False
  ) -> "GaussianStatistics":
    """Statistics of one batch.

    Args:
      vectors: float `[count, dim]`, finite, at least 1.
      diagonal: keep variances alone.

    Raises:
      ValueError: if `vectors` has another shape or NaN or Inf.
    """
    vectors = check_vectors("vectors", vectors)
    mean = vectors.mean(0)
    centred = vectors - mean
    # What rounding leaves of the sum (Chan, Golub, LeVeque 1983) goes into
    # the mean, which matters where vectors lie far from 0.
    rest = centred.mean(0)
    mean, centred = mean + rest, centred - rest
    scatter = (centred**2).sum(0) if diagonal else centred.T @ centred
    return cls(len(vectors), mean, scatter)

  @classmethod
  def over(
    cls, batches: Iterable[np.ndarray], diagonal: bool = False
  ) -> "GaussianStatistics":
    """Statistics of all batches `[count, dim]`; empty ones add nothing.

    Raises:
      ValueError: if there is no vector, or as `of`.
    """
    total = None
    for batch in batches:
      if len(batch):
        part = cls.of(batch, diagonal)
        total = part if total is None else total.merge(part)
    if total is None:
      raise ValueError("no vectors: expected at least 1 in all batches")
    return total

  def merge(self, other: "GaussianStatistics") -> "GaussianStatistics":
    """Statistics of both sets together.

    Raises:
      ValueError: if dimensions differ, or one is diagonal and one is not.
    """
    if self.scatter.shape != other.scatter.shape:
      raise ValueError(
        f"scatter of shape {other.scatter.shape}: expected "
        f"{self.scatter.shape}, as the other part"
      )
    count = self.count + other.count
    apart = other.mean - self.mean
    weight = self.count * (other.count / count)
    square = apart**2 if self.is_diagonal else np.outer(apart, apart)
    return GaussianStatistics(
      count,
      self.mean + apart * (other.count / count),
      self.scatter + other.scatter + weight * square,
    )

  @property
  def dim(self) -> int:
    """Dimensions of the vectors."""
    return len(self.mean)

  @property
  def is_diagonal(self) -> bool:
    """Whether covariances are left out."""
    return self.scatter.ndim == 1

  @property
  def covariance(self) -> np.ndarray:
    """float64 `[dim, dim]`, or `[dim]` variances if diagonal; over count - 1.

    Raises:
      ValueError: if there are fewer than 2 vectors.
    """
    if self.count < 2:
      raise ValueError(f"count={self.count}: expected at least 2 vectors")
    return self.scatter / (self.count - 1)

  def to_diagonal(self) -> "GaussianStatistics":
    """The same without covariances."""
    if self.is_diagonal:
      return self
    return GaussianStatistics(self.count, self.mean, np.diag(self.scatter))


def check_vectors(
  name: str, vectors: np.ndarray, num_min: int = 1
) -> np.ndarray:
  """Vectors as float64 `[count, dim]`.

  Args:
    name: what they are called in the error message.
    vectors: float `[count, dim]`.
    num_min: how many there must be.

  Raises:
    ValueError: if the shape is another, there are too few, or one has NaN or
      Inf.
  """
  vectors = np.asarray(vectors, np.float64)
  if vectors.ndim != 2 or len(vectors) < num_min or not vectors.shape[1]:
    raise ValueError(
      f"{name} of shape {vectors.shape}: expected [count >= {num_min}, dim]"
    )
  bad = np.flatnonzero(~np.isfinite(vectors).all(1))
  if bad.size:
    raise ValueError(
      f"{name}: expected finite numbers, row {bad[0]} has NaN or Inf"
    )
  return vectors
