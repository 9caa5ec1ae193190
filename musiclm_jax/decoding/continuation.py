# SPDX-License-Identifier: Apache-2.0
"""Window plans: how a stage makes more audio than one training crop.

Frame counts in, windows out. All windows of a plan have the same length, so
that few shapes are compiled; a window that would stick out, at the end or
where a scene ends, is moved left and keeps more of what is already there.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Window:
  """One window over the frames of a target.

  Attributes:
    start: first frame.
    end: one past the last frame.
    num_known: leading frames that an earlier window made.
    kept_end: one past the last frame that stays, `end` by default; what
      follows belongs to the next scene and is made again.
  """

  start: int
  end: int
  num_known: int
  kept_end: int = -1

  def __post_init__(self):
    if self.kept_end < 0:
      object.__setattr__(self, "kept_end", self.end)

  @property
  def num_frames(self) -> int:
    """Frames the window covers."""
    return self.end - self.start

  @property
  def new_start(self) -> int:
    """First frame that the window adds to what is known."""
    return self.start + self.num_known

  @property
  def num_new(self) -> int:
    """Frames that it adds."""
    return self.kept_end - self.new_start


def plan_windows(
  total_frames: int,
  window_frames: int,
  prefix_frames: int,
  given_frames: int = 0,
  cuts: Sequence[int] = (),
) -> tuple[Window, ...]:
  """Windows that cover `total_frames` (MusicLM sec. 5.3: half overlap).

  Args:
    total_frames: frames wanted.
    window_frames: frames of a full window.
    prefix_frames: frames each window shares with the one before; 0: none.
    given_frames: leading frames that are known from the start.
    cuts: frames at which a window must end, ascending: what comes after is
      made by another window, under other conditioning.

  Returns:
    Windows that make all frames after the given ones; none if all are given.
    The first knows what is given of it, the others know `prefix_frames`, or
    more where a window was moved left.

  Raises:
    ValueError: if a count is out of range.
  """
  if total_frames < 1 or given_frames < 0:
    raise ValueError(
      f"total_frames={total_frames}, given_frames={given_frames}: expected a "
      "positive number, and one that is not negative"
    )
  if not 0 <= prefix_frames < window_frames:
    raise ValueError(
      f"prefix_frames={prefix_frames}: expected in [0, window_frames="
      f"{window_frames})"
    )
  length = min(window_frames, total_frames)
  windows, done = [], given_frames
  while done < total_frames:
    limit = min([cut for cut in cuts if cut > done] + [total_frames])
    # Windows that share nothing lie side by side from the begin of the item.
    start = done - prefix_frames if prefix_frames else done // length * length
    start = max(0, min(start, limit - length))
    end = start + length
    windows.append(Window(start, end, done - start, min(end, limit)))
    done = windows[-1].kept_end
  return tuple(windows)


def stream_span(
  start_secs: float, num_frames: int, frame_rate_hz: float, available: int
) -> slice:
  """Frames of another stream that go with a window.

  Args:
    start_secs: start of the window.
    num_frames: frames of that stream in a window.
    frame_rate_hz: of that stream; 0: one frame for the whole clip.
    available: frames of that stream in all.

  Returns:
    A slice of exactly `num_frames` frames (1 for a rate of 0).

  Raises:
    ValueError: if there are fewer frames than a window needs.
  """
  if frame_rate_hz == 0:
    return slice(0, 1)
  if available < num_frames:
    raise ValueError(f"{available} frames: expected at least {num_frames}")
  start = min(round(start_secs * frame_rate_hz), available - num_frames)
  return slice(start, start + num_frames)


def run_windows(
  windows: Sequence[Window],
  make: Callable[[Window, np.ndarray | None], np.ndarray],
  given: np.ndarray | None = None,
) -> np.ndarray:
  """Runs windows in order, each on what the ones before made.

  Args:
    windows: a plan with overlap.
    make: `(window, known) -> new frames`; `known` holds the window's leading
      `num_known` frames `[batch, frames, levels]`, None where there are none.
    given: `[batch, frames, levels]`, the given frames of the plan.

  Returns:
    Codes of all frames, `[batch, frames, levels]`.
  """
  codes = given
  for window in windows:
    known = codes[:, window.start :] if window.num_known else None
    new = make(window, known)
    codes = new if codes is None else np.concatenate([codes, new], axis=1)
  return codes


def join_windows(
  windows: Sequence[Window],
  parts: Sequence[np.ndarray],
  given: np.ndarray | None = None,
) -> np.ndarray:
  """Joins windows made independently: each gives its unknown frames only.

  Args:
    windows: the plan.
    parts: whole windows `[batch, frames, levels]`, one per plan entry.
    given: as in `run_windows`.

  Returns:
    Codes of all frames, `[batch, frames, levels]`.
  """
  known = [] if given is None else [given]
  new = [part[:, window.num_known :] for window, part in zip(windows, parts)]
  return np.concatenate(known + new, axis=1)
