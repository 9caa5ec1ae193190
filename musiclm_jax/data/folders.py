# SPDX-License-Identifier: Apache-2.0
"""Folders of audio, local or in a bucket: names and waveforms flow out."""

import os
import pathlib
from typing import Any

import numpy as np

from musiclm_jax.audio import files


def to_path(name: str | os.PathLike) -> Any:
  """A pathlib path, or etils' of the same methods for `gs://` and the like."""
  if "://" not in os.fspath(name):
    return pathlib.Path(name)
  from etils import epath

  return epath.Path(name)


def list_audio(folder: str | os.PathLike) -> list[str]:
  """Names in a tree that end like audio files; see `files.list_names`."""
  root = to_path(folder)
  if isinstance(root, pathlib.Path):
    return files.list_names(root)
  return sorted(
    os.path.relpath(os.fspath(parent / name), os.fspath(root))
    for parent, _, names in root.walk()
    for name in names
    if files.has_ending(name)
  )


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
