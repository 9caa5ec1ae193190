# SPDX-License-Identifier: Apache-2.0
"""Waveforms in, level figures in dB relative to full scale out (numpy)."""

import numpy as np

SILENCE_DB = -120.0


def _decibels(amplitude: np.ndarray) -> np.ndarray:
  floor = 10.0 ** (SILENCE_DB / 20.0)
  return 20.0 * np.log10(np.maximum(amplitude, floor))


def rms_db(waveform: np.ndarray) -> np.ndarray:
  """RMS level over the last axis: `[..., samples]` to `[...]`, in dB.

  A full-scale square wave has 0 dB; silence has `SILENCE_DB`.
  """
  waveform = np.asarray(waveform, np.float64)
  return _decibels(np.sqrt(np.mean(waveform**2, axis=-1)))


def peak(waveform: np.ndarray) -> np.ndarray:
  """Largest absolute sample over the last axis."""
  return np.max(np.abs(np.asarray(waveform)), axis=-1)


def peak_db(waveform: np.ndarray) -> np.ndarray:
  """`peak` in dB."""
  return _decibels(peak(waveform))


def is_silent(waveform: np.ndarray, threshold_db: float = -60.0) -> bool:
  """Whether the RMS level of all of `waveform` is below `threshold_db`."""
  return bool(rms_db(np.ravel(waveform)) < threshold_db)


def normalize_peak(waveform: np.ndarray, target: float = 0.95) -> np.ndarray:
  """Scales `[..., samples]` so that its largest sample is `target`.

  Silence (peak below `SILENCE_DB`) is returned as it is.
  """
  waveform = np.asarray(waveform, np.float32)
  top = float(np.max(np.abs(waveform))) if waveform.size else 0.0
  if top < 10.0 ** (SILENCE_DB / 20.0):
    return waveform
  return waveform * np.float32(target / top)
