# SPDX-License-Identifier: Apache-2.0
"""The yardstick spectrum: waveforms in, natural-log mel spectra out.

Kept apart from the training front ends on purpose: a distance reported over
months must not move when a network's input features do.
"""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class LogMelConfig:
  """Definition of the spectrum.

  Attributes:
    sample_rate_hz: of the waveform.
    window_secs: length of the periodic Hann window.
    hop_secs: distance of window starts; no padding at the ends.
    num_mels: triangular filters, equally spaced on the mel scale
      `2595 log10(1 + f / 700)` from 0 Hz to half the sample rate, each with
      peak 1 (not normalised by area).
    floor: mel magnitudes below it are raised to it before the logarithm, so
      that digital silence has a finite value. Magnitudes are scaled so that a
      full-scale sine has a spectral peak of 1: 1e-4 is 80 dB below it.
  """

  sample_rate_hz: int = 16000
  window_secs: float = 0.064
  hop_secs: float = 0.016
  num_mels: int = 64
  floor: float = 1e-4

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if not getattr(self, field.name) > 0:
        raise ValueError(
          f"{field.name}={getattr(self, field.name)}: expected > 0"
        )

  @property
  def window_samples(self) -> int:
    """Window length in samples."""
    return round(self.window_secs * self.sample_rate_hz)

  @property
  def hop_samples(self) -> int:
    """Hop in samples, at least 1."""
    return max(1, round(self.hop_secs * self.sample_rate_hz))

  def describe(self) -> str:
    """The definition in words, for reports."""
    return (
      "mean absolute difference of natural-log mel magnitude spectra "
      f"({self.num_mels} mels from 0 to {self.sample_rate_hz // 2} Hz, "
      f"Hann window {1000 * self.window_secs:g} ms, hop "
      f"{1000 * self.hop_secs:g} ms, floor {self.floor:g})"
    )


def mel_centres_hz(config: LogMelConfig) -> np.ndarray:
  """Edges and centres of the filters in Hz, float64 `[num_mels + 2]`."""
  top = 2595.0 * np.log10(1.0 + config.sample_rate_hz / 2 / 700.0)
  mels = np.linspace(0.0, top, config.num_mels + 2)
  return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)


@functools.lru_cache(maxsize=8)
def _filters(config: LogMelConfig) -> np.ndarray:
  """Triangular filters, float32 `[bins, num_mels]`."""
  bins_hz = np.fft.rfftfreq(config.window_samples, 1 / config.sample_rate_hz)
  points = mel_centres_hz(config)
  low, centre, high = points[:-2], points[1:-1], points[2:]
  rising = (bins_hz[:, None] - low) / (centre - low)
  falling = (high - bins_hz[:, None]) / (high - centre)
  return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def magnitudes(
  waveform: np.ndarray, window_samples: int, hop_samples: int
) -> np.ndarray:
  """|STFT| under a periodic Hann window; a full-scale sine's peak is 1.

  Args:
    waveform: float `[..., samples]`; shorter than a window is padded with
      zeros to one window.
    window_samples: length of the window.
    hop_samples: distance of window starts.

  Returns:
    float32 `[..., frames, bins]`.
  """
  waveform = np.asarray(waveform, np.float32)
  size = window_samples
  short = max(0, size - waveform.shape[-1])
  waveform = np.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(0, short)])
  frames = np.lib.stride_tricks.sliding_window_view(waveform, size, axis=-1)
  frames = frames[..., ::hop_samples, :]
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
  window = (2.0 * window / window.sum()).astype(np.float32)
  return np.abs(np.fft.rfft(frames * window, axis=-1)).astype(np.float32)


def log_mel(
  waveform: np.ndarray, config: LogMelConfig | None = None
) -> np.ndarray:
  """Natural logarithm of mel magnitudes.

  Args:
    waveform: float `[..., samples]` in [-1, 1]; shorter than a window is
      padded with zeros to one window.
    config: definition of the spectrum.

  Returns:
    float32 `[..., frames, num_mels]`.
  """
  config = config or LogMelConfig()
  magnitude = magnitudes(waveform, config.window_samples, config.hop_samples)
  return np.log(np.maximum(magnitude @ _filters(config), config.floor))
