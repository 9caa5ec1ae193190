# SPDX-License-Identifier: Apache-2.0
"""A folder of MuLan embeddings of audio files that can be asked.

`index.json` says which MuLan made it; `part-*.npz` hold files and their
vectors. Parts are written whole, so a killed job goes on behind the last one,
and are read one at a time, so asking takes the memory of one.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from musiclm_jax.core import atomic_files, errors

FORMAT_VERSION = 1
_HEADER = "index.json"
_ARRAYS = (
  "paths",
  "sizes",
  "times_ns",
  "file_index",
  "starts_secs",
  "embeddings",
)


class FileEmbedding(NamedTuple):
  """One audio file.

  Attributes:
    path: absolute.
    size: in bytes when it was read.
    time_ns: of its last change then.
    starts_secs: float32 `[rows]`.
    embeddings: float32 `[rows, dim]`, unit length.
  """

  path: str
  size: int
  time_ns: int
  starts_secs: np.ndarray
  embeddings: np.ndarray


class Hit(NamedTuple):
  """A file that was found.

  Attributes:
    path: absolute.
    score: cosine of the query with the file's nearest vector.
    start_secs: where the window of that vector starts; 0 for whole files.
  """

  path: str
  score: float
  start_secs: float


@dataclasses.dataclass(frozen=True)
class IndexConfig:
  """What an index holds.

  Attributes:
    fingerprint: of the MuLan that made it.
    dim: of the vectors.
    by_window: a vector per window of a file, not one per file.
    window_secs: audio of a window.
  """

  fingerprint: str
  dim: int
  by_window: bool
  window_secs: float


def _save(path: pathlib.Path, **arrays: np.ndarray) -> None:
  """Writes an .npz; it appears whole or not at all."""
  with atomic_files.written(path) as file:
    np.savez(file, **arrays)


class AudioIndex:
  """An index on disk.

  Attributes:
    directory: of the index.
    config: what it holds.
    skipped: path and reason of each file that could not be read.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    config: IndexConfig,
    skipped: Sequence[dict[str, str]] = (),
  ):
    """Use `open` or `create`."""
    self.directory, self.config = directory, config
    self.skipped = list(skipped)

  @classmethod
  def open(cls, directory: str | os.PathLike) -> "AudioIndex":
    """Opens an index.

    Raises:
      UserError: if there is none or it is damaged.
    """
    directory = pathlib.Path(directory)
    path = directory / _HEADER
    if not path.is_file():
      raise errors.UserError(
        f"no index at {directory}: {_HEADER} is missing; expected a folder "
        "that `musiclm embed AUDIO --output=DIR` wrote"
      )
    try:
      header = json.loads(path.read_text())
      version, skipped = header["format_version"], header["skipped"]
      config = IndexConfig(**header["config"])
      _check_header(config, skipped)
    except (ValueError, KeyError, TypeError) as error:
      raise errors.UserError(f"damaged index at {path}: {error!r}") from error
    if version != FORMAT_VERSION:
      raise errors.UserError(
        f"index at {directory} has format_version={version}: expected "
        f"{FORMAT_VERSION}"
      )
    return cls(directory, config, skipped)

  @classmethod
  def create(
    cls, directory: str | os.PathLike, config: IndexConfig
  ) -> "AudioIndex":
    """A new index, or the one that is there, to add files to.

    What a killed process left half-written is removed.

    Raises:
      UserError: if the one there is of another MuLan (naming both) or kind, or
        the folder holds something else.
    """
    directory = pathlib.Path(directory)
    if directory.is_dir():
      for leftover in directory.glob(f".*{atomic_files.SCRATCH}"):
        leftover.unlink(missing_ok=True)
    if (directory / _HEADER).is_file():
      index = cls.open(directory)
      index.check_fingerprint(config.fingerprint)
      if index.config != config:
        raise errors.UserError(
          f"index at {directory} was made with {index.config}: expected "
          f"{config}; name another folder"
        )
      return index
    if directory.exists() and (
      not directory.is_dir() or any(directory.iterdir())
    ):
      raise errors.UserError(
        f"{directory} is there and is no index: expected a new or empty folder"
      )
    directory.mkdir(parents=True, exist_ok=True)
    index = cls(directory, config)
    index.write_header()
    return index

  def check_fingerprint(self, fingerprint: str) -> None:
    """Raises UserError, naming both, if another MuLan made this index."""
    if fingerprint != self.config.fingerprint:
      raise errors.UserError(
        f"index at {self.directory} was made with the MuLan "
        f"{self.config.fingerprint}, the one given is {fingerprint}: their "
        "vectors do not compare"
      )

  def write_header(self) -> None:
    """Writes `index.json` with what was skipped."""
    header = {
      "format_version": FORMAT_VERSION,
      "config": dataclasses.asdict(self.config),
      "skipped": self.skipped,
    }
    with atomic_files.written(self.directory / _HEADER) as file:
      file.write((json.dumps(header, indent=2) + "\n").encode())

  def _part_paths(self) -> list[pathlib.Path]:
    return sorted(self.directory.glob("part-*.npz"))

  def _parts(self) -> Iterator[tuple[pathlib.Path, dict[str, np.ndarray]]]:
    """Path and arrays of each part.

    Raises:
      UserError: if one is damaged.
    """
    for path in self._part_paths():
      try:
        with np.load(path, allow_pickle=False) as file:
          part = {name: file[name] for name in _ARRAYS}
        _check_part(part, self.config.dim)
      except Exception as error:  # numpy and zipfile raise many kinds
        raise errors.UserError(
          f"damaged part of an index at {path}: {error}; delete it, and "
          "`musiclm embed` makes it again"
        ) from error
      yield path, part

  def known(self) -> set[str]:
    """Paths of the files that are in it and have not changed since.

    Files that have changed or are gone are taken out.
    """
    known = set()
    for path, part in self._parts():
      keep = np.array(
        [
          _is_unchanged(name, size, time_ns)
          for name, size, time_ns in zip(
            part["paths"], part["sizes"], part["times_ns"]
          )
        ],
        bool,
      )
      known.update(part["paths"][keep].tolist())
      if not keep.any():
        path.unlink()
      elif not keep.all():
        rows = keep[part["file_index"]]
        numbers = np.cumsum(keep) - 1
        changed = {name: part[name][keep] for name in _ARRAYS[:3]}
        changed |= {name: part[name][rows] for name in _ARRAYS[4:]}
        _save(path, file_index=numbers[part["file_index"][rows]], **changed)
    return known

  def add(self, found: Sequence[FileEmbedding]) -> None:
    """Writes files as one more part."""
    if not found:
      return
    paths = self._part_paths()
    number = int(paths[-1].stem.split("-")[1]) + 1 if paths else 0
    counts = [len(one.embeddings) for one in found]
    _save(
      self.directory / f"part-{number:06d}.npz",
      paths=np.array([one.path for one in found]),
      sizes=np.array([one.size for one in found], np.int64),
      times_ns=np.array([one.time_ns for one in found], np.int64),
      file_index=np.repeat(np.arange(len(found)), counts),
      starts_secs=np.concatenate([one.starts_secs for one in found]),
      embeddings=np.concatenate([one.embeddings for one in found]),
    )

  def count(self) -> tuple[int, int]:
    """Files and vectors."""
    files, rows = 0, 0
    for _, part in self._parts():
      files, rows = files + len(part["paths"]), rows + len(part["file_index"])
    return files, rows

  def search(self, query: np.ndarray, top_k: int) -> list[Hit]:
    """The files whose vectors have the highest cosine with a query, exactly.

    Args:
      query: float `[dim]`, not zero.
      top_k: most files; each counts with its nearest vector.

    Returns:
      Nearest first; equal scores by path.

    Raises:
      UserError: if a part is damaged or `top_k` is not positive.
      ValueError: if the query has another shape.
    """
    if top_k < 1:
      raise errors.UserError(f"top_k={top_k}: expected a positive number")
    query = np.asarray(query, np.float32)
    if query.shape != (self.config.dim,):
      raise ValueError(f"query of shape {query.shape}: [{self.config.dim}]")
    query = query / max(np.linalg.norm(query), 1e-12)
    best: list[Hit] = []
    for _, part in self._parts():
      scores = part["embeddings"] @ query
      # Rows by file, the highest score of each first.
      order = np.lexsort((-scores, part["file_index"]))
      _, first = np.unique(part["file_index"][order], return_index=True)
      rows = order[first]
      if len(rows) > top_k:
        nearest = np.partition(scores[rows], -top_k)[-top_k]
        rows = rows[scores[rows] >= nearest]
      best += [
        Hit(
          str(part["paths"][part["file_index"][row]]),
          float(scores[row]),
          float(part["starts_secs"][row]),
        )
        for row in rows
      ]
      best.sort(key=lambda hit: (-hit.score, hit.path))
      del best[top_k:]
    return best


def _check_header(config: IndexConfig, skipped: Any) -> None:
  """Raises TypeError or ValueError for what `write_header` does not write."""
  if not isinstance(config.fingerprint, str) or type(config.dim) is not int:
    raise TypeError(f"fingerprint or dim of {config}")
  window = config.window_secs
  if type(config.by_window) is not bool or not isinstance(window, (int, float)):
    raise TypeError(f"by_window or window_secs of {config}")
  if config.dim < 1 or not window > 0:
    raise ValueError(f"dim or window_secs of {config}")
  if not isinstance(skipped, list) or not all(
    isinstance(one, dict) and "path" in one for one in skipped
  ):
    raise TypeError(f"skipped={skipped!r}")


def _check_part(part: dict[str, np.ndarray], dim: int) -> None:
  """Raises ValueError for arrays that do not belong together."""
  num_files, num_rows = len(part["paths"]), len(part["embeddings"])
  expected = {
    "paths": (num_files,),
    "sizes": (num_files,),
    "times_ns": (num_files,),
    "file_index": (num_rows,),
    "starts_secs": (num_rows,),
    "embeddings": (num_rows, dim),
  }
  kinds = {"paths": "U", "starts_secs": "f", "embeddings": "f"}
  for name, shape in expected.items():
    found = part[name]
    if found.shape != shape or found.dtype.kind != kinds.get(name, "i"):
      raise ValueError(f"{name} is {found.dtype} {found.shape}")
  places = part["file_index"]
  if num_rows and not 0 <= places.min() <= places.max() < num_files:
    raise ValueError(f"file_index of {num_files} files goes to {places.max()}")


def _is_unchanged(path: str, size: int, time_ns: int) -> bool:
  try:
    found = os.stat(path)
  except OSError:
    return False
  return (found.st_size, found.st_mtime_ns) == (int(size), int(time_ns))


def describe(index: AudioIndex) -> dict[str, Any]:
  """Numbers of an index, for a line or a page."""
  num_files, num_vectors = index.count()
  return {
    "num_files": num_files,
    "num_vectors": num_vectors,
    "by_window": index.config.by_window,
    "fingerprint": index.config.fingerprint,
  }
