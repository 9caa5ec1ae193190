# SPDX-License-Identifier: Apache-2.0
"""Texts in the RIFF INFO chunk of WAV files: written and read.

Not through libsndfile, which loses texts of some thousand bytes in silence.
"""

import os
import struct
from collections.abc import Mapping
from typing import BinaryIO

from musiclm_jax.core import errors

_IDS = {"title": b"INAM", "comment": b"ICMT", "software": b"ISFT"}
_NAMES = {mark: name for name, mark in _IDS.items()}
# A longer one was not written by people or by this module.
_MAX_INFO_BYTES = 1 << 24


def _chunk(mark: bytes, content: bytes) -> bytes:
  padding = b"\0" * (len(content) % 2)
  return mark + struct.pack("<I", len(content)) + content + padding


def info_chunk(tags: Mapping[str, str]) -> bytes:
  """The bytes of a LIST chunk of type INFO, in UTF-8.

  Args:
    tags: of 'title', 'comment' and 'software'.

  Raises:
    ValueError: for another name.
  """
  parts = [b"INFO"]
  for name, text in tags.items():
    if name not in _IDS:
      raise ValueError(f"tag {name!r}: expected one of {sorted(_IDS)}")
    content = text.replace("\0", "").encode("utf-8", "replace") + b"\0"
    parts.append(_chunk(_IDS[name], content))
  return _chunk(b"LIST", b"".join(parts))


def append(file: BinaryIO, tags: Mapping[str, str]) -> None:
  """Adds tags behind the samples of a WAV file that is written.

  Args:
    file: open for reading and writing.
    tags: as `info_chunk`.
  """
  file.seek(0, os.SEEK_END)
  file.write(info_chunk(tags))
  size = file.tell() - 8
  file.seek(4)
  file.write(struct.pack("<I", size))


def read(path: str | os.PathLike) -> dict[str, str]:
  """Tags of a WAV file; empty if it has none.

  Raises:
    UserError: if it is missing or no WAV file.
  """
  try:
    with open(path, "rb") as file:
      head = file.read(12)
      if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise errors.UserError(f"{path} is no WAV file: expected one")
      return _tags(file)
  except OSError as error:
    raise errors.UserError(
      f"{path} cannot be read ({error.strerror}): expected a WAV file"
    ) from error


def _tags(file: BinaryIO) -> dict[str, str]:
  """Of the chunks that follow; what is damaged is left out."""
  found: dict[str, str] = {}
  while len(head := file.read(8)) == 8:
    size = struct.unpack("<I", head[4:])[0]
    after = file.tell() + size + size % 2
    if head[:4] == b"LIST" and size <= _MAX_INFO_BYTES:
      content = file.read(size)
      if content[:4] == b"INFO":
        found |= _texts(content[4:])
    file.seek(after)
  return found


def _texts(content: bytes) -> dict[str, str]:
  found, at = {}, 0
  while at + 8 <= len(content):
    mark = content[at : at + 4]
    size = struct.unpack("<I", content[at + 4 : at + 8])[0]
    text = content[at + 8 : at + 8 + size].split(b"\0")[0]
    if mark in _NAMES:
      found[_NAMES[mark]] = text.decode("utf-8", "replace")
    at += 8 + size + size % 2
  return found
