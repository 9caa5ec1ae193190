# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import os
import sys
import time

import tqdm

# A parent that draws its own display sets this to get plain lines often.
LINE_SECS_VARIABLE = "MUSICLM_PROGRESS_SECS"


def _clock(secs: float) -> str:
  minutes, secs = divmod(int(secs + 0.5), 60)
  return f"{minutes:02d}:{secs:02d}"


class Progress:
  """Counts towards a total, with rate and time left.

  Use as a context manager; call `update` after each piece of work.
  """

  def __init__(
    self, name: str, total: int, initial: int = 0, unit: str = "step"
  ):
    """Starts at `initial` of `total` pieces.

    Args:
      name: what is done, shown first.
      total: pieces in all.
      initial: pieces an earlier run finished.
      unit: word for a piece.
    """
    self._name, self._total, self._unit = name, total, unit
    self._count = self._initial = initial
    self._start = self._last = time.monotonic()
    self._line_secs = float(os.environ.get(LINE_SECS_VARIABLE, "10"))
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=total, initial=initial, desc=name, unit=unit, dynamic_ncols=True
      )

  def update(self, count: int = 1, note: str = "") -> None:
    """Adds `count` finished pieces; `note` is shown behind the figures."""
    self._count += count
    if self._bar is not None:
      if note:
        self._bar.set_postfix_str(note, refresh=False)
      self._bar.update(count)
      return
    now = time.monotonic()
    if now - self._last >= self._line_secs or self._count >= self._total:
      self._last = now
      print(self._line(now, note), flush=True)

  def _line(self, now: float, note: str) -> str:
    elapsed = max(now - self._start, 1e-9)
    rate = (self._count - self._initial) / elapsed
    left = (self._total - self._count) / rate if rate > 0 else 0.0
    percent = 100 * self._count / max(self._total, 1)
    return (
      f"{self._name}: {self._count}/{self._total} {self._unit}s "
      f"({percent:.0f} %), {rate:.2f} {self._unit}s/s, {_clock(left)} left"
      + (f", {note}" if note else "")
    )

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *unused) -> None:
    if self._bar is not None:
      self._bar.close()
