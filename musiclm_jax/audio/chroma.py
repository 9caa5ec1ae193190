# SPDX-License-Identifier: Apache-2.0
"""Waveforms in, 12-bin chroma (pitch-class energy) out, float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.audio import spectrogram

_MIN_HZ = 55.0
_MAX_HZ = 4000.0


@functools.cache
def chroma_filterbank(sample_rate_hz: int, fft_length: int) -> np.ndarray:
  """Share of every DFT bin in each pitch class.

  A bin counts for the pitch classes near its frequency, with a Gaussian of
  half a semitone; bins outside 55 to 4000 Hz count for none.

  Args:
    sample_rate_hz: rate of the waveforms.
    fft_length: DFT length.

  Returns:
    float32 `[fft_length // 2 + 1, 12]`, class 0 = C, A4 = 440 Hz.
  """
  bins_hz = np.arange(fft_length // 2 + 1) * sample_rate_hz / fft_length
  midi = 69.0 + 12.0 * np.log2(np.maximum(bins_hz, 1.0) / 440.0)
  offset = (midi[:, None] - np.arange(12) + 6.0) % 12.0 - 6.0
  weights = np.exp(-0.5 * (offset / 0.5) ** 2)
  weights[(bins_hz < _MIN_HZ) | (bins_hz > _MAX_HZ)] = 0.0
  return weights.astype(np.float32)


def chroma(
  waveform: jax.Array,
  sample_rate_hz: int,
  frame_length: int = 4096,
  hop_length: int = 960,
) -> jax.Array:
  """Pitch-class profile per frame, the largest class at 1.

  Args:
    waveform: float32 `[..., samples]`.
    sample_rate_hz: its rate.
    frame_length: samples under the window; long, to part low notes.
    hop_length: samples between frames.

  Returns:
    float32 `[..., ceil(samples / hop_length), 12]` in [0, 1]; 0 in silence.
  """
  magnitude = spectrogram.stft_magnitude(waveform, frame_length, hop_length)
  filters = chroma_filterbank(sample_rate_hz, frame_length)
  energy = jnp.matmul(magnitude**2, filters, precision="highest")
  peak = energy.max(axis=-1, keepdims=True)
  # Relative to the window: below this a frame is silent, not quiet.
  silence = 1e-8 * frame_length
  return jnp.where(peak > silence, energy / jnp.maximum(peak, silence), 0.0)
