# SPDX-License-Identifier: Apache-2.0
"""Whole clips of a prepared corpus, in order: for fitting and tokenizing."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.core import errors


@dataclasses.dataclass(frozen=True)
class Clip:
  """One clip.

  Attributes:
    clip_id: in the corpus.
    work_id: the work it is taken from.
    captions: texts that describe it.
    waveform: float32 in [-1, 1], `[samples]`, or `[samples, channels]` where
      the reader was asked for more than one.
    sample_rate_hz: of the waveform.
  """

  clip_id: str
  work_id: str
  captions: tuple[str, ...]
  waveform: np.ndarray
  sample_rate_hz: int


@dataclasses.dataclass(frozen=True)
class Record:
  """A clip as it is stored; `audio` holds the bytes of a file."""

  clip_id: str
  work_id: str
  captions: tuple[str, ...]
  audio: bytes


@dataclasses.dataclass(frozen=True)
class Texts:
  """What is written about a clip."""

  clip_id: str
  work_id: str
  captions: tuple[str, ...]
  aspects: tuple[str, ...]
  titles: tuple[str, ...]
  playlists: tuple[str, ...]


def _text(value) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def split_names(corpus_dir: str | os.PathLike) -> list[str]:
  """Splits of a prepared corpus, in a fixed order.

  Raises:
    UserError: if there is no corpus.
  """
  return sorted(_builder(corpus_dir).info.splits)


def _builder(corpus_dir: str | os.PathLike):
  import tensorflow_datasets as tfds

  path = pathlib.Path(corpus_dir)
  if not (path / "dataset_info.json").is_file():
    raise errors.UserError(
      f"no corpus at {path}: build one with `musiclm prepare`"
    )
  return tfds.builder_from_directory(path)


class ClipReader:
  """Random access to the clips of one split: `reader[index]`."""

  def __init__(
    self, corpus_dir: str | os.PathLike, split: str, num_channels: int = 1
  ):
    """Opens a prepared corpus.

    Args:
      corpus_dir: the corpus.
      split: of it.
      num_channels: of the waveforms; see `files.as_channels`.

    Raises:
      UserError: if the corpus or the split is missing.
    """
    builder = _builder(corpus_dir)
    if split not in builder.info.splits:
      raise errors.UserError(
        f"split {split!r} of {corpus_dir}: expected one of "
        f"{sorted(builder.info.splits)}"
      )
    self._records = builder.as_data_source(split)
    self._num_channels = num_channels

  def __len__(self) -> int:
    return len(self._records)

  def captions(self, index: int) -> tuple[str, ...]:
    """Captions of a clip, without decoding its audio."""
    return tuple(_text(text) for text in self._records[index]["captions"])

  def texts(self, index: int) -> Texts:
    """Texts of a clip, without decoding its audio."""
    record = self._records[index]
    # Not all corpora store titles and names of playlists.
    kinds = ("captions", "aspects", "titles", "playlists")
    return Texts(
      clip_id=_text(record["id"]),
      work_id=_text(record["work_id"]),
      **{kind: tuple(map(_text, record.get(kind, ()))) for kind in kinds},
    )

  def clip_id(self, index: int) -> str:
    """Id of a clip, without decoding its audio."""
    return _text(self._records[index]["id"])

  def record(self, index: int) -> Record:
    """A clip whose audio is not decoded."""
    record = self._records[index]
    return Record(
      clip_id=_text(record["id"]),
      work_id=_text(record["work_id"]),
      captions=tuple(_text(text) for text in record["captions"]),
      audio=bytes(record["audio"]),
    )

  def __getitem__(self, index: int) -> Clip:
    record = self.record(index)
    waveform, rate = files.decode_audio(
      record.audio, mono=self._num_channels == 1
    )
    waveform = files.as_channels(waveform, self._num_channels)
    return Clip(
      clip_id=record.clip_id,
      work_id=record.work_id,
      captions=record.captions,
      waveform=waveform,
      sample_rate_hz=rate,
    )

  def batches(
    self, start: int, end: int, batch_size: int
  ) -> Iterator[list[Clip]]:
    """Clips `[start, end)` in groups, as `groups` makes them."""
    return self.groups(range(start, end), batch_size)

  def groups(
    self, indices: Sequence[int], batch_size: int
  ) -> Iterator[list[Clip]]:
    """Clips in groups of equal length and rate.

    Yields:
      Neighbours in `indices` that can be stacked, at most `batch_size`.
    """
    group: list[Clip] = []
    for index in indices:
      clip = self[index]
      fits = group and (
        len(clip.waveform) == len(group[0].waveform)
        and clip.sample_rate_hz == group[0].sample_rate_hz
      )
      if group and (not fits or len(group) == batch_size):
        yield group
        group = []
      group.append(clip)
    if group:
      yield group
