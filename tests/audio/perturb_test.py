# SPDX-License-Identifier: Apache-2.0
"""Changes to recordings: what stays and what does not."""

import dataclasses

import numpy as np
import pytest

from musiclm_jax.audio import perturb

RATE_HZ = 8000


def _tone(hz, secs=1.0):
  return (0.3 * np.sin(2 * np.pi * hz * np.arange(RATE_HZ * secs) / RATE_HZ)
  ).astype(np.float32)  # fmt: skip


def _peak_hz(waveform):
  spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
  return spectrum.argmax() * RATE_HZ / len(waveform)


def test_excerpts_are_the_samples_they_name():
  ramp = np.arange(100, dtype=np.float32)
  np.testing.assert_array_equal(perturb.excerpt(ramp, 7, 5), [7, 8, 9, 10, 11])
  np.testing.assert_array_equal(perturb.excerpt(ramp, -2, 4), [0, 0, 0, 1])
  np.testing.assert_array_equal(perturb.excerpt(ramp, 98, 4), [98, 99, 0, 0])
  np.testing.assert_array_equal(perturb.excerpt(ramp, 200, 3), [0, 0, 0])
  np.testing.assert_allclose(
    perturb.excerpt(ramp, 10.5, 4, 1.5), [10.5, 12, 13.5, 15]
  )
  np.testing.assert_array_equal(perturb.excerpt(ramp, 500, 3, 1.5), [0, 0, 0])


def test_speed_raises_pitch():
  faster = perturb.excerpt(_tone(400), 0, 4000, 1.25)
  assert abs(_peak_hz(faster) - 500) < 3


def test_noise_has_its_level():
  tone = _tone(400)
  noisy = perturb.add_noise(tone, 10.0, np.random.default_rng(0))
  ratio = np.mean(tone**2) / np.mean((noisy - tone) ** 2)
  assert abs(10 * np.log10(ratio) - 10) < 0.3


def test_rooms_die_away():
  response = perturb.room(RATE_HZ, 0.5, np.random.default_rng(0))
  assert len(response) == 4000 and response[0] == 1
  energy = response**2
  assert abs(energy[1:].sum() - 1) < 1e-3
  assert energy[3000:].sum() < 1e-3 * energy[1:1000].sum()


def test_bands_stop_what_lies_outside():
  gains = perturb.band(RATE_HZ, 8000, 300, 2000)
  assert gains.shape == (4001,)
  assert gains[800] > 0.95 and gains[75] < 0.05 and gains[4000] < 0.1


def test_perturbed_recordings_keep_pitch_and_range_and_repeat():
  config = dataclasses.replace(
    perturb.PerturbConfig(),
    noise_probability=1.0,
    reverb_probability=1.0,
    band_probability=1.0,
  )
  tone, found = _tone(500), []
  for seed in range(4):
    changed, again = (
      perturb.perturb(tone, RATE_HZ, config, np.random.default_rng(seed))
      for _ in range(2)
    )
    np.testing.assert_array_equal(changed, again)
    assert changed.dtype == np.float32 and np.abs(changed).max() <= 1
    assert abs(_peak_hz(changed) - 500) < 2
    found.append(changed)
  assert np.abs(found[0] - found[1]).max() > 0.01
  nothing = perturb.PerturbConfig(
    noise_probability=0, reverb_probability=0, band_probability=0, gain_db=0
  )
  np.testing.assert_array_equal(
    perturb.perturb(tone, RATE_HZ, nothing, np.random.default_rng(0)), tone
  )


def test_bad_config_names_field():
  with pytest.raises(ValueError, match="min_snr_db=40"):
    perturb.PerturbConfig(min_snr_db=40)
  with pytest.raises(ValueError, match="jitter_secs=-1"):
    perturb.PerturbConfig(jitter_secs=-1)
