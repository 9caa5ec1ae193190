# SPDX-License-Identifier: Apache-2.0
"""Levels in dB of waveforms whose level is known."""

import numpy as np
import pytest

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
  np.testing.assert_array_equal(loudness.normalize_peak(np.zeros(4)), 0.0)


def test_normalize_peak():
  out = loudness.normalize_peak(np.array([0.1, -0.2]), 0.8)
  np.testing.assert_allclose(out, [0.4, -0.8], rtol=1e-6)


def test_k_weighting_is_that_of_the_standard():
  # ITU-R BS.1770-4, tables 1 and 2, for 48 kHz.
  above, below = loudness.k_weighting(48000)
  shelf = [1.53512485958697, -2.69169618940638, 1.19839281085285]
  np.testing.assert_allclose(above[0], shelf, atol=1e-8)
  feedback = [1.0, -1.69065929318241, 0.73248077421585]
  np.testing.assert_allclose(below[0], feedback, atol=1e-8)
  np.testing.assert_allclose(above[1], [1.0, -2.0, 1.0])
  feedback = [1.0, -1.99004745483398, 0.99007225036621]
  np.testing.assert_allclose(below[1], feedback, atol=1e-8)


@pytest.mark.parametrize("rate_hz", [8000, 24000, 48000])
def test_integrated_loudness(rate_hz):
  # The standard's own check: a full-scale sine of 997 Hz has -3.01 LUFS.
  time = np.arange(3 * rate_hz) / rate_hz
  sine = np.sin(2 * np.pi * 997 * time)
  level = loudness.integrated_lufs(sine, rate_hz)
  np.testing.assert_allclose(level, -3.01, atol=0.05)
  both = loudness.integrated_lufs(np.stack([sine, sine], -1), rate_hz)
  np.testing.assert_allclose(both, level + 3.01, atol=0.01)
  quiet = loudness.integrated_lufs(0.1 * sine, rate_hz)
  np.testing.assert_allclose(quiet, level - 20.0, atol=1e-6)
  # Pauses are gated out, and blocks that reach into one count little.
  pause = np.concatenate([sine, np.zeros(20 * rate_hz)])
  np.testing.assert_allclose(
    loudness.integrated_lufs(pause, rate_hz), level, atol=0.5
  )
  assert loudness.integrated_lufs(np.zeros(rate_hz), rate_hz) == -np.inf
  # Shorter than a block.
  part = loudness.integrated_lufs(sine[: rate_hz // 5], rate_hz)
  np.testing.assert_allclose(part, level, atol=0.3)


def test_loudness_refuses_what_it_cannot_weigh():
  with pytest.raises(ValueError, match="sample_rate_hz=2000"):
    loudness.integrated_lufs(np.ones(100), 2000)
  with pytest.raises(ValueError, match="expected .samples."):
    loudness.integrated_lufs(np.ones((100, 3)), 8000)
