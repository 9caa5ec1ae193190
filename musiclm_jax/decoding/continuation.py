# SPDX-License-Identifier: Apache-2.0
"""Window plans: how a stage makes more audio than one training crop.

Frame counts in, windows out. All windows of a plan have the same length, so
that few shapes are compiled; a last window that would stick out is moved left
and keeps more of what is already there.
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
  """

  start: int
  end: int
  num_known: int

  @property
  def num_frames(self) -> int:
    """Frames the window covers."""
    return self.end - self.start


def plan_windows(
  total_frames: int, window_frames: int, prefix_frames: int
) -> tuple[Window, ...]:
  """Windows that cover `total_frames` (MusicLM sec. 5.3: half overlap).

  Args:
    total_frames: frames wanted.
    window_frames: frames of a full window.
    prefix_frames: frames each window shares with the one before; 0: none.

  Returns:
    At least one window. The first knows nothing, the others know
    `prefix_frames`, the last perhaps more.

  Raises:
    ValueError: if a count is out of range.
  """
  if total_frames < 1:
    raise ValueError(f"total_frames={total_frames}: expected a positive number")
  if not 0 <= prefix_frames < window_frames:
    raise ValueError(
      f"prefix_frames={prefix_frames}: expected in [0, window_frames="
      f"{window_frames})"
    )
  if total_frames <= window_frames:
    return (Window(0, total_frames, 0),)
  windows = [Window(0, window_frames, 0)]
  while windows[-1].end < total_frames:
    done = windows[-1].end
    end = min(done - prefix_frames + window_frames, total_frames)
    start = end - window_frames
    windows.append(Window(start, end, done - start))
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
) -> np.ndarray:
  """Runs windows in order, each on what the ones before made.

  Args:
    windows: a plan with overlap.
    make: `(window, known) -> new frames`; `known` holds the window's leading
      `num_known` frames `[batch, frames, levels]`, None where there are none.

  Returns:
    Codes of all frames, `[batch, frames, levels]`.
  """
  codes = None
  for window in windows:
    known = codes[:, window.start :] if window.num_known else None
    new = make(window, known)
    codes = new if codes is None else np.concatenate([codes, new], axis=1)
  return codes


def join_windows(
  windows: Sequence[Window], parts: Sequence[np.ndarray]
) -> np.ndarray:
  """Joins windows made independently: each gives its unknown frames only.

  Args:
    windows: the plan.
    parts: whole windows `[batch, frames, levels]`, one per plan entry.

  Returns:
    Codes of all frames, `[batch, frames, levels]`.
  """
  return np.concatenate(
    [part[:, window.num_known :] for window, part in zip(windows, parts)],
    axis=1,
  )
