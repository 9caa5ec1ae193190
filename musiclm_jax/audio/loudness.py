# SPDX-License-Identifier: Apache-2.0
"""Waveforms in, level figures in dB relative to full scale out (numpy)."""

import numpy as np

SILENCE_DB = -120.0
# ITU-R BS.1770-4: blocks, their hop, and the two gates.
_BLOCK_SECS, _HOP_SECS = 0.4, 0.1
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0
_OFFSET_DB = -0.691
# Of the analogue filters that BS.1770's table of coefficients for 48 kHz is
# made from, so that other rates get the same curve.
_SHELF_HZ, _SHELF_DB, _SHELF_Q = (
  1681.974450955533,
  3.999843853973347,
  0.7071752369554196,
)
_SHELF_SLOPE = 0.4996667741545416
_HIGH_PASS_HZ, _HIGH_PASS_Q = 38.13547087602444, 0.5003270373238773
# Of silence behind a waveform, in which the filters ring out.
_TAIL_SECS = 1.0


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


def normalize_peak(waveform: np.ndarray, target: float = 0.95) -> np.ndarray:
  """Scales `[..., samples]` so that its largest sample is `target`.

  Silence (peak below `SILENCE_DB`) is returned as it is.
  """
  waveform = np.asarray(waveform, np.float32)
  top = float(np.max(np.abs(waveform))) if waveform.size else 0.0
  if top < 10.0 ** (SILENCE_DB / 20.0):
    return waveform
  return waveform * np.float32(target / top)


def k_weighting(sample_rate_hz: float) -> tuple[np.ndarray, np.ndarray]:
  """The two filters of BS.1770 as biquads.

  Args:
    sample_rate_hz: of what is filtered, at least 4 kHz.

  Returns:
    Numerators and denominators, float64 `[filters, coefficients]`.

  Raises:
    ValueError: if the rate is too low for the filters.
  """
  if not sample_rate_hz >= 4000:
    raise ValueError(f"sample_rate_hz={sample_rate_hz}: expected at least 4000")
  tangent = np.tan(np.pi * _SHELF_HZ / sample_rate_hz)
  bend, square = tangent / _SHELF_Q, tangent**2
  gain = 10.0 ** (_SHELF_DB / 20.0)
  side = gain**_SHELF_SLOPE
  scale = 1.0 + bend + square
  above, below = gain + square, side * bend
  shelf = (
    np.array([above + below, 2 * (square - gain), above - below]) / scale,
    np.array([1.0, 2 * (square - 1.0) / scale, (1.0 - bend + square) / scale]),
  )
  tangent = np.tan(np.pi * _HIGH_PASS_HZ / sample_rate_hz)
  bend, square = tangent / _HIGH_PASS_Q, tangent**2
  low = 1.0 + bend + square
  high_pass = (
    np.array([1.0, -2.0, 1.0]),
    np.array([1.0, 2 * (square - 1.0) / low, (1.0 - bend + square) / low]),
  )
  return (
    np.stack([shelf[0], high_pass[0]]),
    np.stack([shelf[1], high_pass[1]]),
  )


def integrated_lufs(waveform: np.ndarray, sample_rate_hz: float) -> float:
  """Gated loudness of a whole waveform, by ITU-R BS.1770-4.

  What is shorter than a block of 0.4 s counts as one block.

  Args:
    waveform: float `[samples]` or `[samples, channels]`, one or two channels.
    sample_rate_hz: its rate, at least 4 kHz.

  Returns:
    LUFS; minus infinity where nothing is above the gate of -70 LUFS.

  Raises:
    ValueError: for another shape or rate.
  """
  waveform = np.asarray(waveform, np.float64)
  if waveform.ndim == 1:
    waveform = waveform[:, None]
  if waveform.ndim != 2 or waveform.shape[1] not in (1, 2) or not len(waveform):
    raise ValueError(
      f"waveform of shape {waveform.shape}: expected [samples] or "
      "[samples, 1 or 2], not empty"
    )
  length = len(waveform)
  padded = length + round(_TAIL_SECS * sample_rate_hz)
  turn = np.exp(-2j * np.pi * np.fft.rfftfreq(padded))
  response = np.ones(len(turn), complex)
  for above, below in zip(*k_weighting(sample_rate_hz)):
    response *= np.polyval(above[::-1], turn) / np.polyval(below[::-1], turn)
  spectrum = np.fft.rfft(waveform, padded, axis=0) * response[:, None]
  weighted = np.fft.irfft(spectrum, padded, axis=0)[:length]
  energy = np.concatenate([[0.0], np.cumsum((weighted**2).sum(-1))])
  block = min(round(_BLOCK_SECS * sample_rate_hz), length)
  starts = np.arange(0, length - block + 1, round(_HOP_SECS * sample_rate_hz))
  power = np.maximum(energy[starts + block] - energy[starts], 0.0) / block

  def level(mean: np.ndarray) -> np.ndarray:
    return _OFFSET_DB + 10.0 * np.log10(np.maximum(mean, 1e-30))

  power = power[level(power) > _ABSOLUTE_GATE]
  if not power.size:
    return -np.inf
  power = power[level(power) > level(power.mean()) + _RELATIVE_GATE]
  return float(level(power.mean()))
