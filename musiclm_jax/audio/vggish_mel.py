# SPDX-License-Identifier: Apache-2.0
"""VGGish's spectrogram: waveforms in, log-mel patches out, all in numpy.

As published with the network (the facts are those of its parameters file):
16 kHz, Hann windows of 25 ms every 10 ms without padding, DFT of 512, MAGNITUDE
(not power), 64 bands from 125 to 7500 Hz whose triangles are straight on the
HTK mel scale, `log(mel + 0.01)`, patches of 96 frames.
"""

import functools

import numpy as np

SAMPLE_RATE_HZ = 16000
FRAME_LENGTH = 400
HOP_LENGTH = 160
PATCH_FRAMES = 96
NUM_MELS = 64
# Samples under one patch: 0.975 s.
PATCH_SAMPLES = (PATCH_FRAMES - 1) * HOP_LENGTH + FRAME_LENGTH
_FFT_LENGTH = 512
_LOW_HZ, _HIGH_HZ = 125.0, 7500.0
_LOG_OFFSET = 0.01


def _htk_mel(hz: np.ndarray) -> np.ndarray:
  return 1127.0 * np.log(1.0 + np.asarray(hz) / 700.0)


@functools.cache
def mel_weights() -> np.ndarray:
  """Weights of the bins in each band, float64 `[257, 64]`.

  A bin's weight is linear in its MEL distance from the band's centre (not in
  hertz), and the bin at 0 Hz has none.
  """
  bins = _htk_mel(
    np.arange(_FFT_LENGTH // 2 + 1) * SAMPLE_RATE_HZ / _FFT_LENGTH
  )
  edges = np.linspace(_htk_mel(_LOW_HZ), _htk_mel(_HIGH_HZ), NUM_MELS + 2)
  low, centre, high = edges[:-2], edges[1:-1], edges[2:]
  rising = (bins[:, None] - low) / (centre - low)
  falling = (high - bins[:, None]) / (high - centre)
  weights = np.maximum(0.0, np.minimum(rising, falling))
  weights[0] = 0.0
  return weights


def log_mel(waveforms: np.ndarray) -> np.ndarray:
  """Log-mel spectrogram.

  Args:
    waveforms: float `[..., samples]` at 16 kHz in [-1, 1], at least 400
      samples.

  Returns:
    float32 `[..., 1 + (samples - 400) // 160, 64]`.
  """
  waveforms = np.asarray(waveforms, np.float64)
  frames = np.lib.stride_tricks.sliding_window_view(
    waveforms, FRAME_LENGTH, axis=-1
  )[..., ::HOP_LENGTH, :]
  phase = 2 * np.pi * np.arange(FRAME_LENGTH) / FRAME_LENGTH
  window = 0.5 - 0.5 * np.cos(phase)  # periodic
  magnitude = np.abs(np.fft.rfft(frames * window, _FFT_LENGTH))
  return np.log(magnitude @ mel_weights() + _LOG_OFFSET).astype(np.float32)
