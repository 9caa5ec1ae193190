# SPDX-License-Identifier: Apache-2.0
"""Conditioning along an item: codes that grow, codes that change in scenes.

A stage reads its conditioning window by window. A `Track` holds codes of a
stream in time of which a part may be made later, or be forgotten already; a
`Scenes` those of a stream without frames that is not the same throughout.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


class Track:
  """Codes of one stream along an item: appended at the end, dropped in front.

  Attributes:
    total_frames: of the whole item, made or not.
    start: first frame that is still held.
  """

  def __init__(self, total_frames: int, codes: np.ndarray | None = None):
    """Starts with `codes`, int32 `[batch, frames, codebooks]`, or empty."""
    self.total_frames = total_frames
    self.start = 0
    self._codes = None if codes is None else np.asarray(codes)

  @property
  def end(self) -> int:
    """One past the last frame made so far."""
    return self.start + (0 if self._codes is None else self._codes.shape[1])

  def append(self, codes: np.ndarray) -> None:
    """Adds int32 `[batch, frames, codebooks]` behind `end`."""
    if self._codes is not None:
      codes = np.concatenate([self._codes, codes], axis=1)
    self._codes = codes

  def take(self, start: int, end: int) -> np.ndarray:
    """Codes of the frames `[start, end)`.

    Raises:
      ValueError: if some of them are not made yet, or dropped.
    """
    if not self.start <= start <= end <= self.end or self._codes is None:
      raise ValueError(
        f"frames [{start}, {end}): expected inside [{self.start}, {self.end})"
      )
    return self._codes[:, start - self.start : end - self.start]

  def drop_before(self, frame: int) -> None:
    """Forgets frames before `frame`, as far as they are made."""
    frame = min(frame, self.end)
    if frame > self.start and self._codes is not None:
      # A copy: a view would keep all codes alive.
      self._codes = self._codes[:, frame - self.start :].copy()
      self.start = frame


@dataclasses.dataclass(frozen=True)
class Scenes:
  """Codes of a stream without frames (MuLan) that change along an item.

  Windows end where a scene ends, and take the codes of the middle of their
  new part: so every new frame is made under the scene it lies in.

  Attributes:
    cuts_secs: where windows must end, ascending, without the begin.
    at: seconds to codes, int32 `[batch, 1, codebooks]`.
  """

  cuts_secs: tuple[float, ...]
  at: Callable[[float], np.ndarray]

  def cut_frames(self, frame_rate_hz: float) -> tuple[int, ...]:
    """`cuts_secs` in frames of a target stream."""
    return tuple(round(secs * frame_rate_hz) for secs in self.cuts_secs)


Conditioning = np.ndarray | Track | Scenes


def as_track(codes: np.ndarray | Track) -> Track:
  """Whole codes `[batch, frames, codebooks]` as a track; tracks as they are."""
  if isinstance(codes, Track):
    return codes
  codes = np.asarray(codes)
  return Track(codes.shape[1], codes)
