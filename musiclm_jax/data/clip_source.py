# SPDX-License-Identifier: Apache-2.0
"""A seqio data source of clips: positions in; waveforms and texts out.

Clips of prepared TFDS corpora, decoded and resampled when they are read.
"""

import io
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import soxr
import tensorflow_datasets as tfds

from musiclm_jax.audio import files
from musiclm_jax.core import errors
from musiclm_jax.data import example_order, features, sources, text_kinds

CORPUS_INFO = "dataset_info.json"


def corpus_builder(directory: str | os.PathLike) -> tfds.core.DatasetBuilder:
  """The TFDS builder of a prepared corpus.

  Raises:
    UserError: if the directory holds no prepared corpus.
  """
  path = pathlib.Path(directory)
  if not (path / CORPUS_INFO).is_file():
    raise errors.UserError(
      f"no prepared corpus at {path}: {CORPUS_INFO} is missing; make one "
      "with `musiclm prepare`"
    )
  try:
    return tfds.builder_from_directory(path)
  except Exception as error:  # TFDS raises many kinds for damaged metadata
    raise errors.UserError(f"damaged corpus at {path}: {error}") from error


def decode_audio(
  content: bytes, sample_rate_hz: int, num_channels: int = 1
) -> np.ndarray:
  """An audio file's bytes to int16 samples at `sample_rate_hz`.

  Args:
    content: of the file.
    sample_rate_hz: wanted.
    num_channels: wanted; see `files.as_channels`.

  Returns:
    `[samples]` of one channel, else `[samples, channels]`.

  Raises:
    ValueError: if it cannot be decoded.
  """
  try:
    samples, rate = soundfile.read(
      io.BytesIO(content), dtype="int16", always_2d=True
    )
  except soundfile.LibsndfileError as error:
    raise ValueError(error.error_string) from error
  if samples.shape[1] == num_channels and rate == sample_rate_hz:
    return samples[:, 0] if num_channels == 1 else samples
  waveform = files.as_channels(samples.astype(np.float32), num_channels)
  if rate != sample_rate_hz:
    waveform = soxr.resample(waveform, rate, sample_rate_hz)
  return np.clip(np.round(waveform), -32768, 32767).astype(np.int16)


class _Clips:
  """Records of one split of a corpus; decoded clips are kept up to a limit."""

  def __init__(self, directory: str, split: str, max_bytes: int):
    self.directory = directory
    self._records = corpus_builder(directory).as_data_source(split)
    self._max_bytes = max_bytes
    self._num_bytes = 0
    self._kept: dict[int, tuple[np.ndarray, dict[str, np.ndarray]]] = {}
    self._numbers: dict[tuple[int, str], float] = {}
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._records)

  @property
  def num_kept_bytes(self) -> int:
    """Bytes of decoded clips held in memory."""
    return self._num_bytes

  def clip_id(self, index: int) -> str:
    return _to_str(self._records[index]["id"])

  def number(self, index: int, feature: str) -> float:
    """A feature of a clip that is one number; kept once it was read."""
    found = self._numbers.get((index, feature))
    if found is None:
      found = float(self._records[index][feature])
      self._numbers[index, feature] = found
    return found

  def get(
    self, index: int, sample_rate_hz: int, num_channels: int
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(int16 samples, texts as bytes by feature) of one clip."""
    kept = self._kept.get(index)
    if kept is not None:
      return kept
    record = self._records[index]
    try:
      samples = decode_audio(record["audio"], sample_rate_hz, num_channels)
    except ValueError as error:
      raise errors.UserError(
        f"clip {_to_str(record['id'])!r} of corpus {self.directory}: its audio "
        f"cannot be decoded ({error})"
      ) from error
    # Corpora differ in which of these they store.
    texts = {
      name: np.array([_to_bytes(x) for x in record.get(name, ())], np.bytes_)
      for name in features.TEXT_FEATURES.values()
    }
    clip = samples, texts
    with self._lock:
      if self._num_bytes + samples.nbytes <= self._max_bytes:
        self._num_bytes += samples.nbytes
        self._kept[index] = clip
    return clip


def _to_bytes(text: Any) -> bytes:
  return text.encode() if isinstance(text, str) else bytes(text)


def _to_str(text: Any) -> str:
  return text if isinstance(text, str) else bytes(text).decode()


class ClipSource(sources.IndexedSource):
  """Decoded clips of TFDS corpora: `waveform` and `captions`."""

  def __init__(
    self,
    corpus_dirs: Sequence[str],
    sample_rate_hz: int,
    weights: Sequence[float] = (),
    needs_captions: bool = False,
    max_ram_bytes: int = 1 << 28,
    num_threads: int = 4,
    kinds: Sequence[str] = ("caption",),
    all_texts: bool = False,
    num_channels: int = 1,
  ):
    """Opens corpora.

    Args:
      corpus_dirs: prepared corpora.
      sample_rate_hz: clips are resampled to it when they are read.
      weights: share of each corpus, see `sources.IndexedSource`.
      needs_captions: a clip without a text of `kinds` is an error.
      max_ram_bytes: decoded clips (int16) kept in memory, per corpus.
      num_threads: reader threads.
      kinds: some of `text_kinds.KINDS`.
      all_texts: give all texts, not only captions.
      num_channels: of the waveforms, whatever the corpora have; see
        `files.as_channels`.
    """
    self._kinds = tuple(kinds)
    self._sample_rate_hz = sample_rate_hz
    self._num_channels = num_channels
    self._needs_captions = needs_captions
    self._max_ram_bytes = max_ram_bytes
    signature = features.clip(num_channels, all_texts)
    super().__init__(corpus_dirs, signature, weights, num_threads)

  def split_sizes(self, directory: str) -> dict[str, int]:
    splits = corpus_builder(directory).info.splits
    return {name: info.num_examples for name, info in splits.items()}

  def open_records(self, directory: str, split: str) -> _Clips:
    return _Clips(directory, split, self._max_ram_bytes)

  def read(self, records: _Clips, index: int) -> dict[str, np.ndarray]:
    samples, texts = records.get(
      index, self._sample_rate_hz, self._num_channels
    )
    if self._needs_captions:
      of_kind = {k: texts[name] for k, name in features.TEXT_FEATURES.items()}
      if not any(text_kinds.available(of_kind, kind) for kind in self._kinds):
        raise errors.UserError(
          f"clip {records.clip_id(index)!r} of corpus {records.directory} has "
          f"no text of {' or '.join(self._kinds)}: expected at least 1"
        )
    waveform = samples.astype(np.float32) / np.float32(32768.0)
    return {"waveform": waveform, **texts}

  def describe(self, split: str, position: int) -> str:
    """Names the clip at `position` by its id."""
    records = self.records(split)
    order = example_order.ExampleOrder([len(entry) for entry in records], 0)
    corpus, index = order.corpus_of(position)
    return (
      f"clip {records[corpus].clip_id(index)!r} of "
      + (self.directories[corpus])
    )
