# SPDX-License-Identifier: Apache-2.0
"""Waveforms in, log-magnitudes in bands of equal musical width out, float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.audio import spectrogram


@functools.cache
def filterbank(
  sample_rate_hz: int,
  fft_length: int,
  num_bands: int,
  low_hz: float,
  high_hz: float,
) -> np.ndarray:
  """Triangles equally spaced on the scale of musical pitch, each of peak 1.

  Bands narrower than the spacing of the DFT bins read between the bins around
  their centre, so that no band is deaf.

  Args:
    sample_rate_hz: rate of the waveforms.
    fft_length: DFT length.
    num_bands: bands.
    low_hz: centre of the first band, above 0.
    high_hz: centre of the last.

  Returns:
    float32 `[fft_length // 2 + 1, num_bands]`.
  """
  spacing_hz = sample_rate_hz / fft_length
  bins_hz = np.arange(fft_length // 2 + 1) * spacing_hz
  ratio = (high_hz / low_hz) ** (1 / max(num_bands - 1, 1))
  centres = low_hz * ratio ** np.arange(num_bands)
  below = np.maximum(centres - centres / ratio, spacing_hz)
  above = np.maximum(centres * ratio - centres, spacing_hz)
  offset = bins_hz[:, None] - centres
  width = np.where(offset < 0, below, above)
  return np.maximum(1.0 - np.abs(offset) / width, 0.0).astype(np.float32)


def log_bands(
  waveform: jax.Array, config: spectrogram.LogMelConfig
) -> jax.Array:
  """As `spectrogram.log_mel`, with bands as far apart as notes are.

  Args:
    waveform: float32 `[..., samples]` in [-1, 1].
    config: of the spectrogram; `num_mels` counts the bands, and `low_hz` must
      be above 0.

  Returns:
    float32 `[..., ceil(samples / hop_length), num_mels]`.
  """
  magnitude = spectrogram.stft_magnitude(
    waveform, config.frame_length, config.hop_length, config.fft_length
  )
  filters = filterbank(
    config.sample_rate_hz,
    config.fft_length,
    config.num_mels,
    config.low_hz,
    config.high_hz,
  )
  bands = jnp.matmul(magnitude, filters, precision="highest")
  return jnp.log(jnp.maximum(bands, config.floor))
