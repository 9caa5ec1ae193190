# SPDX-License-Identifier: Apache-2.0
"""A melody as part of a prompt: recorded audio in, melody codes out.

A hummed, whistled or played tune of any length and rate; it is repeated to
the length of what is made, and what is longer is cut off.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.core import errors
from musiclm_jax.systems import melody_tokenizer

MIN_SECS = 1.0
_SILENT_PEAK = 1e-4  # -80 dBFS


@dataclasses.dataclass(frozen=True)
class Melody:
  """Audio whose melody is asked for.

  Attributes:
    waveform: float32 `[samples]` in about [-1, 1].
    sample_rate_hz: its rate.
    name: what it is called in error messages.
  """

  waveform: np.ndarray
  sample_rate_hz: int
  name: str = "the melody"

  def __post_init__(self):
    """Checks the audio.

    Raises:
      ValueError: if the waveform is not mono or the rate not positive.
      UserError: if it is too short, silent, or not finite.
    """
    waveform = np.asarray(self.waveform, np.float32)
    object.__setattr__(self, "waveform", waveform)
    if waveform.ndim != 1 or not self.sample_rate_hz > 0:
      raise ValueError(
        f"waveform of shape {waveform.shape} at {self.sample_rate_hz} Hz: "
        "expected [samples] at a positive rate"
      )
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
        f"{self.name} is silent (peak below {_SILENT_PEAK:g}): expected a "
        "melody"
      )

  @property
  def secs(self) -> float:
    """Length."""
    return len(self.waveform) / self.sample_rate_hz

  def repeated(self, secs: float) -> np.ndarray:
    """float32 `[samples]` of `secs` seconds, repeated or cut to this length."""
    wanted = round(secs * self.sample_rate_hz)
    return np.resize(self.waveform, wanted)


def read(path: str | os.PathLike) -> Melody:
  """The melody in an audio file; channels are averaged.

  Raises:
    UserError: if the file is missing, not audio, too short, or silent.
  """
  waveform, rate_hz = files.read_audio(path)
  return Melody(waveform, rate_hz, str(path))


def encode(
  tokenizer: melody_tokenizer.MelodyTokenizer,
  melodies: Sequence[Melody],
  secs: float,
) -> np.ndarray:
  """Codes of the windows of melodies, one a second, over `secs` seconds.

  Args:
    tokenizer: of the bundle.
    melodies: one per item.
    secs: of the music to be made; of less than a window, a window is taken.

  Returns:
    int32 `[batch, windows, codebooks]`, as `streams.take_windows` reads them.
  """
  stream = tokenizer.stream
  secs = max(secs, stream.window_secs)
  count = int((secs - stream.window_secs) / stream.stride_secs + 1e-6) + 1
  codes = [
    tokenizer.encode(
      melody.repeated(secs)[None], melody.sample_rate_hz, stream.stride_secs
    )[:, :count]
    for melody in melodies
  ]
  return np.concatenate(codes)
