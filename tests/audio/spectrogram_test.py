# SPDX-License-Identifier: Apache-2.0
"""Spectrograms against librosa, alignment and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.audio import spectrogram


def _noise(samples: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=samples).astype(np.float32)


@pytest.mark.parametrize("length", [64, 1024])  # by product and by FFT
def test_magnitude_equals_librosa(length):
  import librosa

  waveform = _noise(6000)
  hop = length // 4
  ours = spectrogram.stft_magnitude(waveform, length, hop)
  padded = np.pad(waveform, ((length - hop) // 2, length))
  theirs = np.abs(librosa.stft(padded, n_fft=length, hop_length=hop,
                               center=False)).T  # fmt: skip
  assert ours.shape == (-(-6000 // hop), length // 2 + 1)
  np.testing.assert_allclose(ours, theirs[: len(ours)], atol=2e-3)


def test_filterbank_equals_librosa_where_no_band_is_empty():
  import librosa

  ours = spectrogram.mel_filterbank(24000, 1024, 64)
  theirs = librosa.filters.mel(sr=24000, n_fft=1024, n_mels=64, norm=None).T
  full = theirs.sum(0) >= 0.5
  np.testing.assert_allclose(ours[:, full], theirs[:, full], atol=1e-4)


def test_no_band_is_deaf():
  for config in spectrogram.multi_scale_configs(24000):
    filters = spectrogram.mel_filterbank(
      24000, config.fft_length, config.num_mels
    )
    assert (filters.sum(0) > 0.1).all(), config


@pytest.mark.parametrize("samples", [1, 240, 241, 2400, 2639])
def test_number_of_frames(samples):
  config = spectrogram.LogMelConfig()
  out = spectrogram.log_mel(jnp.zeros((2, samples)), config)
  assert out.shape == (2, -(-samples // 240), 64) and out.dtype == jnp.float32
  np.testing.assert_allclose(out, np.log(config.floor), rtol=1e-5)


def test_frame_is_centred_on_its_hop():
  waveform = np.zeros(2400, np.float32)
  waveform[5 * 240 + 120] = 1.0
  config = spectrogram.LogMelConfig(frame_length=480)
  energy = spectrogram.mel_magnitude(waveform, config).sum(-1)
  assert int(energy.argmax()) == 5
  np.testing.assert_allclose(energy[4], energy[6], rtol=0.05)


def test_tone_lands_in_its_band():
  time = np.arange(24000) / 24000
  config = spectrogram.LogMelConfig(num_mels=128, frame_length=2048)
  out = spectrogram.log_mel(np.sin(2 * np.pi * 3000 * time), config)
  band = int(out[50].argmax())
  filters = spectrogram.mel_filterbank(24000, 2048, 128)
  peak_hz = filters[:, band].argmax() * 24000 / 2048
  assert abs(peak_hz - 3000) < 100


def test_gradient_is_finite_in_silence_and_right_elsewhere():
  config = spectrogram.LogMelConfig(frame_length=512, hop_length=128)

  def total(x):
    return spectrogram.mel_magnitude(x, config).sum()

  assert np.isfinite(jax.grad(total)(jnp.zeros(1000))).all()
  waveform, direction = jnp.asarray(_noise(1000)), jnp.asarray(_noise(1000, 1))
  slope = jnp.vdot(jax.grad(total)(waveform), direction)
  step = 1e-3
  numeric = (
    total(waveform + step * direction) - total(waveform - step * direction)
  ) / (2 * step)
  np.testing.assert_allclose(slope, numeric, rtol=0.05)


def test_bad_config_is_named():
  with pytest.raises(ValueError, match="hop_length=2048"):
    spectrogram.LogMelConfig(hop_length=2048)
  with pytest.raises(ValueError, match="high_hz=20000"):
    spectrogram.LogMelConfig(high_hz=20000.0)
