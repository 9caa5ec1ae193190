# SPDX-License-Identifier: Apache-2.0
"""Distances of spectra at several resolutions: waveforms in, numbers out.

One window hides what another shows: short ones hear attacks, long ones pitch.
All distances are per clip, over any leading axes.
"""

import dataclasses

import numpy as np

from musiclm_jax.evaluation import log_mel

_SILENCE = 1e-8


@dataclasses.dataclass(frozen=True)
class SpectralConfig:
  """The resolutions; the hop is a quarter of each window.

  Attributes:
    sample_rate_hz: of the waveforms.
    mel_window_secs: windows of the mel distance.
    mel_bands: of each of them; few where a window resolves few.
    stft_window_secs: windows of the STFT distances.
    floor: magnitudes below it count as it (of a full-scale sine's peak of 1).
  """

  sample_rate_hz: int = 24000
  mel_window_secs: tuple[float, ...] = (0.016, 0.032, 0.064, 0.128)
  mel_bands: tuple[int, ...] = (20, 40, 80, 160)
  stft_window_secs: tuple[float, ...] = (0.02, 0.04, 0.08)
  floor: float = 1e-4

  def __post_init__(self):
    if len(self.mel_window_secs) != len(self.mel_bands):
      raise ValueError(
        f"mel_bands={self.mel_bands}: expected as many as "
        f"mel_window_secs={self.mel_window_secs}"
      )

  def describe(self) -> dict[str, str]:
    """What each distance is, for reports."""
    windows = ", ".join(f"{1000 * secs:g}" for secs in self.mel_window_secs)
    bands = ", ".join(str(count) for count in self.mel_bands)
    stft = ", ".join(f"{1000 * secs:g}" for secs in self.stft_window_secs)
    return {
      "multi_scale_mel": "mean absolute difference of natural-log mel "
      f"magnitudes, mean over windows of {windows} ms with {bands} mels, "
      f"floor {self.floor:g}",
      "spectral_convergence": "norm of the difference of STFT magnitudes over "
      f"the norm of the original's, mean over windows of {stft} ms",
      "log_stft": "mean absolute difference of natural-log STFT magnitudes, "
      f"the same windows, floor {self.floor:g}",
    }


def multi_scale_mel(
  reference: np.ndarray, estimate: np.ndarray, config: SpectralConfig
) -> np.ndarray:
  """Mean over windows of the log-mel distance.

  Args:
    reference: float `[..., samples]` in [-1, 1].
    estimate: float, same shape.
    config: the windows.

  Returns:
    float64 `[...]` in nats.
  """
  distances = []
  for secs, bands in zip(config.mel_window_secs, config.mel_bands):
    scale = log_mel.LogMelConfig(
      config.sample_rate_hz, secs, secs / 4, bands, config.floor
    )
    difference = log_mel.log_mel(reference, scale) - log_mel.log_mel(
      estimate, scale
    )
    distances.append(np.abs(difference).mean((-2, -1), dtype=np.float64))
  return np.mean(distances, axis=0)


def stft_distances(
  reference: np.ndarray, estimate: np.ndarray, config: SpectralConfig
) -> dict[str, np.ndarray]:
  """Spectral convergence and log-magnitude distance, means over windows.

  Args:
    reference: float `[..., samples]` in [-1, 1].
    estimate: float, same shape.
    config: the windows.

  Returns:
    'spectral_convergence', float64 `[...]`, 0 where equal, 1 for an estimate
    of zeros, NaN where the reference is silent; and 'log_stft' in nats.
  """
  convergence, logs = [], []
  for secs in config.stft_window_secs:
    size = round(secs * config.sample_rate_hz)
    a, b = (
      log_mel.magnitudes(waveform, size, max(1, size // 4))
      for waveform in (reference, estimate)
    )
    norm = np.sqrt((a.astype(np.float64) ** 2).sum((-2, -1)))
    error = np.sqrt(((a - b).astype(np.float64) ** 2).sum((-2, -1)))
    silent = norm < _SILENCE * a.shape[-2] * a.shape[-1]
    convergence.append(
      np.where(silent, np.nan, error / np.maximum(norm, 1e-20))
    )
    difference = np.log(np.maximum(a, config.floor)) - np.log(
      np.maximum(b, config.floor)
    )
    logs.append(np.abs(difference).mean((-2, -1), dtype=np.float64))
  return {
    "spectral_convergence": np.mean(convergence, axis=0),
    "log_stft": np.mean(logs, axis=0),
  }
