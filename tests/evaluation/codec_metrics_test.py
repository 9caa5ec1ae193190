# SPDX-License-Identifier: Apache-2.0
"""Codec metrics on waveforms and codes with known answers."""

import numpy as np
import pytest

from musiclm_jax.evaluation import codec_metrics, log_mel


def _noise(shape, seed=0):
  return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def test_si_snr_ignores_scale_and_offset():
  reference = _noise((3, 16000))
  ratio = codec_metrics.si_snr_db(reference, 0.3 * reference + 0.05)
  assert ratio.shape == (3,)
  assert (ratio > 60).all()


@pytest.mark.parametrize("level_db", [-5.0, 0.0, 10.0, 30.0])
def test_si_snr_measures_the_planted_noise(level_db):
  reference, noise = _noise((4, 32000)), _noise((4, 32000), 1)
  noisy = reference + noise * 10 ** (-level_db / 20)
  ratio = codec_metrics.si_snr_db(reference, noisy)
  np.testing.assert_allclose(ratio, level_db, atol=0.25)


def test_si_snr_of_silence_is_nan_and_of_an_empty_estimate_is_very_low():
  reference = np.stack([np.zeros(1000), _noise(1000)])
  ratio = codec_metrics.si_snr_db(reference, np.zeros((2, 1000)))
  assert np.isnan(ratio[0])
  assert ratio[1] == -120
  assert codec_metrics.si_snr_db(_noise(1000), _noise(1000, 5)) < -10


def test_log_mel_distance_of_a_gain_is_its_logarithm():
  reference = _noise((2, 16000))
  distance = codec_metrics.log_mel_distance(reference, 0.5 * reference)
  np.testing.assert_allclose(distance, np.log(2.0), rtol=1e-4)
  assert codec_metrics.log_mel_distance(reference, reference).max() == 0.0


def test_log_mel_has_the_stated_frames_scale_and_place():
  config = log_mel.LogMelConfig()
  time = np.arange(16000) / 16000
  # A bin centre, so that the peak is not between two bins.
  spectrum = log_mel.log_mel(np.sin(2 * np.pi * 1000 * time), config)
  assert spectrum.shape == (1 + (16000 - 1024) // 256, 64)
  centres = log_mel.mel_centres_hz(config)[1:-1]
  loudest = spectrum.mean(0).argmax()
  assert abs(centres[loudest] - 1000) < 50
  assert abs(spectrum.mean(0).max()) < 0.7  # About ln(1).
  silent = log_mel.log_mel(np.zeros(100), config)
  np.testing.assert_allclose(silent, np.log(config.floor), rtol=1e-6)
  assert silent.shape == (1, 64)


def test_usage_and_perplexity_of_planted_codes():
  codes = np.stack([np.arange(16) % 4, np.arange(16) % 16, np.zeros(16)], -1)
  codes = codes.astype(np.int32)[None]
  assert codec_metrics.codebook_usage(codes, 16) == [0.25, 1.0, 1 / 16]
  np.testing.assert_allclose(
    codec_metrics.codebook_perplexity(codes, 16), [4, 16, 1]
  )
  codes[0, 8:] = -1
  assert codec_metrics.codebook_usage(codes, 16) == [0.25, 0.5, 1 / 16]
  with pytest.raises(ValueError, match="codebook_size=4"):
    codec_metrics.codebook_usage(codes, 4)


class _BitCodec:
  """A residual codec with a known error: level q adds bit q of a sample."""

  def __init__(self, levels):
    self.levels, self.batch_sizes = levels, set()

  def encode(self, waveform):
    self.batch_sizes.add(len(waveform))
    whole = np.floor((np.asarray(waveform) + 1) / 2 * 2**self.levels)
    whole = np.clip(whole, 0, 2**self.levels - 1).astype(np.int32)
    shifts = np.arange(self.levels - 1, -1, -1)
    return (whole[..., None] >> shifts) & 1

  def decode(self, codes):
    weights = 2.0 ** -np.arange(1, codes.shape[-1] + 1)
    value = (codes * weights).sum(-1) + weights[-1] / 2
    return np.pad(value * 2 - 1, [(0, 0), (0, 7)])  # Frames round up.


def test_table_improves_by_six_decibels_per_bit():
  waveforms = np.random.default_rng(0).uniform(-1, 1, (5, 8000))
  codec = _BitCodec(12)
  table = codec_metrics.codec_table(
    codec, waveforms, codebook_size=2, batch_size=2
  )
  ratios = table["si_snr_db"]
  assert list(ratios) == ["1", "2", "4", "8", "12"]
  assert ratios["8"] - ratios["4"] == pytest.approx(4 * 6.02, abs=0.5)
  assert ratios["12"] - ratios["8"] == pytest.approx(4 * 6.02, abs=0.5)
  distances = list(table["log_mel_distance"].values())
  assert distances == sorted(distances, reverse=True)
  assert table["codebook_usage"] == [1.0] * 12
  assert table["num_clips"] == 5
  assert codec.batch_sizes == {2}  # The last batch is filled up.
  codec.sample_rate_hz = 24000
  table = codec_metrics.codec_table(codec, waveforms)
  assert "0 to 12000 Hz" in table["definition"]
  with pytest.raises(ValueError, match="has 4 codebooks"):
    codec_metrics.codec_table(_BitCodec(4), waveforms)
