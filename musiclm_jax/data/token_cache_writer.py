# SPDX-License-Identifier: Apache-2.0
"""Writes token caches shard by shard, resuming after any interruption.

Clips flow in, in the order of the corpus; the shards and `cache.json` that
`data/token_cache.py` reads come out. Which inputs go into which shard is fixed
by arithmetic and a shard appears by one rename, so a killed writer goes on
where it was and no clip is lost or doubled. Needs no TensorFlow.
"""

import dataclasses
import json
import os
import pathlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from musiclm_jax.core import artifacts, errors
from musiclm_jax.data import token_cache


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


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  # Several hosts may write the same file at once.
  scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}.writing")
  scratch.write_text(json.dumps(values, indent=2) + "\n")
  scratch.rename(path)


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
      found = token_cache.read_config(self.directory)
      token_cache.check_same_tokenizers(self.directory, found, config)
      for field in ("corpus_dir", "shard_size"):
        if getattr(found, field) != getattr(config, field):
          raise errors.UserError(
            f"token cache {self.directory} has {field}="
            f"{getattr(found, field)!r}: expected {getattr(config, field)!r}"
          )
      return
    self.directory.mkdir(parents=True, exist_ok=True)
    if token_cache.MULAN in names:
      scratch = (
        self.directory
        / f"{token_cache.CODEBOOKS_NAME}.{uuid.uuid4().hex}.writing"
      )
      with scratch.open("wb") as file:
        np.save(file, np.asarray(mulan_codebooks, np.float32))
      scratch.rename(self.directory / token_cache.CODEBOOKS_NAME)
    _write_json(self.directory / token_cache.CONFIG_NAME, self._header({}))

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

  def pending(
    self, split: str, num_inputs: int, host_index: int = 0, num_hosts: int = 1
  ) -> list[Shard]:
    """Shards this host has still to write."""
    mine = self.shards(split, num_inputs)[host_index::num_hosts]
    return [shard for shard in mine if not self._marker(shard).is_file()]

  def write_shard(
    self,
    shard: Shard,
    clips: Iterable[token_cache.CachedClip],
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
        writer.write(token_cache.serialize(clip, self.config))
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
    _write_json(self.directory / token_cache.CONFIG_NAME, self._header(splits))
    return splits
