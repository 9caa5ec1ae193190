# SPDX-License-Identifier: Apache-2.0
"""CLAP's spectrogram: waveforms in, log-mel in dB out, all in numpy.

Equal to transformers' `ClapFeatureExtractor` without fusion: power under a
periodic Hann window, frames centred on multiples of the hop, ends mirrored,
Slaney's mel bands of unit area, floor 1e-10.
"""

import dataclasses
import functools

import numpy as np

_FLOOR = 1e-10


@dataclasses.dataclass(frozen=True)
class ClapMelConfig:
  """What spectrogram; the defaults are those of the published models.

  Attributes:
    sample_rate_hz: of the waveforms.
    num_mels: bands.
    frame_length: samples under the window, and DFT length.
    hop_length: samples between frames.
    low_hz: lower edge of the first band.
    high_hz: upper edge of the last.
  """

  sample_rate_hz: int = 48000
  num_mels: int = 64
  frame_length: int = 1024
  hop_length: int = 480
  low_hz: float = 50.0
  high_hz: float = 14000.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and value < 1:
        raise ValueError(f"{field.name}={value}: expected a positive number")
    if not 0 <= self.low_hz < self.high_hz <= self.sample_rate_hz / 2:
      raise ValueError(
        f"low_hz={self.low_hz}, high_hz={self.high_hz}: expected "
        f"0 <= low_hz < high_hz <= {self.sample_rate_hz / 2}"
      )

  def num_frames(self, num_samples: int) -> int:
    """Frames of a waveform."""
    return 1 + num_samples // self.hop_length


@functools.cache
def _weights(config: ClapMelConfig) -> np.ndarray:
  """Weights of the bins in each band, float64 `[bins, num_mels]`."""
  import librosa  # here: it loads numba

  return librosa.filters.mel(
    sr=config.sample_rate_hz,
    n_fft=config.frame_length,
    n_mels=config.num_mels,
    fmin=config.low_hz,
    fmax=config.high_hz,
    norm="slaney",
    dtype=np.float64,
  ).T


def log_mel(waveforms: np.ndarray, config: ClapMelConfig) -> np.ndarray:
  """Log-mel spectrogram in dB.

  Args:
    waveforms: float `[batch, samples]`, more than half a frame.
    config: what spectrogram.

  Returns:
    float32 `[batch, frames, num_mels]`.
  """
  half = config.frame_length // 2
  waveforms = np.pad(
    np.asarray(waveforms, np.float64), ((0, 0), (half, half)), mode="reflect"
  )
  window = np.hanning(config.frame_length + 1)[:-1]
  results = []
  for clip in waveforms:
    frames = np.lib.stride_tricks.sliding_window_view(
      clip, config.frame_length
    )[:: config.hop_length]
    # The original keeps the spectrum in single precision.
    spectrum = np.fft.rfft(frames * window).astype(np.complex64)
    power = np.abs(spectrum).astype(np.float64) ** 2
    mel = np.maximum(_FLOOR, power @ _weights(config))
    results.append((10 * np.log10(mel)).astype(np.float32))
  return np.stack(results)
