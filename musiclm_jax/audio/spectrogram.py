# SPDX-License-Identifier: Apache-2.0
"""Waveforms in, STFT magnitudes and log-mel spectrograms out (float32).

Frame alignment, here and in `chroma.py`: `frames = ceil(samples / hop)`, and
frame t is centred on the middle of hop t, that is on sample
`t * hop + hop / 2`; zeros are assumed outside the waveform. So frame t of a
spectrogram and frame t of a token stream of the same rate see the same audio.
"""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

# Below this length a product with the DFT matrix beats XLA:CPU's FFT, above
# it the FFT wins, forward and backward.
_MATMUL_MAX_FFT = 64


@dataclasses.dataclass(frozen=True)
class LogMelConfig:
  """A log-mel spectrogram.

  Attributes:
    sample_rate_hz: rate of the waveforms.
    num_mels: mel bands.
    frame_length: samples under the (periodic Hann) window.
    hop_length: samples between frames.
    fft_length: DFT length; 0 takes the power of two from `frame_length` up.
    low_hz: lower edge of the first band.
    high_hz: upper edge of the last band; 0 takes half the sample rate.
    floor: smallest mel magnitude, before the logarithm.
  """

  sample_rate_hz: int = 24000
  num_mels: int = 64
  frame_length: int = 1024
  hop_length: int = 240
  fft_length: int = 0
  low_hz: float = 0.0
  high_hz: float = 0.0
  floor: float = 1e-5

  def __post_init__(self):
    if not self.fft_length:
      power = 1 << max(self.frame_length - 1, 1).bit_length()
      object.__setattr__(self, "fft_length", power)
    if not self.high_hz:
      object.__setattr__(self, "high_hz", self.sample_rate_hz / 2)
    for name in ("sample_rate_hz", "num_mels", "frame_length", "hop_length"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected >= 1")
    if self.hop_length > self.frame_length:
      raise ValueError(
        f"hop_length={self.hop_length}: expected at most "
        f"frame_length={self.frame_length}"
      )
    if self.fft_length < self.frame_length:
      raise ValueError(
        f"fft_length={self.fft_length}: expected at least "
        f"frame_length={self.frame_length}"
      )
    if not 0 <= self.low_hz < self.high_hz <= self.sample_rate_hz / 2:
      raise ValueError(
        f"low_hz={self.low_hz}, high_hz={self.high_hz}: expected "
        f"0 <= low_hz < high_hz <= {self.sample_rate_hz / 2}"
      )
    if not self.floor > 0:
      raise ValueError(f"floor={self.floor}: expected > 0")

  @property
  def frame_rate_hz(self) -> float:
    return self.sample_rate_hz / self.hop_length


def num_frames(num_samples: int, hop_length: int) -> int:
  """Frames of a waveform: `ceil(samples / hop)`."""
  return -(-num_samples // hop_length)


def frame(waveform: jax.Array, frame_length: int, hop_length: int) -> jax.Array:
  """Cuts `[..., samples]` into `[..., frames, frame_length]`.

  Shifted slices are concatenated: unlike a gather, their transpose is no
  scatter, which XLA runs serially on CPU.
  """
  samples = waveform.shape[-1]
  frames = num_frames(samples, hop_length)
  num_blocks = -(-frame_length // hop_length)
  left = (frame_length - hop_length) // 2
  right = (frames + num_blocks - 1) * hop_length - samples - left
  padding = [(0, 0)] * (waveform.ndim - 1) + [(left, max(right, 0))]
  padded = jnp.pad(waveform, padding)
  padded = padded[..., : (frames + num_blocks - 1) * hop_length]
  blocks = padded.reshape(*padded.shape[:-1], -1, hop_length)
  shifted = [blocks[..., i : i + frames, :] for i in range(num_blocks)]
  return jnp.concatenate(shifted, axis=-1)[..., :frame_length]


@functools.cache
def _window(frame_length: int) -> np.ndarray:
  """Periodic Hann."""
  phase = 2 * np.pi * np.arange(frame_length) / frame_length
  return (0.5 - 0.5 * np.cos(phase)).astype(np.float32)


@functools.cache
def _dft(frame_length: int, fft_length: int) -> np.ndarray:
  """Windowed real DFT as a matrix `[frame_length, 2 * bins]`."""
  bins = fft_length // 2 + 1
  angle = np.outer(np.arange(frame_length), np.arange(bins))
  angle = 2 * np.pi * angle / fft_length
  matrix = np.concatenate([np.cos(angle), -np.sin(angle)], axis=-1)
  return (matrix * _window(frame_length)[:, None]).astype(np.float32)


def stft(
  waveform: jax.Array,
  frame_length: int,
  hop_length: int,
  fft_length: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Short-time Fourier transform under a periodic Hann window.

  Args:
    waveform: float32 `[..., samples]`.
    frame_length: samples under the window.
    hop_length: samples between frames.
    fft_length: DFT length; `frame_length` by default.

  Returns:
    Real and imaginary part, float32 `[..., frames, fft_length // 2 + 1]`.
  """
  fft_length = fft_length or frame_length
  frames = frame(waveform.astype(jnp.float32), frame_length, hop_length)
  if fft_length <= _MATMUL_MAX_FFT:
    both = jnp.matmul(
      frames, _dft(frame_length, fft_length), precision="highest"
    )
    real, imaginary = jnp.split(both, 2, axis=-1)
    return real, imaginary
  spectrum = jnp.fft.rfft(frames * _window(frame_length), fft_length)
  return spectrum.real, spectrum.imag


def stft_magnitude(
  waveform: jax.Array,
  frame_length: int,
  hop_length: int,
  fft_length: int | None = None,
) -> jax.Array:
  """|STFT|, float32 `[..., frames, bins]`; arguments as `stft`."""
  real, imaginary = stft(waveform, frame_length, hop_length, fft_length)
  # The offset keeps the gradient of the root finite in silence.
  return jnp.sqrt(real**2 + imaginary**2 + 1e-18)


@functools.cache
def mel_filterbank(
  sample_rate_hz: int,
  fft_length: int,
  num_mels: int,
  low_hz: float = 0.0,
  high_hz: float = 0.0,
) -> np.ndarray:
  """Triangles equally spaced on the Slaney mel scale, each of peak 1.

  A band narrower than the spacing of the DFT bins would see next to none of
  them and be silent whatever the sound; it reads the bins around its centre.

  Args:
    sample_rate_hz: rate of the waveforms.
    fft_length: DFT length.
    num_mels: bands.
    low_hz: lower edge of the first band.
    high_hz: upper edge of the last; 0 takes half the sample rate.

  Returns:
    float32 `[fft_length // 2 + 1, num_mels]`.
  """
  import librosa  # here: it loads numba, and many programs need no bands

  high_hz = high_hz or sample_rate_hz / 2
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # empty bands are mended below
    weights = librosa.filters.mel(
      sr=sample_rate_hz,
      n_fft=fft_length,
      n_mels=num_mels,
      fmin=low_hz,
      fmax=high_hz,
      norm=None,
    ).T.copy()
  bins_hz = np.arange(fft_length // 2 + 1) * sample_rate_hz / fft_length
  centre = librosa.mel_frequencies(num_mels + 2, fmin=low_hz, fmax=high_hz)
  centre = centre[1:-1]
  deaf = weights.sum(0) < 0.5
  spacing_hz = sample_rate_hz / fft_length
  around = np.abs(bins_hz[:, None] - centre) / spacing_hz
  weights[:, deaf] = np.maximum(0.0, 1.0 - around)[:, deaf]
  return weights.astype(np.float32)


def mel_magnitude(waveform: jax.Array, config: LogMelConfig) -> jax.Array:
  """Mel-band magnitudes, float32 `[..., frames, mels]`, not compressed."""
  magnitude = stft_magnitude(
    waveform, config.frame_length, config.hop_length, config.fft_length
  )
  filters = mel_filterbank(
    config.sample_rate_hz,
    config.fft_length,
    config.num_mels,
    config.low_hz,
    config.high_hz,
  )
  return jnp.matmul(magnitude, filters, precision="highest")


def log_mel(waveform: jax.Array, config: LogMelConfig) -> jax.Array:
  """Log-mel spectrogram (natural logarithm of magnitudes).

  Args:
    waveform: float32 `[..., samples]` in [-1, 1].
    config: what spectrogram.

  Returns:
    float32 `[..., ceil(samples / hop_length), num_mels]`.
  """
  return jnp.log(jnp.maximum(mel_magnitude(waveform, config), config.floor))


def multi_scale_configs(
  sample_rate_hz: int,
  window_lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048),
  num_mels: int = 64,
) -> tuple[LogMelConfig, ...]:
  """One mel spectrogram per window, hop a quarter of it (SoundStream eq. 4).

  Args:
    sample_rate_hz: rate of the waveforms.
    window_lengths: samples; 2^6 to 2^11 as published.
    num_mels: bands; fewer where a window has fewer DFT bins.
  """
  return tuple(
    LogMelConfig(
      sample_rate_hz=sample_rate_hz,
      num_mels=min(num_mels, length // 2),
      frame_length=length,
      hop_length=length // 4,
      fft_length=length,
    )
    for length in window_lengths
  )
