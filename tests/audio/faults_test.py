# SPDX-License-Identifier: Apache-2.0
"""Faults put into audio: as strong as they say, of one length, repeatable."""

import math

import numpy as np
import pytest
import tunes

from musiclm_jax.audio import faults

RATE_HZ = 16000
SECS = 3.0


@pytest.fixture(name="tune", scope="module")
def _tune():
  return tunes.tune(0, SECS, RATE_HZ)


def put(kind, level, waveform, seed=0):
  generator = np.random.default_rng(seed)
  return faults.apply(kind, level, waveform, RATE_HZ, generator)


ALL = [(kind, level) for kind, row in faults.LEVELS.items() for level in row]


@pytest.mark.parametrize("kind, level", ALL)
def test_every_fault_keeps_the_length_and_is_repeatable(kind, level, tune):
  changed = put(kind, level, tune)
  assert changed.shape == tune.shape and changed.dtype == np.float32
  assert np.abs(changed).max() <= 1 and np.isfinite(changed).all()
  assert np.abs(changed - tune).max() > 1e-3
  np.testing.assert_array_equal(put(kind, level, tune), changed)


def test_labels_are_unique():
  assert len({faults.label(*one) for one in ALL}) == len(ALL)


@pytest.mark.parametrize("snr_db", [20.0, 0.0])
def test_noise_is_so_many_db_below(snr_db, tune):
  tune = 0.3 * tune  # far from the limits
  noise = put("noise", snr_db, tune) - tune
  level = 10 * np.log10((tune**2).mean() / (noise**2).mean())
  assert level == pytest.approx(snr_db, abs=0.2)


def test_noise_alone_is_as_loud_and_nothing_of_the_music(tune):
  alone = put("noise", -math.inf, tune)
  assert (alone**2).mean() == pytest.approx((tune**2).mean(), rel=0.05)
  assert abs(np.corrcoef(alone, tune)[0, 1]) < 0.02


def test_low_pass_leaves_what_is_below():
  time = np.arange(RATE_HZ) / RATE_HZ
  low, high = (0.3 * np.sin(2 * np.pi * hz * time) for hz in (250, 4000))
  np.testing.assert_allclose(put("low-pass", 1000, low + high), low, atol=0.01)


def test_slower_keeps_the_pitch_and_moves_the_beats():
  time = np.arange(2 * RATE_HZ) / RATE_HZ
  pulses = np.exp(-30 * (time % 0.5)) * np.sin(2 * np.pi * 440 * time)
  slow = put("slower", 1.6, pulses.astype(np.float32))
  spectrum = np.abs(np.fft.rfft(slow))
  peak_hz = spectrum.argmax() / 2
  assert peak_hz == pytest.approx(440, abs=4)
  # Beats 0.5 s apart are now 0.8 s apart.
  level = np.convolve(slow**2, np.ones(800) / 800, "same")[::80]
  beats = [level[round(200 * at) :][:40].max() for at in (0.8, 1.6)]
  gaps = [level[round(200 * at) :][:20].max() for at in (0.6, 1.4)]
  assert min(beats) > 5 * max(gaps)


def test_shuffled_pieces_are_all_there_without_clicks(tune):
  ramp = np.linspace(0.1, 0.9, RATE_HZ * 2, dtype=np.float32)
  piece = RATE_HZ // 10
  changed = put("shuffled", 0.1, ramp).reshape(20, piece)
  middles = changed[:, piece // 2]
  assert not np.allclose(middles, np.sort(middles))
  np.testing.assert_allclose(
    np.sort(middles), ramp.reshape(20, piece)[:, piece // 2], rtol=1e-5
  )
  joints = put("shuffled", 0.1, ramp)[piece::piece]
  assert np.abs(joints).max() < 0.01
  # A recording shorter than two pieces has no other order.
  short = tune[: piece + 10]
  np.testing.assert_array_equal(put("shuffled", 0.2, short), short)


@pytest.mark.parametrize(
  "kind, level, match",
  [
    ("hum", 1.0, "kind='hum': expected one of noise"),
    ("low-pass", 0.0, "level=0.0 of 'low-pass': expected > 0"),
    ("slower", 0.5, "level=0.5 of 'slower': expected at least 1"),
    ("shuffled", math.inf, "level=inf"),
  ],
)
def test_bad_input_is_named(kind, level, match, tune):
  with pytest.raises(ValueError, match=match):
    put(kind, level, tune)
