# SPDX-License-Identifier: Apache-2.0
"""A melody as part of a prompt: recorded audio in, melody codes out.

A hummed, whistled or played tune of any length and rate; it is repeated to
the length of what is made, and what is longer is cut off.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from musiclm_jax.systems import melody_tokenizer, recordings


@dataclasses.dataclass(frozen=True, eq=False)
class Melody(recordings.Recording):
  """Audio whose melody is asked for; its fields are those of a recording."""

  name: str = "the melody"

  def repeated(self, secs: float) -> np.ndarray:
    """float32 `[samples]` of `secs` seconds, repeated or cut to this length."""
    wanted = round(secs * self.sample_rate_hz)
    return np.resize(self.waveform, wanted)


def read(path: str | os.PathLike) -> Melody:
  """The melody in an audio file; channels are averaged.

  Raises:
    UserError: if the file is missing, not audio, too short, or silent.
  """
  return Melody.read(path)


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
