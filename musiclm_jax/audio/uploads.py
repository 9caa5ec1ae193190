# SPDX-License-Identifier: Apache-2.0
"""Audio of strangers: bytes in, waveforms out, within limits that hold.

What a file says of itself is checked before a decoder makes room for it, and
only bytes that begin like one of the known formats reach the decoder.
"""

import dataclasses
import io
import os
import pathlib
import re
import stat

import numpy as np
import soundfile

from musiclm_jax.audio import files
from musiclm_jax.core import errors

_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "MPEG")
_MAX_NAME = 40


@dataclasses.dataclass(frozen=True)
class Limits:
  """What is taken.

  Attributes:
    max_bytes: of a file.
    max_secs: of its audio.
    max_channels: of its audio.
    min_rate_hz: of its audio.
    max_rate_hz: of its audio.
  """

  max_bytes: int = 20 << 20
  max_secs: float = 60.0
  max_channels: int = 8
  min_rate_hz: int = 4000
  max_rate_hz: int = 192000

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not value > 0:
        raise ValueError(f"{field.name}={value}: expected > 0")


def shown_name(name: str) -> str:
  """A file's name without folders and odd characters, for messages."""
  name = re.split(r"[/\\]", str(name))[-1]
  name = re.sub(r"[^\w .()+-]", "_", name).strip(" .")
  return name[-_MAX_NAME:] or "the upload"


def _looks_like_audio(head: bytes) -> bool:
  if head[:4] in (b"fLaC", b"OggS"):
    return True
  if head[:4] in (b"RIFF", b"RF64"):
    return head[8:12] == b"WAVE"
  is_frame = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
  return head[:3] == b"ID3" or is_frame


def content(
  path: str | os.PathLike, folder: str | os.PathLike, limits: Limits
) -> bytes:
  """Bytes of an uploaded file, which has to lie where uploads lie.

  Args:
    path: as the visitor's request names it.
    folder: of all uploads.
    limits: its size.

  Raises:
    UserError: if it lies elsewhere, is missing, no plain file, or too large.
  """
  name = shown_name(str(path))
  missing = errors.UserError(f"{name} was not uploaded here: expected a file")
  try:
    real = pathlib.Path(path).resolve(strict=True)
    root = pathlib.Path(folder).resolve(strict=True)
    if root not in real.parents:
      raise missing
    # The descriptor is checked, not the name: that may change in between. A
    # pipe would keep a reader waiting.
    handle = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as file:
      if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise missing
      found = file.read(limits.max_bytes + 1)
  except (OSError, ValueError, RuntimeError) as error:
    raise missing from error
  if len(found) > limits.max_bytes:
    raise errors.UserError(
      f"{name} is larger than {limits.max_bytes / (1 << 20):g} MB: expected a "
      "smaller file"
    )
  return found


def decode(
  data: bytes, limits: Limits, name: str = "the upload"
) -> tuple[np.ndarray, int]:
  """Decodes audio of unknown origin.

  Args:
    data: bytes of a WAV, FLAC, OGG or MP3 file.
    limits: what is taken.
    name: for messages.

  Returns:
    float32 `[samples, channels]` in about [-1, 1] and the rate in Hz.

  Raises:
    UserError: one line, if it is anything else or beyond a limit.
  """
  name = shown_name(name)
  if not _looks_like_audio(data[:12]):
    raise errors.UserError(
      f"{name} is no audio file: expected WAV, FLAC, OGG or MP3"
    )
  try:
    info = soundfile.info(io.BytesIO(data))
  except Exception as error:  # libsndfile and its wrapper raise several kinds
    raise errors.UserError(
      f"{name} cannot be read as audio: expected an intact WAV, FLAC, OGG or "
      "MP3 file"
    ) from error
  if info.format not in _FORMATS:
    raise errors.UserError(
      f"{name} is {info.format}: expected WAV, FLAC, OGG or MP3"
    )
  if not limits.min_rate_hz <= info.samplerate <= limits.max_rate_hz:
    raise errors.UserError(
      f"{name} has {info.samplerate} Hz: expected {limits.min_rate_hz} to "
      f"{limits.max_rate_hz} Hz"
    )
  if not 1 <= info.channels <= limits.max_channels:
    raise errors.UserError(
      f"{name} has {info.channels} channels: expected 1 to "
      f"{limits.max_channels}"
    )
  if info.frames > limits.max_secs * info.samplerate:
    raise errors.UserError(
      f"{name} is longer than {limits.max_secs:g} s: expected less"
    )
  return files.decode_audio(data, mono=False, name=name)
