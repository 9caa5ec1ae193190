# SPDX-License-Identifier: Apache-2.0
"""FAD and KAD rise with noise, low-pass and wrong tempo, and find the real set.

The embedding here is made of log-mel levels and how they move, so that the
test needs no trained network; docs/metrics.md has the same with MuLan.
"""

import numpy as np
import pytest
import tunes

from musiclm_jax.evaluation import frechet_distance, kernel_distance, log_mel

RATE_HZ = 8000
SECS = 3.0
NUM_CLIPS = 40
_MELS = log_mel.LogMelConfig(RATE_HZ, 0.064, 0.016, num_mels=12)


def embed(waveforms):
  """Mean levels by band, their spread, and how much they rise per frame."""
  vectors = []
  for waveform in waveforms:
    mels = log_mel.log_mel(waveform, _MELS)
    rise = np.maximum(np.diff(mels, axis=0), 0)
    vectors.append(np.concatenate([mels.mean(0), mels.std(0), rise.mean(0)]))
  return np.array(vectors)


@pytest.fixture(scope="module")
def audio():
  """Real clips twice over, the second ones long enough to be sped up."""
  first = [tunes.tune(seed, SECS, RATE_HZ) for seed in range(NUM_CLIPS)]
  second = [
    tunes.tune(1000 + seed, 2 * SECS, RATE_HZ) for seed in range(NUM_CLIPS)
  ]
  return embed(first), second


def cut(waveform):
  return waveform[: round(SECS * RATE_HZ)]


def with_noise(waveform, snr_db):
  noise = np.random.default_rng(0).normal(size=len(waveform))
  level = np.sqrt((waveform**2).mean()) * 10 ** (-snr_db / 20)
  return cut(waveform + level * noise).astype(np.float32)


def low_passed(waveform, cutoff_hz):
  waveform = cut(waveform)
  spectrum = np.fft.rfft(waveform)
  frequencies = np.fft.rfftfreq(len(waveform), 1 / RATE_HZ)
  # As a filter of fourth order falls.
  spectrum = spectrum / (1 + (frequencies / cutoff_hz) ** 8)
  return np.fft.irfft(spectrum, len(waveform)).astype(np.float32)


def faster(waveform, factor):
  """Read faster: tempo and pitch rise together."""
  places = np.arange(round(SECS * RATE_HZ)) * factor
  return np.interp(places, np.arange(len(waveform)), waveform)


@pytest.mark.parametrize(
  "degrade, levels",
  [
    (with_noise, (30, 20, 10)),
    (low_passed, (1600, 800, 400)),
    (faster, (1.2, 1.5, 1.9)),
  ],
)
def test_distances_rise_with_the_fault(audio, degrade, levels):
  reference, clips = audio
  sets = [embed([cut(clip) for clip in clips])]
  sets += [embed([degrade(clip, level) for clip in clips]) for level in levels]
  for distance in (
    frechet_distance.frechet_distance,
    lambda *both: frechet_distance.frechet_distance(*both, diagonal=True),
    lambda *both: frechet_distance.extrapolated(*both, num_sizes=6).value,
    lambda *both: kernel_distance.estimate(*both).value,
  ):
    values = [distance(reference, one) for one in sets]
    assert (np.diff(values) > 0).all(), values
  last = kernel_distance.estimate(reference, sets[-1])
  assert last.value > 4 * last.standard_error
  clean = kernel_distance.estimate(reference, sets[0])
  assert abs(clean.value) < 2 * clean.standard_error
