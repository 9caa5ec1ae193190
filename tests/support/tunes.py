# SPDX-License-Identifier: Apache-2.0
"""Made-up recordings, each unlike the others, for tests of copies."""

import numpy as np


def tune(seed, secs, rate_hz, brightness=0.6):
  """Float32 `[samples]`: plucked notes with partials at random times."""
  rng = np.random.default_rng(seed)
  waveform = np.zeros(round((secs + 2) * rate_hz), np.float32)
  onset = 0.0
  while onset < secs:
    pitch_hz = 220 * 2 ** (rng.integers(0, 25) / 12)
    times = np.arange(rate_hz) / rate_hz
    note = sum(
      brightness**k * np.sin(2 * np.pi * k * pitch_hz * times)
      for k in range(1, 7)
    )
    start = round(onset * rate_hz)
    waveform[start : start + rate_hz] += 0.1 * np.exp(-4 * times) * note
    onset += rng.choice([0.15, 0.3, 0.45])
  return waveform[: round(secs * rate_hz)]
