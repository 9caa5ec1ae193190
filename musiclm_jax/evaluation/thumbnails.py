# SPDX-License-Identifier: Apache-2.0
"""Small spectrograms as picture files: a waveform in, a JPEG out.

For pages of very many clips, where a drawn figure of each is too much.
"""

import os
import pathlib

import matplotlib
import numpy as np
from matplotlib import image

from musiclm_jax.core import atomic_files
from musiclm_jax.evaluation import log_mel

WIDTH, HEIGHT = 256, 64
ENDING = ".jpg"
_QUALITY = 70


def pixels(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
  """A log-mel spectrogram, the lowest band at the bottom.

  Args:
    waveform: float `[samples]` in [-1, 1].
    sample_rate_hz: its rate.

  Returns:
    uint8 `[HEIGHT, WIDTH, 3]`.
  """
  secs = len(waveform) / sample_rate_hz
  config = log_mel.LogMelConfig(
    sample_rate_hz, hop_secs=max(0.004, secs / WIDTH), num_mels=HEIGHT
  )
  spectrum = log_mel.log_mel(waveform, config)
  places = np.arange(WIDTH) * len(spectrum) // WIDTH
  floor = np.log(config.floor)
  shares = np.clip(1.0 - spectrum[places].T[::-1] / floor, 0.0, 1.0)
  colours = matplotlib.colormaps["magma"](shares, bytes=True)
  return np.ascontiguousarray(colours[..., :3])


def write(
  path: str | os.PathLike, waveform: np.ndarray, sample_rate_hz: int
) -> None:
  """Writes the picture; it appears whole or not at all."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with atomic_files.written(path) as file:
    image.imsave(
      file,
      pixels(waveform, sample_rate_hz),
      format="jpeg",
      # A few kilobytes; as a PNG it would be ten times that.
      pil_kwargs={"quality": _QUALITY},
    )
