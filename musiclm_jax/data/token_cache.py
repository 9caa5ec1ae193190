# SPDX-License-Identifier: Apache-2.0
"""Token caches: codes of whole clips, written once, read in any order.

Codes and MuLan window embeddings flow in clip by clip; a directory of
ArrayRecord shards with `cache.json` comes out. Which inputs go into which
shard is fixed by arithmetic and a shard appears by one rename, so a killed
writer goes on where it was and no clip is lost or doubled. Needs no TensorFlow.

Layout: `cache.json`, `mulan_codebooks.npy`, `<split>-00000.array_record`, and
beside each shard a `.done.json` marker with its counts.
"""

import bisect
import dataclasses
import json
import os
import pathlib
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module
from safetensors import numpy as safetensors_numpy

from musiclm_jax.core import artifacts, errors, rvq, stages
from musiclm_jax.core import streams as streams_lib

FORMAT_VERSION = 1
MULAN = "mulan"
EMBEDDINGS = "mulan_embeddings"
CONFIG_NAME = "cache.json"
_CODEBOOKS = "mulan_codebooks.npy"
_INFO = "info"
_MAX_INT16_CODES = 1 << 15


@dataclasses.dataclass(frozen=True)
class TokenCacheConfig:
  """What a token cache holds and which tokenizers made it.

  Attributes:
    streams: streams of the codes; `frame_rate_hz` 0 only for 'mulan', whose
      codes are computed from window embeddings when a crop is taken.
    fingerprints: tokenizer fingerprint by stream name.
    corpus_dir: the corpus the clips came from.
    mulan_window_secs: seconds under one MuLan window embedding.
    mulan_stride_secs: seconds between starts of two windows.
    shard_size: clips per shard, the most work a killed job repeats.
  """

  streams: tuple[streams_lib.TokenStream, ...]
  fingerprints: Mapping[str, str]
  corpus_dir: str = ""
  mulan_window_secs: float = 10.0
  mulan_stride_secs: float = 1.0
  shard_size: int = 64

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


@dataclasses.dataclass(frozen=True)
class Shard:
  """Inputs `[start, end)` of a split, written as one file."""

  split: str
  index: int
  start: int
  end: int

  @property
  def file_name(self) -> str:
    return f"{self.split}-{self.index:05d}.array_record"


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


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  # Several hosts may write the same file at once.
  scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}.writing")
  scratch.write_text(json.dumps(values, indent=2) + "\n")
  scratch.rename(path)


def _read_header(directory: str | os.PathLike) -> dict[str, Any]:
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
  if version != FORMAT_VERSION:
    raise errors.UserError(
      f"token cache {path} has format_version={version}: expected "
      f"{FORMAT_VERSION}"
    )
  return header


def read_config(directory: str | os.PathLike) -> TokenCacheConfig:
  """What the cache at `directory` holds.

  Raises:
    UserError: if there is no cache.
  """
  header = _read_header(directory)
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


class TokenCacheWriter:
  """Writes a cache shard by shard; start it again after any interruption."""

  def __init__(
    self,
    directory: str | os.PathLike,
    config: TokenCacheConfig,
    mulan_codebooks: np.ndarray | None = None,
  ):
    """Starts a cache, or goes on with the one at `directory`.

    Args:
      directory: target.
      config: what is written.
      mulan_codebooks: float32 `[codebooks, codebook_size, embedding]`, needed
        if there is a MuLan stream.

    Raises:
      UserError: if `directory` holds a cache of other tokenizers (both
        fingerprints are printed) or settings.
      ValueError: if the codebooks do not fit the MuLan stream.
    """
    self.directory = pathlib.Path(directory)
    self.config = config
    names = [stream.name for stream in config.streams]
    if MULAN in names:
      stream = config.stream(MULAN)
      shape = (stream.num_codebooks, stream.codebook_size)
      if mulan_codebooks is None or mulan_codebooks.shape[:2] != shape:
        found = None if mulan_codebooks is None else mulan_codebooks.shape
        raise ValueError(
          f"mulan_codebooks of shape {found}: expected {shape} and embedding"
        )
    if (self.directory / CONFIG_NAME).is_file():
      found = read_config(self.directory)
      check_same_tokenizers(self.directory, found, config)
      for field in ("corpus_dir", "shard_size"):
        if getattr(found, field) != getattr(config, field):
          raise errors.UserError(
            f"token cache {self.directory} has {field}="
            f"{getattr(found, field)!r}: expected {getattr(config, field)!r}"
          )
      return
    self.directory.mkdir(parents=True, exist_ok=True)
    if MULAN in names:
      scratch = self.directory / f"{_CODEBOOKS}.{uuid.uuid4().hex}.writing"
      with scratch.open("wb") as file:
        np.save(file, np.asarray(mulan_codebooks, np.float32))
      scratch.rename(self.directory / _CODEBOOKS)
    _write_json(self.directory / CONFIG_NAME, self._header({}))

  def _header(self, splits: Mapping[str, Any]) -> dict[str, Any]:
    return {
      "format_version": FORMAT_VERSION,
      "config": artifacts.config_to_dict(self.config),
      "splits": dict(splits),
    }

  def shards(self, split: str, num_inputs: int) -> list[Shard]:
    """All shards of a split of `num_inputs` clips."""
    size = self.config.shard_size
    return [
      Shard(split, index, start, min(start + size, num_inputs))
      for index, start in enumerate(range(0, num_inputs, size))
    ]

  def _marker(self, shard: Shard) -> pathlib.Path:
    return self.directory / f"{shard.file_name}.done.json"

  def pending(
    self, split: str, num_inputs: int, host_index: int = 0, num_hosts: int = 1
  ) -> list[Shard]:
    """Shards this host has still to write."""
    mine = self.shards(split, num_inputs)[host_index::num_hosts]
    return [shard for shard in mine if not self._marker(shard).is_file()]

  def write_shard(
    self,
    shard: Shard,
    clips: Iterable[CachedClip],
    skipped: Sequence[str] = (),
  ) -> int:
    """Writes one shard; it exists only once all of it is written.

    Args:
      shard: one of `pending`.
      clips: the clips of its inputs, in order.
      skipped: ids of inputs that could not be tokenized; a list that a
        generator given as `clips` may still fill.

    Returns:
      The number of clips written.

    Raises:
      ValueError: if clips and skipped inputs are not `end - start` in all.
    """
    path = self.directory / shard.file_name
    scratch = path.with_name(f"{path.name}.writing")
    writer = array_record_module.ArrayRecordWriter(str(scratch), "group_size:1")
    count = 0
    try:
      for clip in clips:
        writer.write(serialize(clip, self.config))
        count += 1
    except BaseException:
      writer.close()
      scratch.unlink(missing_ok=True)
      raise
    writer.close()
    if count + len(skipped) != shard.end - shard.start:
      scratch.unlink(missing_ok=True)
      raise ValueError(
        f"shard {shard.file_name}: {count} clips and {len(skipped)} skipped: "
        f"expected {shard.end - shard.start} in all"
      )
    scratch.rename(path)
    marker = {
      "start": shard.start,
      "end": shard.end,
      "num_clips": count,
      "skipped": list(skipped),
    }
    _write_json(self._marker(shard), marker)
    return count

  def finish(self, num_inputs: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Records the counts of all splits, which makes the cache readable.

    Args:
      num_inputs: clips by split, as given to `pending`.

    Returns:
      By split: `num_inputs`, `num_clips`, `skipped` ids and `shards`.

    Raises:
      UserError: if a shard is not written yet (by another host perhaps), or
        was written from another number of inputs.
    """
    splits = {}
    for split, total in num_inputs.items():
      num_clips, skipped, names = 0, [], []
      for shard in self.shards(split, total):
        marker = self._marker(shard)
        if not marker.is_file():
          raise errors.UserError(
            f"token cache {self.directory}: shard {shard.file_name} is not "
            "written: run the same command again"
          )
        values = json.loads(marker.read_text())
        if (values["start"], values["end"]) != (shard.start, shard.end):
          raise errors.UserError(
            f"token cache {self.directory}: shard {shard.file_name} holds "
            f"inputs [{values['start']}, {values['end']}): expected "
            f"[{shard.start}, {shard.end}); the corpus has changed"
          )
        num_clips += values["num_clips"]
        skipped += values["skipped"]
        names.append([shard.file_name, values["num_clips"]])
      splits[split] = {
        "num_inputs": total,
        "num_clips": num_clips,
        "skipped": skipped,
        "shards": names,
      }
    _write_json(self.directory / CONFIG_NAME, self._header(splits))
    return splits


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
      if shard not in self._readers:
        path = self._paths[shard]
        if not path.is_file():
          raise errors.UserError(f"token cache shard {path} is missing")
        self._readers[shard] = array_record_module.ArrayRecordReader(str(path))
      content = self._readers[shard].read([index - first])[0]
    return deserialize(content)

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
    header = _read_header(directory)
    self.config = artifacts.config_from_dict(TokenCacheConfig, header["config"])
    self._splits = header["splits"]
    if not self._splits:
      raise errors.UserError(
        f"token cache {directory} is not finished: run the same `musiclm "
        "tokenize` command again"
      )
    self.sizes = {k: v["num_clips"] for k, v in self._splits.items()}
    codebooks = self.directory / _CODEBOOKS
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
  return rvq.encode(vector[np.newaxis], codebooks)


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
    MuLan `[1, codebooks]` of the whole clip), all in the same order.
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
      out[name].append(codes)
  return out
