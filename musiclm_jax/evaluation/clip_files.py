# SPDX-License-Identifier: Apache-2.0
"""Clips to listen to: a name, the bytes of an audio file, perhaps a part of it.

Files of a folder, clips of a corpus and generated files are all of this form.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.core import errors

# A cut clip may lack so much at its end.
_SLACK_SECS = 0.5


class Bad(NamedTuple):
  """A clip that cannot be used, and why."""

  name: str
  reason: str


@dataclasses.dataclass(frozen=True)
class ClipFile:
  """One clip.

  Attributes:
    name: for people; unique among its set.
    read: gives the bytes of a WAV, FLAC, OGG or MP3 file.
    path: of the file, for players; None where it is no file of its own.
    excerpt_secs: begin and end of the clip in the file; None for all of it.
  """

  name: str
  read: Callable[[], bytes]
  path: pathlib.Path | None = None
  excerpt_secs: tuple[float, float] | None = None

  def key(self, content: bytes) -> str:
    """Hex hash of what is heard: file and excerpt."""
    mark = hashlib.sha256(content)
    if self.excerpt_secs is not None:
      mark.update(repr(self.excerpt_secs).encode())
    return mark.hexdigest()

  def decode(self, content: bytes) -> tuple[np.ndarray, int]:
    """Mono waveform float32 `[samples]` and its rate in Hz.

    Raises:
      UserError: if it is not audio, or ends before the excerpt.
    """
    waveform, rate_hz = files.decode_audio(content, name=self.name)
    if self.excerpt_secs is None:
      return waveform, rate_hz
    start, end = self.excerpt_secs
    if len(waveform) < (end - _SLACK_SECS) * rate_hz:
      raise errors.UserError(
        f"{self.name} has {len(waveform) / rate_hz:.1f} s: expected a clip, or "
        f"a whole recording with {start:g} to {end:g} s in it"
      )
    return waveform[round(start * rate_hz) : round(end * rate_hz)], rate_hz


def of_path(
  path: str | os.PathLike,
  name: str | None = None,
  excerpt_secs: tuple[float, float] | None = None,
) -> ClipFile:
  """The clip in a file, which is read only when it is needed."""
  path = pathlib.Path(path)
  name = path.name if name is None else name
  return ClipFile(name, functools.partial(_bytes, path), path, excerpt_secs)


def _bytes(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise errors.UserError(
      f"cannot read {path}: {error.strerror or error}"
    ) from error


def of_folder(folder: str | os.PathLike) -> list[ClipFile]:
  """All audio files below a folder, sorted by name.

  Raises:
    UserError: if there is no folder, or no audio file in it.
  """
  root = pathlib.Path(folder)
  if not root.is_dir():
    raise errors.UserError(f"no folder at {folder}")
  found = [
    of_path(root / name, name)
    for name in files.list_names(root)
    if (root / name).is_file()
  ]
  if not found:
    raise errors.UserError(
      f"no file in {folder} ends in {', '.join(files.ENDINGS)}"
    )
  return found


def survey(
  clips: Sequence[ClipFile], update: Callable[[], None] = lambda: None
) -> tuple[dict[str, str], list[Bad]]:
  """Content keys by name, and the clips that cannot be read.

  Args:
    clips: names are unique.
    update: called after each.
  """
  keys: dict[str, str] = {}
  bad = []
  for clip in clips:
    try:
      keys[clip.name] = clip.key(clip.read())
    except errors.UserError as error:
      bad.append(Bad(clip.name, str(error)))
    update()
  return keys, bad


def check_bad(
  bad: Sequence[Bad], total: int, max_fraction: float, what: str
) -> None:
  """Raises UserError if more than a fraction of the clips are bad.

  Args:
    bad: clips left out.
    total: clips there are.
    max_fraction: of them that may be bad.
    what: the set is called.
  """
  if len(bad) > max_fraction * total:
    raise errors.UserError(
      f"{len(bad)} of {total} {what} clips cannot be used, the first: "
      f"{bad[0].reason}"
    )


def set_fingerprint(keys: Mapping[str, str]) -> str:
  """Hex hash of a set of clips, whatever they are called; 16 digits."""
  lines = "".join(f"{key}\n" for key in sorted(keys.values()))
  return hashlib.sha256(lines.encode()).hexdigest()[:16]
