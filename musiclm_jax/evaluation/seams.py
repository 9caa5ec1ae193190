# SPDX-License-Identifier: Apache-2.0
"""Can one hear where windows of long generation join?

Audio and the times of its seams flow in; out flow spectral flux, change of
level and, with MuLan, the text score at seams, beside the same figures at
places inside windows, with bootstrap intervals. Where the interval of the
difference holds 0, seams are not to be told from the rest.

A figure compares seams with places anywhere else. Music whose beats fall on
whole seconds, as seams do, has more flux there without any fault: compare with
real audio at the same times.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from musiclm_jax.audio import loudness
from musiclm_jax.evaluation import bootstrap, log_mel

# float32 `[items, samples]` to the score of each item, float `[items]`.
ScoreFn = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class SeamConfig:
  """What is measured around a place.

  Attributes:
    flux_window_secs: of the spectra that are compared.
    reach_secs: on both sides of a place, in which the largest flux counts.
    level_secs: on both sides, whose levels are compared.
    score_secs: of the audio around a place that is scored.
    margin_secs: places inside windows keep this distance from all seams.
    step_secs: between such places.
    outlier_quantile: seams beyond this quantile of the places inside are
      listed.
  """

  flux_window_secs: float = 0.016
  reach_secs: float = 0.02
  level_secs: float = 0.1
  score_secs: float = 10.0
  margin_secs: float = 0.1
  step_secs: float = 0.05
  outlier_quantile: float = 0.999

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if not getattr(self, field.name) > 0:
        raise ValueError(
          f"{field.name}={getattr(self, field.name)}: expected > 0"
        )
    if not self.outlier_quantile < 1:
      raise ValueError(
        f"outlier_quantile={self.outlier_quantile}: expected < 1"
      )


@dataclasses.dataclass(frozen=True)
class SeamFigure:
  """One figure, at seams and inside windows.

  Attributes:
    seams: mean over seams with its interval.
    inside: mean over places inside windows.
    difference: of the two, seams minus inside.
    outliers: (item, seconds) of the seams beyond what is usual inside; for
      the text score none are listed.
  """

  seams: bootstrap.Interval
  inside: bootstrap.Interval
  difference: bootstrap.Interval
  outliers: tuple[tuple[int, float], ...] = ()

  @property
  def is_equal(self) -> bool:
    """Whether the interval of the difference holds 0."""
    return self.difference.low <= 0.0 <= self.difference.high

  def to_dict(self) -> dict[str, Any]:
    """JSON-compatible."""
    return {
      "seams": self.seams.to_dict(),
      "inside": self.inside.to_dict(),
      "difference": self.difference.to_dict(),
      "is_equal": self.is_equal,
      "outliers": [list(place) for place in self.outliers],
    }


def inside_places(
  secs: float, seam_secs: Sequence[float], config: SeamConfig
) -> np.ndarray:
  """Times `[places]` away from all seams and from both ends."""
  times = np.arange(
    config.margin_secs, secs - config.margin_secs, config.step_secs
  )
  seams = np.asarray(seam_secs, float)
  if seams.size:
    distance = np.abs(times[:, None] - seams).min(1)
    times = times[distance >= config.margin_secs - 1e-9]
  return times


def spectral_flux(
  waveform: np.ndarray,
  sample_rate_hz: int,
  times_secs: np.ndarray,
  config: SeamConfig,
) -> np.ndarray:
  """Largest rise of the spectrum near each time.

  Args:
    waveform: float32 `[samples]`.
    sample_rate_hz: its rate.
    times_secs: float `[places]`.
    config: window and reach.

  Returns:
    float64 `[places]`: mean over mel bands of what the natural-log magnitude
    rises by from one window to the next that shares nothing with it.
  """
  spectrum = log_mel.LogMelConfig(
    sample_rate_hz,
    config.flux_window_secs,
    config.flux_window_secs / 4,
    num_mels=32,
  )
  mels = log_mel.log_mel(waveform, spectrum)
  apart = 4
  rise = np.maximum(mels[apart:] - mels[:-apart], 0.0).mean(-1)
  hop = spectrum.hop_samples
  # Rise k is at the join of its two windows.
  at = (np.arange(len(rise)) * hop + spectrum.window_samples) / sample_rate_hz
  first = np.searchsorted(at, times_secs - config.reach_secs)
  last = np.searchsorted(at, times_secs + config.reach_secs, "right")
  first = np.minimum(first, len(rise) - 1)
  last = np.maximum(last, first + 1)
  return np.array([rise[a:b].max() for a, b in zip(first, last)], np.float64)


def level_change_db(
  waveform: np.ndarray,
  sample_rate_hz: int,
  times_secs: np.ndarray,
  config: SeamConfig,
) -> np.ndarray:
  """How much louder or softer it is after each time, in dB, `[places]`."""
  size = max(1, round(config.level_secs * sample_rate_hz))
  changes = []
  for place in np.round(times_secs * sample_rate_hz).astype(int):
    place = min(max(place, 1), len(waveform) - 1)
    before = waveform[max(0, place - size) : place]
    after = waveform[place : place + size]
    changes.append(abs(loudness.rms_db(after) - loudness.rms_db(before)))
  return np.array(changes, np.float64)


def _text_scores(
  waveform: np.ndarray,
  sample_rate_hz: int,
  times_secs: np.ndarray,
  score: ScoreFn,
  config: SeamConfig,
) -> np.ndarray:
  """Scores of the audio around each time; it is moved to lie inside."""
  size = min(len(waveform), round(config.score_secs * sample_rate_hz))
  starts = np.round(times_secs * sample_rate_hz).astype(int) - size // 2
  starts = np.clip(starts, 0, len(waveform) - size)
  return np.concatenate(
    [
      np.asarray(score(waveform[None, start : start + size]))
      for start in starts
    ]
  )


def compare(
  waveforms: Sequence[np.ndarray],
  sample_rate_hz: int,
  seam_secs: Sequence[Sequence[float]],
  scores: Sequence[ScoreFn] | None = None,
  config: SeamConfig | None = None,
  num_scored: int = 32,
  seed: int = 0,
) -> dict[str, SeamFigure]:
  """Seams beside the insides of windows.

  Args:
    waveforms: float32 `[samples]` each.
    sample_rate_hz: of all.
    seam_secs: of each waveform, as `cascade.seam_secs` gives them; one of
      several stages, or those of all stages together.
    scores: of each waveform, what scores pieces of it: with MuLan, the cosine
      of their embedding with that of the prompt.
    config: what is measured.
    num_scored: places inside windows of each waveform that are scored.
    seed: of their choice, and of the bootstrap.

  Returns:
    'spectral_flux' and 'level_change_db', and 'text_score' if there are
    `scores`.

  Raises:
    ValueError: if numbers of items differ, there is no seam, or no place
      inside windows.
  """
  config = config or SeamConfig()
  if len(waveforms) != len(seam_secs) or (
    scores is not None and len(scores) != len(waveforms)
  ):
    raise ValueError(
      f"{len(waveforms)} waveforms, {len(seam_secs)} rows of seams, "
      f"{'no' if scores is None else len(scores)} scores: expected as many"
    )
  measures = {
    "spectral_flux": spectral_flux,
    "level_change_db": level_change_db,
  }
  at_seams: dict[str, list[np.ndarray]] = {name: [] for name in measures}
  at_inside: dict[str, list[np.ndarray]] = {name: [] for name in measures}
  if scores is not None:
    at_seams["text_score"], at_inside["text_score"] = [], []
  places: list[tuple[int, float]] = []
  generator = np.random.default_rng(seed)
  for index, (waveform, seams) in enumerate(zip(waveforms, seam_secs)):
    waveform = np.asarray(waveform, np.float32)
    seams = np.asarray(seams, float)
    inside = inside_places(len(waveform) / sample_rate_hz, seams, config)
    places += [(index, float(secs)) for secs in seams]
    for name, measure in measures.items():
      for times, rows in ((seams, at_seams), (inside, at_inside)):
        rows[name].append(measure(waveform, sample_rate_hz, times, config))
    if scores is not None:
      few = generator.permutation(inside)[:num_scored]
      for times, rows in ((seams, at_seams), (few, at_inside)):
        rows["text_score"].append(
          _text_scores(waveform, sample_rate_hz, times, scores[index], config)
        )
  num_inside = sum(map(len, at_inside["level_change_db"]))
  if not places or not num_inside:
    raise ValueError(
      f"{len(places)} seams and {num_inside} places inside windows: expected "
      "some of both"
    )
  return {
    name: _figure(
      np.concatenate(rows),
      np.concatenate(at_inside[name]),
      places if name in measures else [],
      config,
      seed,
    )
    for name, rows in at_seams.items()
  }


def _figure(
  seams: np.ndarray,
  inside: np.ndarray,
  places: Sequence[tuple[int, float]],
  config: SeamConfig,
  seed: int,
) -> SeamFigure:
  limit = np.quantile(inside, config.outlier_quantile)
  return SeamFigure(
    bootstrap.mean_interval(seams, seed=seed),
    bootstrap.mean_interval(inside, seed=seed),
    bootstrap.difference(seams, inside, seed=seed),
    tuple(place for place, value in zip(places, seams) if value > limit),
  )
