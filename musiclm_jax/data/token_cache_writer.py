# SPDX-License-Identifier: Apache-2.0
"""Writes token caches shard by shard, resuming after any interruption.

Clips flow in, in the order of the corpus; the shards and `cache.json` that
`data/token_cache.py` reads come out. Which inputs go into which shard is fixed
by arithmetic and a shard appears by one rename, so a killed writer goes on
where it was and no clip is lost or doubled. Needs no TensorFlow.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from musiclm_jax.core import artifacts, atomic_files, errors
from musiclm_jax.data import token_cache

_SETTINGS = (
  "corpus_dir",
  "inputs",
  "shard_size",
  "acoustic_window_secs",
  "semantic_window_secs",
  "semantic_halo_secs",
)
_HINTS = {"inputs": "; files were added, removed or changed since it was begun"}


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


def write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  """Writes a file that appears whole."""
  # Several processes may write the same file at once, and one that is done
  # sweeps scratch files away: then it is written again.
  for last in (False, False, True):
    try:
      with atomic_files.written(path) as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())
      return
    except FileNotFoundError:
      if last:
        raise


def _on_disk(path: pathlib.Path, call: Callable[..., Any], *args: Any) -> None:
  """Calls a method of a record writer; what it raises is of the disk.

  Raises:
    RetryError: if there is no room, say.
  """
  try:
    call(*args)
  except RuntimeError as error:
    raise errors.RetryError(
      f"cannot write {path}: {str(error).split(';')[0]}; finished shards are "
      "kept, the same command goes on behind them"
    ) from error


def check_same_settings(
  directory: pathlib.Path, config: token_cache.TokenCacheConfig
) -> None:
  """Raises UserError unless the cache that is there is one of `config`."""
  header = token_cache.read_header(directory)
  found = token_cache.read_config(directory)
  token_cache.check_same_tokenizers(directory, found, config)
  if header["format_version"] != token_cache.FORMAT_VERSION:
    raise errors.UserError(
      f"token cache {directory} was begun by an earlier version "
      f"(format_version={header['format_version']}): it can be read if it is "
      "finished, but not gone on with; give another --output_dir"
    )
  for field in _SETTINGS:
    if getattr(found, field) != getattr(config, field):
      raise errors.UserError(
        f"token cache {directory} has {field}={getattr(found, field)!r}: "
        f"expected {getattr(config, field)!r}{_HINTS.get(field, '')}"
      )


class TokenCacheWriter:
  """Writes a cache shard by shard; start it again after any interruption."""

  def __init__(
    self,
    directory: str | os.PathLike,
    config: token_cache.TokenCacheConfig,
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
    if token_cache.MULAN in names:
      stream = config.stream(token_cache.MULAN)
      shape = (stream.num_codebooks, stream.codebook_size)
      if mulan_codebooks is None or mulan_codebooks.shape[:2] != shape:
        found = None if mulan_codebooks is None else mulan_codebooks.shape
        raise ValueError(
          f"mulan_codebooks of shape {found}: expected {shape} and embedding"
        )
    if (self.directory / token_cache.CONFIG_NAME).is_file():
      check_same_settings(self.directory, config)
      return
    self.directory.mkdir(parents=True, exist_ok=True)
    if token_cache.MULAN in names:
      # To memory first: numpy loses the end of a file that finds no room.
      content = io.BytesIO()
      np.save(content, np.asarray(mulan_codebooks, np.float32))
      path = self.directory / token_cache.CODEBOOKS_NAME
      with atomic_files.written(path) as file:
        file.write(content.getvalue())
    write_json(self.directory / token_cache.CONFIG_NAME, self._header({}))

  def _header(self, splits: Mapping[str, Any]) -> dict[str, Any]:
    return {
      "format_version": token_cache.FORMAT_VERSION,
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

  def is_done(self, shard: Shard) -> bool:
    """Whether a shard is written."""
    return self._marker(shard).is_file()

  def pending(
    self, split: str, num_inputs: int, host_index: int = 0, num_hosts: int = 1
  ) -> list[Shard]:
    """Shards this host has still to write."""
    mine = self.shards(split, num_inputs)[host_index::num_hosts]
    return [shard for shard in mine if not self.is_done(shard)]

  def write_shard(
    self,
    shard: Shard,
    clips: Iterable[token_cache.CachedClip],
    skipped: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
  ) -> int:
    """Writes one shard; it exists only once all of it is written.

    Args:
      shard: one of `pending`.
      clips: the clips of its inputs, in order.
      skipped: ids of inputs that could not be tokenized; a list that a
        generator given as `clips` may still fill.
      details: what else the marker tells of the shard (JSON), likewise.

    Returns:
      The number of clips written.

    Raises:
      ValueError: if clips and skipped inputs are not `end - start` in all.
    """
    path = self.directory / shard.file_name
    # Two processes may write the same shard, where one was thought dead.
    scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}.writing")
    writer = array_record_module.ArrayRecordWriter(str(scratch), "group_size:1")
    count = 0
    try:
      for clip in clips:
        record = token_cache.serialize(clip, self.config)
        _on_disk(path, writer.write, record)
        count += 1
      _on_disk(path, writer.close)
    except BaseException:
      with contextlib.suppress(RuntimeError):
        writer.close()
      scratch.unlink(missing_ok=True)
      raise
    if count + len(skipped) != shard.end - shard.start:
      scratch.unlink(missing_ok=True)
      raise ValueError(
        f"shard {shard.file_name}: {count} clips and {len(skipped)} skipped: "
        f"expected {shard.end - shard.start} in all"
      )
    try:
      scratch.rename(path)
    except FileNotFoundError:
      # Swept away by a process that found all shards done, this one too.
      if self._marker(shard).is_file():
        return count
      raise
    marker = {
      "start": shard.start,
      "end": shard.end,
      "num_clips": count,
      "skipped": list(skipped),
      **(details or {}),
    }
    write_json(self._marker(shard), marker)
    return count

  def markers(
    self, num_inputs: Mapping[str, int]
  ) -> dict[str, list[tuple[Shard, dict[str, Any]]]]:
    """By split, all shards in order with their markers, if all are done.

    Raises:
      UserError: see `finish`.
    """
    found: dict[str, list[tuple[Shard, dict[str, Any]]]] = {}
    for split, total in num_inputs.items():
      found[split] = []
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
        found[split].append((shard, values))
    return found

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
    for split, shards in self.markers(num_inputs).items():
      splits[split] = {
        "num_inputs": num_inputs[split],
        "num_clips": sum(values["num_clips"] for _, values in shards),
        "skipped": [one for _, values in shards for one in values["skipped"]],
        "shards": [
          [shard.file_name, values["num_clips"]] for shard, values in shards
        ],
      }
    write_json(self.directory / token_cache.CONFIG_NAME, self._header(splits))
    return splits
