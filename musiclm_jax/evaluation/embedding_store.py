# SPDX-License-Identifier: Apache-2.0
"""Embeddings of clips on disk: arrays by content, in shards.

What is known of a clip depends on its bytes and on what listened, and on
nothing else, so it is kept by the hash of both. A shard appears by one rename:
a process killed at any moment loses what it had not yet written, a shard at
most. Memory is that of a few shards, whatever the number of clips.
"""

import collections
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import psutil

from musiclm_jax.core import atomic_files, errors

SHARD_SIZE = 256
_HEADER = "store.json"
# Clips are read back in about the order they were written in.
_NUM_HELD = 3


def directory(
  root: str | os.PathLike, about: Mapping[str, Any]
) -> pathlib.Path:
  """Where a store lies below `root`: named by what listened.

  Args:
    root: of all stores.
    about: 'name' and all that changes numbers; JSON-compatible.
  """
  text = json.dumps(about, sort_keys=True)
  mark = hashlib.sha256(text.encode()).hexdigest()[:16]
  return pathlib.Path(root) / f"{about['name']}-{mark}"


class EmbeddingStore:
  """Arrays `[rows, width]` by content key."""

  def __init__(
    self,
    folder: str | os.PathLike,
    about: Mapping[str, Any],
    shard_size: int = SHARD_SIZE,
  ):
    """Opens a store, which need not exist.

    Args:
      folder: of its shards; from `directory`.
      about: as in `directory`.
      shard_size: clips of a shard.

    Raises:
      ValueError: if `shard_size` is below 1.
      UserError: if the store is damaged, or holds what something else heard.
    """
    if shard_size < 1:
      raise ValueError(f"shard_size={shard_size}: expected at least 1")
    self._folder = pathlib.Path(folder)
    self._shard_size = shard_size
    self._pending: dict[str, np.ndarray] = {}
    self._places: dict[str, tuple[pathlib.Path, int]] = {}
    self._held: collections.OrderedDict[pathlib.Path, list[np.ndarray]] = (
      collections.OrderedDict()
    )
    self._folder.mkdir(parents=True, exist_ok=True)
    self._check_header(json.loads(json.dumps(dict(about))))
    # Of shards, whose names are hashes.
    for scratch in self._folder.glob(".[0-9a-f]*.writing"):
      owner = scratch.name.split(".")[-2]
      if not (owner.isdecimal() and psutil.pid_exists(int(owner))):
        scratch.unlink(missing_ok=True)  # Its process was killed.
    for path in sorted(self._folder.glob("*.npz")):
      with _reading(path), np.load(path) as shard:
        names = shard["keys"].tolist()
      for index, key in enumerate(names):
        self._places[key] = (path, index)

  def _check_header(self, about: dict[str, Any]) -> None:
    path = self._folder / _HEADER
    if path.is_file():
      try:
        found = json.loads(path.read_text())
      except ValueError as error:
        raise errors.UserError(f"damaged store at {path}: {error}") from error
      if found != about:
        raise errors.UserError(
          f"{self._folder} holds embeddings of {found}: expected {about}"
        )
      return
    atomic_files.write_text(path, json.dumps(about, indent=2) + "\n")

  def __contains__(self, key: str) -> bool:
    return key in self._places or key in self._pending

  def __len__(self) -> int:
    """Clips on disk."""
    return len(self._places)

  def add(self, key: str, rows: np.ndarray) -> None:
    """Takes a clip; writes a shard when there are enough.

    Args:
      key: of its content.
      rows: float `[rows, width]`.

    Raises:
      ValueError: if the shape is another.
    """
    rows = np.asarray(rows, np.float32)
    if rows.ndim != 2:
      raise ValueError(f"rows of shape {rows.shape}: expected [rows, width]")
    if key in self:
      return
    self._pending[key] = rows
    if len(self._pending) >= self._shard_size:
      self.flush()

  def flush(self) -> None:
    """Writes what has not been written yet.

    Raises:
      OSError: if the disk is full; names the file.
    """
    if not self._pending:
      return
    keys = list(self._pending)
    mark = hashlib.sha256("".join(keys).encode()).hexdigest()[:24]
    path = self._folder / f"{mark}.npz"
    scratch = self._folder / f".{mark}.{os.getpid()}.writing"
    try:
      with errors.naming(path), open(scratch, "wb") as file:
        np.savez(
          file,
          keys=np.array(keys, np.str_),
          counts=np.array([len(rows) for rows in self._pending.values()]),
          rows=np.concatenate(list(self._pending.values())),
        )
        file.flush()
        os.fsync(file.fileno())
      os.replace(scratch, path)
    finally:
      scratch.unlink(missing_ok=True)
    self._places |= {key: (path, index) for index, key in enumerate(keys)}
    self._pending = {}

  def read(self, keys: Sequence[str]) -> Iterator[np.ndarray]:
    """Arrays of clips, in the order of `keys`.

    Yields:
      float32 `[rows, width]`.

    Raises:
      KeyError: if a clip is not on disk.
      UserError: if a shard is damaged.
    """
    for key in keys:
      path, index = self._places[key]
      if path not in self._held:
        self._held[path] = _load(path)
        if len(self._held) > _NUM_HELD:
          self._held.popitem(last=False)
      self._held.move_to_end(path)
      yield self._held[path][index]


def _load(path: pathlib.Path) -> list[np.ndarray]:
  with _reading(path), np.load(path) as shard:
    ends = np.cumsum(shard["counts"])
    return np.split(shard["rows"], ends[:-1])


class _reading:
  """Within it, what a damaged file raises becomes a UserError."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  def __enter__(self) -> None:
    return None

  def __exit__(self, kind, error, trace) -> None:
    import zipfile

    if isinstance(error, (ValueError, KeyError, EOFError, zipfile.BadZipFile)):
      raise errors.UserError(
        f"damaged shard {self._path}: delete it, it is made again ({error})"
      ) from error
