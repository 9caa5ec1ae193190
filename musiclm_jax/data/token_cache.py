# SPDX-License-Identifier: Apache-2.0
"""Token caches: codes of whole clips, written once, read in any order.

A directory of ArrayRecord shards flows in (`data/token_cache_writer.py` writes
it); clips in any order, or the codes of a stage, come out. Needs no TensorFlow.

Layout: `cache.json`, `mulan_codebooks.npy`, `<split>-00000.array_record`, and
beside each shard a `.done.json` marker with its counts.
"""

import bisect
import dataclasses
import json
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module
from safetensors import numpy as safetensors_numpy

from musiclm_jax.core import artifacts, errors, rvq, stages
from musiclm_jax.core import streams as streams_lib

# 2 since long clips are cut into windows. Caches of version 1 hold whole clips
# and are read alike; only an unfinished one cannot be gone on with.
FORMAT_VERSION = 2
_READABLE_VERSIONS = (1, 2)
MULAN = "mulan"
EMBEDDINGS = "mulan_embeddings"
CONFIG_NAME = "cache.json"
CODEBOOKS_NAME = "mulan_codebooks.npy"
_INFO = "info"
_MAX_INT16_CODES = 1 << 15
_STORED_DTYPES = {
  "I16": np.dtype("<i2"),
  "I32": np.dtype("<i4"),
  "F32": np.dtype("<f4"),
}


@dataclasses.dataclass(frozen=True)
class TokenCacheConfig:
  """What a token cache holds and which tokenizers made it.

  Attributes:
    streams: streams of the codes; `frame_rate_hz` 0 only for 'mulan', whose
      codes are computed from window embeddings when a crop is taken. Of
      streams with windows ('melody') those of every `stride_secs` are held.
    fingerprints: tokenizer fingerprint by stream name.
    corpus_dir: the corpus the clips came from.
    mulan_window_secs: seconds under one MuLan window embedding.
    mulan_stride_secs: seconds between starts of two windows.
    shard_size: clips per shard, the most work a killed job repeats.
    acoustic_window_secs: new audio per window of the codec; 0: whole clips.
    semantic_window_secs: audio of a semantic window; 0: whole clips.
    semantic_halo_secs: of it at both ends, context only.
    inputs: mark of the inputs, which changes when they do.
  """

  streams: tuple[streams_lib.TokenStream, ...]
  fingerprints: Mapping[str, str]
  corpus_dir: str = ""
  mulan_window_secs: float = 10.0
  mulan_stride_secs: float = 1.0
  shard_size: int = 64
  acoustic_window_secs: float = 0.0
  semantic_window_secs: float = 0.0
  semantic_halo_secs: float = 0.0
  inputs: str = ""

  def __post_init__(self):
    object.__setattr__(self, "streams", tuple(self.streams))
    names = [stream.name for stream in self.streams]
    if not names or len(set(names)) != len(names):
      raise ValueError(f"streams={names}: expected different names")
    if sorted(self.fingerprints) != sorted(names):
      raise ValueError(
        f"fingerprints={dict(self.fingerprints)}: expected one for each of "
        f"{names}"
      )
    for stream in self.streams:
      if (stream.frame_rate_hz == 0) != (stream.name == MULAN):
        raise ValueError(
          f"frame_rate_hz={stream.frame_rate_hz} of stream {stream.name!r}: "
          f"expected 0 for {MULAN!r} and a positive rate for any other"
        )
    for field in ("mulan_window_secs", "mulan_stride_secs", "shard_size"):
      if not getattr(self, field) > 0:
        raise ValueError(f"{field}={getattr(self, field)}: expected > 0")

  def stream(self, name: str) -> streams_lib.TokenStream:
    """The stream called `name`.

    Raises:
      UserError: if the cache has no such stream.
    """
    for stream in self.streams:
      if stream.name == name:
        return stream
    names = [stream.name for stream in self.streams]
    raise errors.UserError(
      f"stream {name!r}: this token cache has {names}"
      f"{errors.nearest(name, names)}"
    )

  def streams_by_name(self) -> dict[str, streams_lib.TokenStream]:
    """Streams in the form `stages.StageLayout` takes."""
    return {stream.name: stream for stream in self.streams}


@dataclasses.dataclass(frozen=True)
class CachedClip:
  """One clip of a cache.

  Attributes:
    clip_id: id in the corpus.
    arrays: int32 codes `[frames, codebooks]` (0-based, all codebooks) by
      stream name, and `mulan_embeddings` float32 `[windows, embedding]`,
      unit length, if the cache has a MuLan stream.
    work_id: the work it is taken from; clips of a work share it.
    captions: texts that describe it.
  """

  clip_id: str
  arrays: Mapping[str, np.ndarray]
  work_id: str = ""
  captions: tuple[str, ...] = ()


def serialize(clip: CachedClip, config: TokenCacheConfig) -> bytes:
  """A clip as safetensors bytes.

  Raises:
    ValueError: if its arrays do not fit the streams of `config`.
  """
  flat = {}
  for stream in config.streams:
    name = EMBEDDINGS if stream.name == MULAN else stream.name
    if name not in clip.arrays:
      raise ValueError(f"clip {clip.clip_id!r}: array {name!r} is missing")
    array = np.asarray(clip.arrays[name])
    if stream.name == MULAN:
      if array.ndim != 2 or not len(array) or not np.isfinite(array).all():
        raise ValueError(
          f"clip {clip.clip_id!r}: {name} of shape {array.shape}: expected "
          "finite [windows, embedding], at least 1 window"
        )
      flat[name] = np.ascontiguousarray(array, np.float32)
      continue
    if array.ndim != 2 or array.shape[1] != stream.num_codebooks:
      raise ValueError(
        f"clip {clip.clip_id!r}: {name!r} codes of shape {array.shape}: "
        f"expected [frames, {stream.num_codebooks}]"
      )
    if array.size and not (
      array.min() >= 0 and array.max() < stream.codebook_size
    ):
      raise ValueError(
        f"clip {clip.clip_id!r}: {name!r} codes in [{array.min()}, "
        f"{array.max()}]: expected [0, {stream.codebook_size})"
      )
    is_small = stream.codebook_size <= _MAX_INT16_CODES
    dtype = np.int16 if is_small else np.int32
    flat[name] = np.ascontiguousarray(array, dtype)
  info = {
    "id": clip.clip_id,
    "work_id": clip.work_id,
    "captions": list(clip.captions),
  }
  flat[_INFO] = np.frombuffer(json.dumps(info).encode(), np.uint8)
  return safetensors_numpy.save(flat)


def deserialize(content: bytes) -> CachedClip:
  """The inverse of `serialize`; codes are int32 again."""
  flat = safetensors_numpy.load(content)
  info = json.loads(flat.pop(_INFO).tobytes())
  arrays = {
    name: array if array.dtype == np.float32 else array.astype(np.int32)
    for name, array in flat.items()
  }
  captions = tuple(info["captions"])
  return CachedClip(info["id"], arrays, info["work_id"], captions)


def _stored_arrays(
  content: bytes, names: Sequence[str]
) -> dict[str, np.ndarray]:
  """Views of some arrays of safetensors bytes; nothing is copied."""
  start = 8 + int.from_bytes(content[:8], "little")
  header = json.loads(content[8:start])
  arrays = {}
  for name in names:
    entry = header[name]
    dtype = _STORED_DTYPES[entry["dtype"]]
    begin, end = entry["data_offsets"]
    array = np.frombuffer(
      content, dtype, (end - begin) // dtype.itemsize, start + begin
    )
    arrays[name] = array.reshape(entry["shape"])
  return arrays


def read_header(directory: str | os.PathLike) -> dict[str, Any]:
  """The content of `cache.json`.

  Raises:
    UserError: if it is missing, damaged or of a version unknown here.
  """
  path = pathlib.Path(directory) / CONFIG_NAME
  if not path.is_file():
    raise errors.UserError(
      f"no token cache at {directory}: {CONFIG_NAME} is missing; make one with "
      "`musiclm tokenize`"
    )
  try:
    header = json.loads(path.read_text())
    version = header["format_version"]
  except (ValueError, KeyError) as error:
    raise errors.UserError(f"damaged token cache {path}: {error}") from error
  if version not in _READABLE_VERSIONS:
    raise errors.UserError(
      f"token cache {path} has format_version={version}: expected one of "
      f"{_READABLE_VERSIONS}"
    )
  return header


def read_config(directory: str | os.PathLike) -> TokenCacheConfig:
  """What the cache at `directory` holds.

  Raises:
    UserError: if there is no cache.
  """
  header = read_header(directory)
  return artifacts.config_from_dict(TokenCacheConfig, header["config"])


def check_same_tokenizers(
  directory: str | os.PathLike,
  found: TokenCacheConfig,
  expected: TokenCacheConfig,
) -> None:
  """Raises UserError, printing both sides, unless two caches may be mixed."""
  for name in expected.fingerprints:
    if name not in found.fingerprints:
      raise errors.UserError(
        f"token cache {directory} has streams {sorted(found.fingerprints)}: "
        f"expected {sorted(expected.fingerprints)}"
      )
    artifacts.check_fingerprint(
      f"the {name!r} tokenizer of token cache {directory}",
      found.fingerprints[name],
      expected.fingerprints[name],
    )
  for field in ("streams", "mulan_window_secs", "mulan_stride_secs"):
    if getattr(found, field) != getattr(expected, field):
      raise errors.UserError(
        f"token cache {directory} has {field}={getattr(found, field)}: "
        f"expected {getattr(expected, field)}"
      )


class _Split:
  """Clips of one split by position; threads may read at once."""

  def __init__(self, directory: pathlib.Path, shards: Sequence[Sequence[Any]]):
    self._paths = [directory / name for name, count in shards if count]
    self._ends = np.cumsum([count for _, count in shards if count]).tolist()
    self._readers: dict[int, Any] = {}
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: int) -> CachedClip:
    if not 0 <= index < len(self):
      raise IndexError(f"clip {index} of {len(self)}")
    shard = bisect.bisect_right(self._ends, index)
    first = self._ends[shard - 1] if shard else 0
    # A reader keeps one position for all threads.
    with self._lock:
      content = self._reader(shard).read([index - first])[0]
    return deserialize(content)

  def _reader(self, shard: int) -> Any:
    if shard not in self._readers:
      path = self._paths[shard]
      if not path.is_file():
        raise errors.UserError(f"token cache shard {path} is missing")
      self._readers[shard] = array_record_module.ArrayRecordReader(str(path))
    return self._readers[shard]

  def read_arrays(
    self, indices: Sequence[int], names: Sequence[str]
  ) -> list[dict[str, np.ndarray]]:
    """Some arrays of some clips, as stored: int16 codes stay int16."""
    by_shard: dict[int, list[int]] = {}
    for row, index in enumerate(indices):
      shard = bisect.bisect_right(self._ends, index)
      by_shard.setdefault(shard, []).append(row)
    out: list[Any] = [None] * len(indices)
    for shard, rows in by_shard.items():
      first = self._ends[shard - 1] if shard else 0
      with self._lock:
        contents = self._reader(shard).read([indices[r] - first for r in rows])
      for row, content in zip(rows, contents):
        out[row] = _stored_arrays(content, names)
    return out

  def __iter__(self) -> Iterator[CachedClip]:
    return (self[index] for index in range(len(self)))


class TokenCacheReader:
  """Random access to the clips of a finished cache: `reader[split][index]`.

  Attributes:
    config: what the cache holds.
    sizes: clips by split.
    mulan_codebooks: float32 `[codebooks, codebook_size, embedding]` or None.
  """

  def __init__(self, directory: str | os.PathLike):
    """Opens a cache.

    Raises:
      UserError: if it is missing or was never finished.
    """
    self.directory = pathlib.Path(directory)
    header = read_header(directory)
    self.config = artifacts.config_from_dict(TokenCacheConfig, header["config"])
    self._splits = header["splits"]
    if not self._splits:
      raise errors.UserError(
        f"token cache {directory} is not finished: run the same `musiclm "
        "tokenize` command again"
      )
    self.sizes = {k: v["num_clips"] for k, v in self._splits.items()}
    codebooks = self.directory / CODEBOOKS_NAME
    has_codebooks = codebooks.is_file()
    self.mulan_codebooks = np.load(codebooks) if has_codebooks else None

  def __getitem__(self, split: str) -> _Split:
    if split not in self._splits:
      raise errors.UserError(
        f"split {split!r} of token cache {self.directory}: expected one of "
        f"{sorted(self._splits)}"
      )
    return _Split(self.directory, self._splits[split]["shards"])


def mulan_codes(
  embeddings: np.ndarray,
  codebooks: np.ndarray,
  start_secs: float,
  end_secs: float,
  config: TokenCacheConfig,
  squared_lengths: np.ndarray | None = None,
) -> np.ndarray:
  """MuLan codes of the audio in `[start_secs, end_secs)` (MusicLM sec. 3.2).

  The mean of the windows that lie inside, or the window whose centre is
  nearest if none does, at unit length, then quantized.

  Args:
    embeddings: float32 `[windows, embedding]` of a clip.
    codebooks: float32 `[codebooks, codebook_size, embedding]`.
    start_secs: begin of the crop in the clip.
    end_secs: end of the crop.
    config: window and stride.
    squared_lengths: `rvq.squares(codebooks)`, for callers with many crops.

  Returns:
    int32 `[1, codebooks]`.
  """
  starts = np.arange(len(embeddings)) * config.mulan_stride_secs
  ends = starts + config.mulan_window_secs
  slack = 1e-3  # Seconds; frame arithmetic is not exact.
  inside = (starts >= start_secs - slack) & (ends <= end_secs + slack)
  if inside.any():
    vector = embeddings[inside].mean(axis=0)
  else:
    distance = np.abs((starts + ends) / 2 - (start_secs + end_secs) / 2)
    vector = embeddings[int(distance.argmin())]
  vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
  return rvq.encode(vector[np.newaxis], codebooks, squared_lengths)


def stage_sequences(
  cache_dir: str | os.PathLike, split: str, spec: stages.StageSpec
) -> dict[str, Any]:
  """Codes of every clip that a stage uses, whole and not flattened.

  Args:
    cache_dir: a finished cache.
    split: which clips.
    spec: its segments name the streams.

  Returns:
    `ids` and `work_ids`, lists of str; and for each stream of the stage a
    list of int32 `[frames, codebooks]` with all codebooks of the stream (for
    MuLan `[1, codebooks]` of the whole clip; of a stream with windows those of
    one sequence), all in the same order.
  """
  reader = TokenCacheReader(cache_dir)
  names = list(dict.fromkeys(segment.stream for segment in spec.segments))
  for name in names:
    reader.config.stream(name)
  out: dict[str, Any] = {"ids": [], "work_ids": []}
  out.update({name: [] for name in names})
  for clip in reader[split]:
    out["ids"].append(clip.clip_id)
    out["work_ids"].append(clip.work_id)
    for name in names:
      if name == MULAN:
        embeddings = clip.arrays[EMBEDDINGS]
        codes = mulan_codes(
          embeddings, reader.mulan_codebooks, 0.0, np.inf, reader.config
        )
      else:
        codes = clip.arrays[name]
        stream = reader.config.stream(name)
        if stream.has_windows:
          hop = round(1 / (stream.frame_rate_hz * stream.stride_secs))
          codes = codes[::hop]
      out[name].append(codes)
  return out
