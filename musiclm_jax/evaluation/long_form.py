# SPDX-License-Identifier: Apache-2.0
"""Does long music stay with its prompt, and does it stay itself?

Embeddings of windows along a piece flow in; out flow the text score against
the prompt that is active in each window (story mode), drift away from the
begin, and repetition. Where windows of generation join is judged by
`seams.py`. None has a known best value: compare with real pieces of the same
length.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from musiclm_jax.evaluation import text_score


def active_prompts(
  num_windows: int,
  window_secs: float,
  hop_secs: float,
  starts_secs: Sequence[float],
  ends_secs: Sequence[float] | None = None,
) -> np.ndarray:
  """Which prompt is active in each window.

  Args:
    num_windows: of the piece; window i begins at i * `hop_secs`.
    window_secs: length of a window.
    hop_secs: between the begins of two.
    starts_secs: where each prompt sets in, ascending, the first at 0.
    ends_secs: until where the transition INTO each prompt lasts; windows that
      reach into a transition have no prompt. By default it is at once.

  Returns:
    int64 `[windows]`, the prompt that holds for the whole window, or -1.

  Raises:
    ValueError: if times do not ascend from 0 or secs are not above 0.
  """
  starts = np.asarray(starts_secs, np.float64)
  ends = starts if ends_secs is None else np.asarray(ends_secs, np.float64)
  if not (window_secs > 0 and hop_secs > 0):
    raise ValueError(
      f"window_secs={window_secs}, hop_secs={hop_secs}: expected > 0"
    )
  if (
    starts.ndim != 1
    or not starts.size
    or starts[0] != 0
    or (np.diff(starts) <= 0).any()
    or ends.shape != starts.shape
    or (ends < starts).any()
  ):
    raise ValueError(
      f"starts_secs={starts.tolist()}, ends_secs={ends.tolist()}: expected "
      "starts that ascend from 0, and ends not before them"
    )
  begins = np.arange(num_windows) * hop_secs
  # A nanosecond of grace, as times come of sums.
  prompt = np.searchsorted(starts, begins + 1e-9, "right") - 1
  until = np.append(starts[1:], np.inf)[prompt]
  inside = (begins + window_secs <= until + 1e-9) & (
    begins + 1e-9 >= ends[prompt]
  )
  return np.where(inside, prompt, -1)


@dataclasses.dataclass(frozen=True)
class StoryScore:
  """How well windows of one piece fit the prompt that is active in them.

  Attributes:
    active: mean cosine with the active prompt.
    others: mean cosine with the other prompts of the story.
    share_won: windows whose active prompt scores above all others; chance is
      one over the number of prompts.
    by_prompt: mean cosine with the active prompt, by prompt; NaN for one that
      no window holds.
    num_windows: that have an active prompt.
  """

  active: float
  others: float
  share_won: float
  by_prompt: tuple[float, ...]
  num_windows: int

  @property
  def margin(self) -> float:
    """`active` - `others`; this is what counts."""
    return self.active - self.others


def story_score(
  windows: np.ndarray, text_embeddings: np.ndarray, active: np.ndarray
) -> StoryScore:
  """Windowed text score against the active prompt of a story.

  Args:
    windows: float `[windows, dim]`, audio embeddings along the piece.
    text_embeddings: float `[prompts, dim]` of the same space.
    active: int `[windows]` of `active_prompts`.

  Raises:
    ValueError: if shapes do not fit or no window has a prompt.
  """
  windows, texts = np.asarray(windows), np.asarray(text_embeddings)
  active = np.asarray(active)
  if (
    windows.ndim != 2
    or texts.ndim != 2
    or windows.shape[1] != texts.shape[1]
    or active.shape != windows.shape[:1]
    or not (active >= 0).any()
    or active.max() >= len(texts)
  ):
    raise ValueError(
      f"windows {windows.shape}, text_embeddings {texts.shape}, active "
      f"{active.shape}: expected [windows, dim], [prompts, dim] and [windows] "
      "with a prompt in at least one"
    )
  held = active >= 0
  active = active[held]
  cosines = _unit(windows[held]) @ _unit(texts).T
  own = cosines[np.arange(len(active)), active]
  rest = np.ones_like(cosines, bool)
  rest[np.arange(len(active)), active] = False
  others, won = float("nan"), 1.0
  if len(texts) > 1:
    others = float(cosines[rest].mean())
    best = np.where(rest, cosines, -np.inf).max(1)
    won = float((own > best).mean())
  by_prompt = [
    float(own[active == prompt].mean()) if (active == prompt).any() else np.nan
    for prompt in range(len(texts))
  ]
  return StoryScore(
    float(own.mean()), others, won, tuple(by_prompt), len(active)
  )


@dataclasses.dataclass(frozen=True)
class Drift:
  """How a piece moves away from its begin.

  Attributes:
    per_minute: slope of the distance from the begin over time, in cosine
      distance per minute; about 0 for music that stays what it is.
    end: mean distance of the last fifth of windows from the begin.
    start: the same of the first fifth after the begin.
  """

  per_minute: float
  end: float
  start: float


def drift(windows: np.ndarray, window_secs: float, hop_secs: float) -> Drift:
  """Distance of windows from the begin of their piece, over time.

  The begin is the mean of the windows that begin inside the first one. Windows
  that overlap the begin are near it for that reason and are left out.

  Args:
    windows: float `[windows, dim]`, embeddings along the piece.
    window_secs: length of a window.
    hop_secs: between the begins of two.

  Raises:
    ValueError: if fewer than 5 windows lie after the begin.
  """
  begin, rest, times = _after_begin(windows, window_secs, hop_secs)
  distance = 1.0 - rest @ begin
  slope = np.polyfit(times / 60.0, distance, 1)[0]
  fifth = max(1, len(rest) // 5)
  return Drift(
    float(slope),
    float(distance[-fifth:].mean()),
    float(distance[:fifth].mean()),
  )


def level_drift_db(waveform: np.ndarray, sample_rate_hz: float) -> float:
  """Slope of the level along a piece, in dB per minute.

  Music that fades into silence is far below 0.

  Args:
    waveform: float32 `[samples]` in [-1, 1], at least 2 s.
    sample_rate_hz: its rate.

  Raises:
    ValueError: if it is shorter.
  """
  waveform = np.asarray(waveform, np.float64)
  size = round(sample_rate_hz)
  count = len(waveform) // size
  if waveform.ndim != 1 or count < 2:
    raise ValueError(
      f"waveform of shape {waveform.shape} at {sample_rate_hz} Hz: expected "
      "at least 2 s, [samples]"
    )
  blocks = waveform[: count * size].reshape(count, size)
  # Silence is -100 dB here, so that the slope stays finite.
  levels = 10 * np.log10((blocks**2).mean(1) + 1e-10)
  return float(np.polyfit(np.arange(count) / 60.0, levels, 1)[0])


def _after_begin(
  windows: np.ndarray, window_secs: float, hop_secs: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  windows = np.asarray(windows, np.float64)
  if windows.ndim != 2 or not (window_secs > 0 and hop_secs > 0):
    raise ValueError(
      f"windows of shape {windows.shape}, window_secs={window_secs}, "
      f"hop_secs={hop_secs}: expected [windows, dim] and secs > 0"
    )
  times = np.arange(len(windows)) * hop_secs
  early = times < window_secs - 1e-9
  ends = max([0.0, *(times[early] + window_secs)])
  later = times >= ends - 1e-9
  if later.sum() < 5:
    raise ValueError(
      f"{len(windows)} windows of {window_secs} s each {hop_secs} s: expected "
      "5 or more that do not overlap the begin"
    )
  windows = _unit(windows)
  begin = _unit(windows[early].mean(0))
  return begin, windows[later], times[later]


def _unit(vectors: np.ndarray) -> np.ndarray:
  return text_score.unit(np.asarray(vectors, np.float64))
