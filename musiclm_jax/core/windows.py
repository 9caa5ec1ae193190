# SPDX-License-Identifier: Apache-2.0
"""Long rows of frames cut into overlapping windows, and joined again.

A number of frames flows in; windows on a fixed grid flow out, each with the
frames whose results count. A window's place depends on the grid alone, never
on where the audio ends, so a frame is computed from the same audio whatever
else belongs to the file.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
  """Frames `[start, end)`, of which `[keep_start, keep_end)` count."""

  start: int
  end: int
  keep_start: int
  keep_end: int


@dataclasses.dataclass(frozen=True)
class WindowConfig:
  """Window k covers frames `[k * stride, k * stride + length)`.

  Attributes:
    length: frames of a window.
    left: frames at its start that are context only, except in the first.
    right: frames at its end that are context only, except in the last.
    buckets: lengths that shorter windows are filled up to, ascending; the
      longest is `length`. Few, for each is a compiled program.
  """

  length: int
  left: int = 0
  right: int = 0
  buckets: tuple[int, ...] = ()

  def __post_init__(self):
    object.__setattr__(self, "buckets", tuple(self.buckets) or (self.length,))
    if min(self.left, self.right) < 0 or self.stride < 1:
      raise ValueError(
        f"length={self.length}, left={self.left}, right={self.right}: expected "
        "a window longer than its context"
      )
    if list(self.buckets) != sorted(set(self.buckets)) or (
      self.buckets[0] < 1 or self.buckets[-1] != self.length
    ):
      raise ValueError(
        f"buckets={self.buckets}: expected ascending lengths up to "
        f"{self.length}"
      )

  @property
  def stride(self) -> int:
    """Frames between the starts of two windows: the grid."""
    return self.length - self.left - self.right

  def plan(self, num_frames: int) -> list[Window]:
    """Windows that together keep every one of `num_frames` frames once."""
    windows = []
    for start in range(0, max(num_frames, 1), self.stride):
      is_last = start + self.length >= num_frames
      end = num_frames if is_last else start + self.length
      windows.append(
        Window(
          start,
          end,
          start + self.left if start else 0,
          end if is_last else end - self.right,
        )
      )
      if is_last:
        break
    return windows

  def bucket(self, num_frames: int) -> int:
    """The smallest bucket that holds `num_frames`."""
    return next(size for size in self.buckets if size >= num_frames)


def join(
  windows: Sequence[Window], results: Sequence[np.ndarray]
) -> np.ndarray:
  """Kept frames of all windows, `[num_frames, ...]`.

  Args:
    windows: of `plan`.
    results: by window `[frames, ...]`, its first frame that of the window;
      frames behind the window's end (filling) are ignored.
  """
  return np.concatenate(
    [
      result[window.keep_start - window.start : window.keep_end - window.start]
      for window, result in zip(windows, results)
    ]
  )
