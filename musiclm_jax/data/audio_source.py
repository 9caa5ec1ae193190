# SPDX-License-Identifier: Apache-2.0
"""Audio to tokenize: a prepared corpus, or a plain folder of audio files.

A path flows in; by index come out decoded clips, or the reason why there is
none. Any thread may read.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.core import errors
from musiclm_jax.data import clips, doctor

FOLDER_SPLIT = "train"
_DATASET_INFO = "dataset_info.json"


class Decoded(NamedTuple):
  """One input.

  Attributes:
    clip_id: in the corpus, or path in the folder with forward slashes.
    work_id: the work it is taken from.
    captions: texts that describe it.
    waveform: float32 `[samples]` (or `[samples, channels]`) at the wanted
      rate, or None if unusable.
    reason: why there is no waveform, or ''.
    note: what was done to make it usable, where that is unusual, or ''.
    read_secs: spent on reading its bytes.
    decode_secs: spent on decoding and resampling them.
  """

  clip_id: str
  work_id: str
  captions: tuple[str, ...]
  waveform: np.ndarray | None
  reason: str = ""
  note: str = ""
  read_secs: float = 0.0
  decode_secs: float = 0.0


class Source(Protocol):
  """Inputs in a fixed order."""

  def __len__(self) -> int: ...

  def read(self, index: int) -> Decoded:
    """Decodes one input; unusable audio is told, not raised."""


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What is tokenized.

  Attributes:
    sources: by split.
    mark: hash that changes when inputs are added, removed or changed in size.
  """

  sources: Mapping[str, Source]
  mark: str


def _mark(values: Any) -> str:
  content = json.dumps(values, sort_keys=True).encode()
  return hashlib.sha256(content).hexdigest()[:16]


def _unusable(waveform: np.ndarray) -> str:
  """Why audio is of no use to any tokenizer, or ''."""
  if not len(waveform):
    return "no samples"
  if not np.isfinite(waveform).all():
    finite = np.isfinite(waveform)
    index = int(np.argmin(finite if finite.ndim == 1 else finite.all(-1)))
    return f"NaN or infinite samples, the first at {index}"
  return ""


class CorpusSource:
  """Clips of one split of a prepared corpus.

  Silent and short clips are kept: what is in a corpus was chosen.
  """

  def __init__(
    self,
    corpus_dir: str | os.PathLike,
    split: str,
    sample_rate_hz: int,
    num_channels: int = 1,
  ):
    """Opens a split.

    Raises:
      UserError: if corpus or split is missing.
    """
    self._reader = clips.ClipReader(corpus_dir, split)
    self._rate_hz, self._num_channels = sample_rate_hz, num_channels
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._reader)

  def read(self, index: int) -> Decoded:
    """Decodes one clip."""
    began = time.monotonic()
    with self._lock:  # a reader keeps one position for all threads
      record = self._reader.record(index)
    read = time.monotonic()
    waveform, reason = None, ""
    try:
      waveform, _ = files.decode_audio(
        record.audio,
        self._rate_hz,
        mono=self._num_channels == 1,
        name="the clip",
      )
      waveform = files.as_channels(waveform, self._num_channels)
      reason = _unusable(waveform)
    except errors.UserError as error:
      reason = str(error)
    return Decoded(
      record.clip_id,
      record.work_id,
      record.captions,
      None if reason else waveform,
      reason,
      "",
      read - began,
      time.monotonic() - read,
    )


class FolderSource:
  """Audio files of a tree, each a clip and a work of its own.

  What ends like an audio file is an input, whatever it is.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    sample_rate_hz: int,
    limits: doctor.Limits | None = None,
    num_channels: int = 1,
  ):
    """Lists the files.

    Raises:
      UserError: if there is no such folder, or nothing in it.
    """
    self._root = pathlib.Path(folder)
    self._rate_hz, self._num_channels = sample_rate_hz, num_channels
    self._limits = limits or doctor.Limits()
    if not self._root.is_dir():
      raise errors.UserError(
        f"no corpus or folder at {self._root}: build a corpus with `musiclm "
        "prepare`, or name a folder of audio files"
      )
    self._files = files.list_names(self._root)
    if not self._files:
      raise errors.UserError(
        f"{self._root} holds neither a built corpus nor audio: expected "
        f"{_DATASET_INFO} or files ending in {', '.join(files.ENDINGS)}"
      )

  def __len__(self) -> int:
    return len(self._files)

  def sizes(self) -> list[tuple[str, int]]:
    """Names and bytes of all files."""
    return [
      (file, path.stat().st_size if path.is_file() else -1)
      for file in self._files
      for path in (self._root / file,)
    ]

  def read(self, index: int) -> Decoded:
    """Reads, decodes and judges one file."""
    file = self._files[index]
    path = self._root / file
    began = read = time.monotonic()
    waveform, reason, note = None, "", ""
    try:
      if path.is_symlink() and not path.exists():
        raise errors.UserError("is a broken link")
      if path.is_dir():
        raise errors.UserError("is a folder, not an audio file")
      content = path.read_bytes()
      read = time.monotonic()
      waveform, reason, note = self._decode(content)
    except PermissionError:
      reason = "may not be read by this user"
    except FileNotFoundError as error:
      raise errors.UserError(
        f"{path} has vanished since the folder was listed"
      ) from error
    except errors.UserError as error:
      reason = str(error)
    return Decoded(
      file,
      file,
      (),
      None if reason else waveform,
      reason,
      note,
      read - began,
      time.monotonic() - read,
    )

  def _decode(self, content: bytes) -> tuple[np.ndarray, str, str]:
    """Waveform, why it is useless or '', and what is unusual or ''."""
    channels, rate_hz = files.decode_audio(content, mono=False, name="the file")
    waveform = files.as_channels(channels, self._num_channels)
    waveform = files.resample(waveform, rate_hz, self._rate_hz)
    notes = doctor.oddities(content, rate_hz, channels.shape[1])
    reason = _unusable(waveform)
    status, detail = doctor.judge(channels, rate_hz, self._limits)
    if status in doctor.BAD:
      reason = f"{status.replace('_', ' ')}, {detail}"
    return waveform, reason, "; ".join(notes)


def open_inputs(
  path: str | os.PathLike,
  splits: Sequence[str],
  sample_rate_hz: int,
  num_channels: int = 1,
) -> Inputs:
  """A prepared corpus, or else a folder of audio files.

  Args:
    path: of either.
    splits: of a corpus, all if empty; a folder has the one split 'train'.
    sample_rate_hz: of the waveforms to make.
    num_channels: of the waveforms; see `files.as_channels`.

  Raises:
    UserError: if it is neither, or has no such split.
  """
  if (pathlib.Path(path) / _DATASET_INFO).is_file():
    splits = list(splits) or clips.split_names(path)
    sources = {
      split: CorpusSource(path, split, sample_rate_hz, num_channels)
      for split in splits
    }
    # It tells the number of clips in every shard of every split.
    return Inputs(sources, _mark(pathlib.Path(path, _DATASET_INFO).read_text()))
  for split in splits:
    if split != FOLDER_SPLIT:
      raise errors.UserError(
        f"split {split!r} of {path}: a folder of audio files has only "
        f"{FOLDER_SPLIT!r}; `musiclm prepare audio_folder` makes splits"
      )
  source = FolderSource(path, sample_rate_hz, num_channels=num_channels)
  return Inputs({FOLDER_SPLIT: source}, _mark(source.sizes()))
