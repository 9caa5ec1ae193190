# SPDX-License-Identifier: Apache-2.0
"""Levels in dB of waveforms whose level is known."""

import numpy as np

from musiclm_jax.audio import loudness


def test_levels():
  square = np.tile([0.5, -0.5], 100)
  np.testing.assert_allclose(loudness.rms_db(square), -6.0206, atol=1e-3)
  sine = np.sin(2 * np.pi * np.arange(1000) / 100)
  np.testing.assert_allclose(loudness.rms_db(sine), -3.0103, atol=1e-3)
  np.testing.assert_allclose(loudness.peak_db(2 * square), 0.0, atol=1e-6)
  assert loudness.rms_db(np.stack([square, square])).shape == (2,)


def test_silence():
  assert loudness.rms_db(np.zeros(10)) == loudness.SILENCE_DB
  assert loudness.is_silent(np.zeros((2, 10)))
  assert not loudness.is_silent(np.full(10, 0.1))
  np.testing.assert_array_equal(loudness.normalize_peak(np.zeros(4)), 0.0)


def test_normalize_peak():
  out = loudness.normalize_peak(np.array([0.1, -0.2]), 0.8)
  np.testing.assert_allclose(out, [0.4, -0.8], rtol=1e-6)
