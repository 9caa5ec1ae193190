# SPDX-License-Identifier: Apache-2.0
"""A stream of audio to a WAV file that grows, or as raw PCM to a pipe."""

import os
import pathlib
import struct
import sys
import time
from typing import Any, BinaryIO

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.core import errors

STANDARD_OUTPUT = "-"
_HEADER_BYTES = 44
_MAX_DATA_BYTES = 0xFFFFFFFF - _HEADER_BYTES


class GrowingWav:
  """A 16-bit WAV file that is whole after every piece, also if killed.

  The sizes in its header are set behind each piece: what a killed writer had
  not counted yet is at the end, where readers ignore it.
  """

  def __init__(
    self, path: str | os.PathLike, sample_rate_hz: int, num_channels: int = 1
  ):
    """Begins a file, in place of one that is there.

    Raises:
      UserError: if it cannot be written.
    """
    self._path = pathlib.Path(path)
    self._rate_hz, self._channels = sample_rate_hz, num_channels
    self._num_bytes = 0
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._file = self._path.open("wb")
    except OSError as error:
      raise errors.UserError(f"cannot write {path}: {error}") from error
    self._file.write(self._header())
    self._file.flush()

  def _header(self) -> bytes:
    frame_bytes = 2 * self._channels
    return struct.pack(
      "<4sI4s4sIHHIIHH4sI",
      b"RIFF",
      _HEADER_BYTES - 8 + self._num_bytes,
      b"WAVE",
      b"fmt ",
      16,
      1,  # PCM
      self._channels,
      self._rate_hz,
      self._rate_hz * frame_bytes,
      frame_bytes,
      16,
      b"data",
      self._num_bytes,
    )

  def write(self, waveform: np.ndarray) -> None:
    """Adds float32 `[samples]` or `[samples, channels]` in [-1, 1].

    Raises:
      UserError: if the file would be longer than the format can say (4 GB).
    """
    content = files.to_pcm16(waveform).astype("<i2").tobytes()
    if self._num_bytes + len(content) > _MAX_DATA_BYTES:
      raise errors.UserError(f"{self._path} is full: WAV ends at 4 GB")
    self._file.seek(_HEADER_BYTES + self._num_bytes)
    self._file.write(content)
    self._file.flush()
    self._num_bytes += len(content)
    self._file.seek(0)
    self._file.write(self._header())
    self._file.flush()

  def close(self) -> None:
    """Ends the file."""
    self._file.close()

  def __enter__(self) -> "GrowingWav":
    return self

  def __exit__(self, *error: Any) -> None:
    self.close()


class _Pipe:
  """Raw PCM, for whoever reads it: no header, as a pipe cannot go back."""

  def __init__(self, file: BinaryIO):
    self._file = file

  def write(self, waveform: np.ndarray) -> None:
    self._file.write(files.to_pcm16(waveform).astype("<i2").tobytes())
    self._file.flush()

  def __enter__(self) -> "_Pipe":
    return self

  def __exit__(self, *error: Any) -> None:
    pass


def write(system: Any, request: Any, target: str) -> None:
  """Streams the one item of a request; says on standard error how it goes.

  Args:
    system: of `systems/cascade.py`.
    request: of one item.
    target: a path, or `STANDARD_OUTPUT`.

  Raises:
    UserError: if the file cannot be written, or the request not be made.
  """
  from musiclm_jax.systems import streaming

  rate_hz = system.codec.sample_rate_hz
  channels = system.codec.config.num_channels
  start, num_samples, first_secs = time.monotonic(), 0, 0.0
  if target == STANDARD_OUTPUT:
    sink = _Pipe(sys.stdout.buffer)
    print(f"16-bit PCM, {rate_hz} Hz, {channels} channel(s)", file=sys.stderr)
  else:
    sink = GrowingWav(target, rate_hz, channels)
  with sink:
    for piece in streaming.Stream(system, request):
      if not num_samples:
        first_secs = time.monotonic() - start
      sink.write(piece.waveform[0])
      num_samples += piece.waveform.shape[1]
  print(
    f"{target}: {num_samples / rate_hz:g} s of audio in "
    f"{time.monotonic() - start:.1f} s, the first after {first_secs:.1f} s",
    file=sys.stderr,
  )
