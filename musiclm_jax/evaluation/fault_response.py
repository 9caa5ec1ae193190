# SPDX-License-Identifier: Apache-2.0
"""How metrics answer to known faults: what a listener heard in, rows out.

The same clips are heard as they are and with faults of rising strength. Each
metric is computed of every version, with a jackknife over groups of works, and
so is its difference to the clips as they are. Both sides of it are the same
clips, so the difference that a slight fault makes is surer than the numbers: a
value inside the interval of the clips as they are can still be told from them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.evaluation import (
  bootstrap,
  frechet_distance,
  gaussian_statistics,
  kernel_distance,
  kl_divergence,
  set_distances,
  text_score,
)

FAD, DIAGONAL_FAD, KAD = "fad", "fad_diagonal", "kad"
KLD, TEXT = "kld", "text_score"
FAD_INFINITY = "fad_infinity"
# In the order of tables; 1 where a fault should raise it, -1 where lower it.
SIGNS: Mapping[str, int] = {
  FAD: 1,
  DIAGONAL_FAD: 1,
  KAD: 1,
  KLD: 1,
  TEXT: -1,
}
CLEAN = "as it is"
# Points of each line of FAD-infinity, of which there are many here.
_LINE_SIZES = 10


@dataclasses.dataclass(frozen=True)
class Heard:
  """What a listener says of clips.

  Attributes:
    vectors: of each clip float `[windows, dim]`; none of a mere classifier.
    logits: of each clip float `[windows, classes]`; none of a mere embedder.
    works: of each clip, what it is taken from.
  """

  vectors: Sequence[np.ndarray]
  logits: Sequence[np.ndarray]
  works: Sequence[str]

  def __post_init__(self):
    """Raises ValueError if numbers of clips differ."""
    count = len(self.works)
    counts = (len(self.vectors), len(self.logits))
    if set(counts) - {0, count} or not any(counts):
      raise ValueError(
        f"vectors and logits of {counts} clips: expected {count}, or none of "
        "one of them"
      )

  def of_others(self, order: Sequence[int]) -> "Heard":
    """The same works with the rows of other clips, in some order."""
    vectors, logits = (
      [rows[place] for place in order] if len(rows) else []
      for rows in (self.vectors, self.logits)
    )
    return Heard(vectors, logits, self.works)


@dataclasses.dataclass(frozen=True)
class Version:
  """The clips with one fault.

  Attributes:
    kind: the fault; `CLEAN` of the clips as they are.
    name: with its strength, in words.
    heard: the same clips, in the same order.
  """

  kind: str
  name: str
  heard: Heard


@dataclasses.dataclass(frozen=True)
class Row:
  """Numbers of a version.

  Attributes:
    kind: as in `Version`.
    name: as in `Version`.
    values: of each metric, with its 95 % interval.
    differences: of each metric to the clips as they are, with the interval of
      the difference itself; empty of those.
    fad_infinity: the line's end and its R^2, if there are vectors.
  """

  kind: str
  name: str
  values: Mapping[str, bootstrap.Interval]
  differences: Mapping[str, bootstrap.Interval]
  fad_infinity: tuple[float, float] | None

  def to_dict(self) -> dict[str, Any]:
    """JSON-compatible."""
    names = ("values", "differences")
    tables = {
      name: {key: one.to_dict() for key, one in getattr(self, name).items()}
      for name in names
    }
    line = self.fad_infinity
    return {
      "kind": self.kind,
      "name": self.name,
      **tables,
      FAD_INFINITY: line and {"value": line[0], "r_squared": line[1]},
    }


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a metric makes of one kind of fault.

  Attributes:
    kind: of fault.
    metric: its name.
    is_ordered: whether it gets worse with every step, the first one included.
    slightest: the slightest version from which on all are told from the clips
      as they are, that is their differences are clear of 0; None if not even
      the strongest one is.
  """

  kind: str
  metric: str
  is_ordered: bool
  slightest: str | None


def respond(
  reference: Heard,
  versions: Sequence[Version],
  text_vectors: np.ndarray | None = None,
  multi_label: bool = True,
  update: Callable[[], None] = lambda: None,
) -> list[Row]:
  """Metrics of clips with faults.

  Args:
    reference: other clips as they are, of other works; for FAD and KAD.
    versions: of the same clips; the first is `CLEAN`.
    text_vectors: of what is written of each clip, float `[clips, dim]`, in the
      space of the vectors; None for no text score.
    multi_label: whether the listener judges its classes apart.
    update: called after each version.

  Returns:
    A row for each version. FAD beyond 1024 dimensions has variances alone.
    KLD is that of the clips as they are with those of the version. What cannot
    be computed of so few or such equal windows is left out.

  Raises:
    ValueError: if the versions are not of the same clips, or there are fewer
      than 2 windows.
  """
  clean = versions[0].heard
  if versions[0].kind != CLEAN:
    raise ValueError(f"kind={versions[0].kind!r}: expected {CLEAN!r} first")
  for version in versions:
    if list(version.heard.works) != list(clean.works):
      raise ValueError(f"{version.name}: expected the clips of {CLEAN!r}")
  study = _Study(reference, clean, text_vectors, multi_label)
  first = study.metrics(clean)
  rows = []
  for version in versions:
    is_clean = version.kind == CLEAN
    found = first if is_clean else study.metrics(version.heard)
    apart = {
      name: (value - first[name][0], without - first[name][1])
      for name, (value, without) in found.items()
      if not is_clean
    }
    rows.append(
      Row(
        version.kind,
        version.name,
        _intervals(found),
        _intervals(apart),
        study.line(version.heard),
      )
    )
    update()
  return rows


def _intervals(
  found: Mapping[str, tuple[float, np.ndarray]],
) -> dict[str, bootstrap.Interval]:
  return {
    name: bootstrap.jackknife_interval(*pair) for name, pair in found.items()
  }


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
  """What each metric makes of each kind of fault.

  Args:
    rows: of `respond`; those of a kind with the slightest fault first.
  """
  clean, found = rows[0], []
  for kind in dict.fromkeys(row.kind for row in rows[1:]):
    mine = [row for row in rows if row.kind == kind]
    for metric in clean.values:
      sign = SIGNS[metric]
      path = [sign * row.values[metric].mean for row in (clean, *mine)]
      told = [_is_told(row.differences[metric], sign) for row in mine]
      slightest = None
      for row, is_told in zip(reversed(mine), reversed(told)):
        if not is_told:
          break
        slightest = row.name
      is_ordered = bool((np.diff(path) > 0).all())
      found.append(Verdict(kind, metric, is_ordered, slightest))
  return found


def out_of_order(rows: Sequence[Row]) -> dict[str, list[str]]:
  """Where metrics put a worse row before a better one.

  Args:
    rows: the best first.

  Returns:
    Of each metric the pairs of neighbours that are not in this order, as
    'better before worse'.
  """
  found: dict[str, list[str]] = {}
  for metric in rows[0].values:
    sign = SIGNS[metric]
    found[metric] = [
      f"{better.name} before {worse.name}"
      for better, worse in zip(rows, rows[1:])
      if not sign * better.values[metric].mean
      < sign * worse.values[metric].mean
    ]
  return found


def _is_told(difference: bootstrap.Interval, sign: int) -> bool:
  """Whether a difference is worse, and its interval clear of 0."""
  ends = sign * difference.low, sign * difference.high
  return min(ends) > 0


class _Study:
  """Metrics of versions of the same clips, and without each block of works.

  What they give is a float and float64 `[blocks]`, without each block.
  """

  def __init__(
    self,
    reference: Heard,
    clean: Heard,
    text_vectors: np.ndarray | None,
    multi_label: bool,
  ):
    works = {
      work: place for place, work in enumerate(dict.fromkeys(clean.works))
    }
    self._num_blocks = min(set_distances.NUM_GROUPS, len(works))
    self._blocks = np.array(
      [works[work] % self._num_blocks for work in clean.works]
    )
    self._clean, self._text = clean, text_vectors
    self._multi_label = multi_label
    self._is_wide = False
    if len(reference.vectors):
      vectors = np.concatenate(list(reference.vectors))
      self._is_wide = vectors.shape[1] > set_distances.DIAGONAL_ABOVE
      self._vectors = vectors[_thinned(len(vectors), set_distances.MAX_VECTORS)]
      self._moments = gaussian_statistics.GaussianStatistics.of(
        vectors, self._is_wide
      )
      few = _thinned(len(vectors), set_distances.MAX_KERNEL_VECTORS)
      self._kernel_vectors = vectors[few]
      self._bandwidth = kernel_distance.median_distance(vectors[few])

  def metrics(self, heard: Heard) -> dict[str, tuple[float, np.ndarray]]:
    """All metrics there are numbers for."""
    found = {}
    if len(heard.vectors):
      if not self._is_wide:
        found[FAD] = self._frechet(heard, False)
      found[DIAGONAL_FAD] = self._frechet(heard, True)
      # It is 0 where most windows of the reference are the same.
      if self._bandwidth > 0:
        found[KAD] = self._kernel(heard)
    if len(heard.logits):
      divergences = [
        kl_divergence.kl_divergence(mine[None], other[None], self._multi_label)[
          0
        ]
        for mine, other in zip(self._clean.logits, heard.logits)
      ]
      found[KLD] = self._mean(np.array(divergences))
    if self._text is not None and len(heard.vectors):
      found[TEXT] = self._mean(
        text_score.text_scores(self._text, heard.vectors)
      )
    return found

  def line(self, heard: Heard) -> tuple[float, float] | None:
    """FAD-infinity and its R^2."""
    if not len(heard.vectors):
      return None
    vectors = np.concatenate(list(heard.vectors))
    try:
      found = frechet_distance.extrapolated(
        self._vectors,
        vectors[_thinned(len(vectors), set_distances.MAX_VECTORS)],
        num_sizes=_LINE_SIZES,
        diagonal=self._is_wide,
      )
    except ValueError:  # too few for a line
      return None
    return found.value, found.r_squared

  def _frechet(self, heard: Heard, diagonal: bool) -> tuple[float, np.ndarray]:
    moments = self._moments.to_diagonal() if diagonal else self._moments
    parts = [
      gaussian_statistics.GaussianStatistics.over(
        (
          heard.vectors[index]
          for index in np.flatnonzero(self._blocks == block)
        ),
        diagonal,
      )
      for block in range(self._num_blocks)
    ]
    return set_distances.frechet_without(moments, parts)

  def _kernel(self, heard: Heard) -> tuple[float, np.ndarray]:
    vectors = np.concatenate(list(heard.vectors))
    blocks = np.repeat(self._blocks, [len(rows) for rows in heard.vectors])
    few = _thinned(len(vectors), set_distances.MAX_KERNEL_VECTORS)
    # Thinning may leave nothing of a block.
    _, blocks = np.unique(blocks[few], return_inverse=True)
    return kernel_distance.estimate_without(
      self._kernel_vectors, vectors[few], blocks, self._bandwidth
    )

  def _mean(self, scores: np.ndarray) -> tuple[float, np.ndarray]:
    without = np.full(self._num_blocks, np.nan)
    for block in range(self._num_blocks if self._num_blocks > 1 else 0):
      without[block] = scores[self._blocks != block].mean()
    return float(scores.mean()), without


def _thinned(count: int, most: int) -> np.ndarray:
  """At most so many places, evenly spread."""
  return np.linspace(0, count - 1, min(count, most)).astype(int)
