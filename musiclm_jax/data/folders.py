# SPDX-License-Identifier: Apache-2.0
"""Folders of audio, local or in a bucket: names and waveforms flow out."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from musiclm_jax.audio import files


def to_path(name: str | os.PathLike) -> Any:
  """A pathlib path, or etils' of the same methods for `gs://` and the like."""
  if "://" not in os.fspath(name):
    return pathlib.Path(name)
  from etils import epath

  return epath.Path(name)


def list_names(folder: str | os.PathLike) -> Iterator[str]:
  """All names in a tree, files and folders, relative with forward slashes."""
  root = to_path(folder)
  if isinstance(root, pathlib.Path):
    for path in root.rglob("*"):
      yield path.relative_to(root).as_posix()
    return
  for parent, _, names in root.walk():
    for name in names:
      yield os.path.relpath(os.fspath(parent / name), os.fspath(root))


def read_audio(
  folder: str | os.PathLike,
  file: str,
  sample_rate_hz: int | None = None,
  mono: bool = True,
) -> tuple[np.ndarray, int]:
  """Reads one file of a folder; see `files.read_audio`."""
  path = to_path(folder) / file
  if isinstance(path, pathlib.Path):
    return files.read_audio(path, sample_rate_hz, mono)
  return files.decode_audio(
    path.read_bytes(), sample_rate_hz, mono, os.fspath(path)
  )
