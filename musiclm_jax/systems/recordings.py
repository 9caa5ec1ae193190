# SPDX-License-Identifier: Apache-2.0
"""Audio that is part of a request: checked once, at any rate, made mono."""

import dataclasses
import hashlib
import os
import pathlib
import typing

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.core import errors

MIN_SECS = 1.0
_SILENT_PEAK = 1e-4  # -80 dBFS


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
  """Audio given with a request.

  Attributes:
    waveform: float32 `[samples]` in about [-1, 1]; given as `[samples,
      channels]`, channels are averaged.
    sample_rate_hz: its rate.
    name: what it is called in error messages.
    sha256: of the file it was read from; else, '' given, of the samples.
  """

  waveform: np.ndarray
  sample_rate_hz: int
  name: str = "the audio"
  sha256: str = ""

  def __post_init__(self):
    """Checks the audio.

    Raises:
      ValueError: if the shape is another or the rate not positive.
      UserError: if it is too short, silent, or not finite.
    """
    waveform = np.asarray(self.waveform, np.float32)
    if waveform.ndim not in (1, 2) or not self.sample_rate_hz > 0:
      raise ValueError(
        f"waveform of shape {waveform.shape} at {self.sample_rate_hz} Hz: "
        "expected [samples] or [samples, channels] at a positive rate"
      )
    waveform = np.ascontiguousarray(files.as_channels(waveform, 1))
    object.__setattr__(self, "waveform", waveform)
    if not self.sha256:
      mark = hashlib.sha256(waveform.tobytes()).hexdigest()
      object.__setattr__(self, "sha256", mark)
    if self.secs < MIN_SECS:
      raise errors.UserError(
        f"{self.name} has {self.secs:.2f} s of audio: expected at least "
        f"{MIN_SECS:g} s"
      )
    if not np.isfinite(waveform).all():
      raise errors.UserError(
        f"{self.name} holds NaN or infinite samples: expected finite values"
      )
    if np.abs(waveform).max() < _SILENT_PEAK:
      raise errors.UserError(
        f"{self.name} is silent (peak below {_SILENT_PEAK:g}): expected sound"
      )

  @property
  def secs(self) -> float:
    """Length."""
    return len(self.waveform) / self.sample_rate_hz

  @classmethod
  def read(cls, path: str | os.PathLike) -> typing.Self:
    """A WAV, FLAC, OGG or MP3 file.

    Raises:
      UserError: if the file is missing, not audio, too short, or silent.
    """
    waveform, rate_hz = files.read_audio(path)
    content = pathlib.Path(path).read_bytes()
    mark = hashlib.sha256(content).hexdigest()
    return cls(waveform, rate_hz, str(path), mark)
