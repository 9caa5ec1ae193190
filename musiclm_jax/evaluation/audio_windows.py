# SPDX-License-Identifier: Apache-2.0
"""Waveforms of any rate in, windows of the rate a network listens at out.

What every embedder does before its network, in one place, so that resampler,
level and padding are the same and can be written beside a number.
"""

import dataclasses
from typing import Any

import numpy as np

from musiclm_jax.core import errors
from musiclm_jax.systems import embedders

SHORT_AUDIO = ("repeat", "repeatpad", "zeros")
TAILS = ("drop", "zeros")
GAINS = ("none", "peak")
# The least peak that 'peak' divides by, so that silence stays silent.
_LEAST_PEAK = 0.1


@dataclasses.dataclass(frozen=True)
class WindowConfig:
  """How waveforms are brought into windows.

  Attributes:
    sample_rate_hz: of the windows; resampled by soxr HQ.
    window_samples: of a window.
    hop_samples: between the starts of two.
    short_audio: what fills audio shorter than a window: itself again, the last
      time cut ('repeat'); itself again as often as it is whole, then zeros
      ('repeatpad'); or 'zeros'.
    tail: what becomes of samples behind the last whole window: they are
      dropped ('drop'), or zeros are put behind them to make a window more.
    gain: 'peak' divides a clip by max(0.1, its greatest sample), as the
      reference code of FAD does (its greatest, not its greatest absolute
      one); 'none' leaves the level.
  """

  sample_rate_hz: int
  window_samples: int
  hop_samples: int
  short_audio: str = "repeat"
  tail: str = "drop"
  gain: str = "none"

  def __post_init__(self):
    for name in ("sample_rate_hz", "window_samples", "hop_samples"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name}={getattr(self, name)}: expected a positive number"
        )
    for name, choices in (
      ("short_audio", SHORT_AUDIO),
      ("tail", TAILS),
      ("gain", GAINS),
    ):
      if getattr(self, name) not in choices:
        raise ValueError(
          f"{name}={getattr(self, name)!r}: expected one of {choices}"
        )

  @classmethod
  def of_secs(
    cls, sample_rate_hz: int, window_secs: float, hop_secs: float, **rest: str
  ) -> "WindowConfig":
    """The same with lengths in seconds, rounded to samples.

    Raises:
      ValueError: if a length is not a positive number.
    """
    for name, value in (("window_secs", window_secs), ("hop_secs", hop_secs)):
      if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value}: expected a positive number")
    return cls(
      sample_rate_hz,
      round(window_secs * sample_rate_hz),
      round(hop_secs * sample_rate_hz),
      **rest,
    )

  @property
  def window_secs(self) -> float:
    return self.window_samples / self.sample_rate_hz

  @property
  def hop_secs(self) -> float:
    return self.hop_samples / self.sample_rate_hz

  def settings(self) -> dict[str, Any]:
    """What a metric card states of it."""
    return {
      "sample_rate_hz": self.sample_rate_hz,
      "window_secs": self.window_secs,
      "hop_secs": self.hop_secs,
      "resampler": "soxr HQ",
      "gain": self.gain,
      "short_audio": self.short_audio,
      "tail": self.tail,
    }

  def prepare(self, waveforms: np.ndarray, sample_rate_hz: float) -> np.ndarray:
    """Checks, resamples and levels whole waveforms.

    Args:
      waveforms: float `[batch, samples]` in [-1, 1].
      sample_rate_hz: their rate.

    Returns:
      float32 `[batch, samples]` at the rate of the windows, at least one
      sample.

    Raises:
      ValueError: if shape or rate is another.
      UserError: if a sample is NaN or infinite, or nothing is left at this
        rate.
    """
    if not (np.isfinite(sample_rate_hz) and sample_rate_hz > 0):
      raise ValueError(f"sample_rate_hz={sample_rate_hz}: expected > 0")
    waveforms = embedders.check_waveform(waveforms)
    count = waveforms.shape[1]
    if round(count * self.sample_rate_hz / sample_rate_hz) < 1:
      raise errors.UserError(
        f"audio of {count} samples at {sample_rate_hz:g} Hz: expected at least "
        f"one at {self.sample_rate_hz} Hz"
      )
    waveforms = embedders.resample(
      waveforms, sample_rate_hz, self.sample_rate_hz
    )
    if self.gain == "peak":
      peak = waveforms.max(1, keepdims=True)
      waveforms = waveforms / np.maximum(peak, np.float32(_LEAST_PEAK))
    return waveforms

  def fill(self, waveforms: np.ndarray) -> np.ndarray:
    """Prepared waveforms, long enough that `cut` gives every window."""
    count = waveforms.shape[1]
    if count < self.window_samples:
      repeats = {
        "repeat": -(-self.window_samples // count),
        "repeatpad": self.window_samples // count,
        "zeros": 1,
      }[self.short_audio]
      waveforms = np.tile(waveforms, (1, repeats))[:, : self.window_samples]
      return embedders.pad_axis(waveforms, self.window_samples)
    if self.tail == "zeros":
      more = -(-(count - self.window_samples) // self.hop_samples)
      length = self.window_samples + more * self.hop_samples
      return embedders.pad_axis(waveforms, length)
    return waveforms

  def cut(self, waveforms: np.ndarray, sample_rate_hz: float) -> np.ndarray:
    """Windows of each waveform; arguments and errors as `prepare`.

    Returns:
      float32 `[batch, windows, window_samples]`, at least one window; a view
      that must not be written to.
    """
    filled = self.fill(self.prepare(waveforms, sample_rate_hz))
    return embedders.cut_windows(filled, self.window_samples, self.hop_samples)
