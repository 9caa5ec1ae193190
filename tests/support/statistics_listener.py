# SPDX-License-Identifier: Apache-2.0
"""A listener without a network: log-mel statistics of windows of a second."""

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.evaluation import log_mel

NUM_BANDS = 6
RATE_HZ = 8000


class Statistics:
  """Means and deviations of bands as a vector, means as logits of classes."""

  name = "statistics"
  fingerprint = "0123456789abcdef"
  published_as = None
  sample_rate_hz = RATE_HZ
  window_secs = hop_secs = 0.25
  embedding_dim = 2 * NUM_BANDS
  class_names = tuple(f"band {index}" for index in range(NUM_BANDS))
  multi_label = False

  def __init__(self):
    self.num_heard = 0

  def settings(self):
    return {"resampler": "soxr HQ", "gain": "none", "activation": "none"}

  def _bands(self, waveforms, sample_rate_hz):
    self.num_heard += len(waveforms)
    length = round(self.window_secs * RATE_HZ)
    config = log_mel.LogMelConfig(RATE_HZ, 0.064, 0.032, NUM_BANDS)
    rows = []
    for waveform in waveforms:
      waveform = files.resample(waveform, sample_rate_hz, RATE_HZ)
      count = max(1, len(waveform) // length)
      waveform = np.resize(waveform, (count, length))
      rows.append(log_mel.log_mel(waveform, config))
    return np.stack(rows)

  def embed_audio_windows(self, waveforms, sample_rate_hz):
    bands = self._bands(waveforms, sample_rate_hz)
    both = np.concatenate([bands.mean(2), bands.std(2)], -1)
    return both.astype(np.float32)

  def classify_windows(self, waveforms, sample_rate_hz):
    return self._bands(waveforms, sample_rate_hz).mean(2).astype(np.float32)


def write_clips(folder, count, seed=0, secs=0.5, gain=0.2):
  """WAV files of chords with some noise, of two lengths."""
  rng = np.random.default_rng(seed)
  folder.mkdir(parents=True, exist_ok=True)
  for index in range(count):
    length = round(RATE_HZ * (secs if index % 5 else 2 * secs))
    time = np.arange(length) / RATE_HZ
    pitch = 110 * 2 ** (rng.integers(0, 36) / 12)
    chord = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in (1, 2, 3))
    noise = rng.standard_normal(length)
    path = folder / f"clip_{seed}_{index:04d}.wav"
    files.write_wav(path, gain * (chord + 0.1 * noise) / 2, RATE_HZ)
