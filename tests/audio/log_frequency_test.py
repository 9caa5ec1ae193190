# SPDX-License-Identifier: Apache-2.0
"""Bands of equal musical width."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from musiclm_jax.audio import log_frequency, spectrogram

CONFIG = spectrogram.LogMelConfig(
  sample_rate_hz=8000,
  num_mels=121,
  frame_length=1024,
  fft_length=2048,
  hop_length=256,
  low_hz=65.4,
  high_hz=65.4 * 32,
)


def test_a_semitone_is_two_bands_anywhere():
  peaks = []
  for semitone in range(24, 56):
    hz = 65.4 * 2 ** (semitone / 12)
    tone = jnp.sin(2 * jnp.pi * hz * jnp.arange(8000) / 8000)
    bands = log_frequency.log_bands(tone, CONFIG)
    assert bands.shape == (32, 121)
    peaks.append(int(bands[16].argmax()))
  np.testing.assert_array_equal(peaks, np.arange(48, 112, 2))


def test_no_band_is_deaf():
  filters = log_frequency.filterbank(8000, 1024, 132, 40.0, 3000.0)
  assert filters.shape == (513, 132)
  assert filters.max(0).min() > 0.4


def test_silence_is_the_floor():
  config = dataclasses.replace(CONFIG, floor=1e-3)
  bands = log_frequency.log_bands(jnp.zeros(1000), config)
  np.testing.assert_allclose(bands, np.log(1e-3), rtol=1e-6)
