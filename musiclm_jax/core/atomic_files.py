# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, whoever is killed when."""

import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import BinaryIO

from musiclm_jax.core import errors

SCRATCH = ".writing"


@contextlib.contextmanager
def written(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """A file for bytes that takes its place at `path` when the block ends.

  Any number of processes may write the same path at once; the last one stays.

  Args:
    path: its folder must exist.

  Raises:
    OSError: naming `path`, of a full disk say; nothing is left then.
  """
  path = pathlib.Path(path)
  handle, scratch = tempfile.mkstemp(
    dir=path.parent, prefix=f".{path.name}.", suffix=SCRATCH
  )
  try:
    with errors.naming(path), os.fdopen(handle, "wb") as file:
      yield file
    os.chmod(scratch, 0o644)  # mkstemp makes files private to the user
    os.replace(scratch, path)
  except BaseException:
    os.unlink(scratch)
    raise


def remove_abandoned(folder: str | os.PathLike, older_than_secs: float) -> None:
  """Removes what SIGKILL left of half-written files in a folder.

  Args:
    folder: looked at without the folders in it.
    older_than_secs: since the last byte; younger files may be another's work.
  """
  newest = time.time() - older_than_secs
  for scratch in pathlib.Path(folder).glob(f".*{SCRATCH}"):
    with contextlib.suppress(FileNotFoundError):
      if scratch.stat().st_mtime < newest:
        scratch.unlink()


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes UTF-8 text as `written` does; the folder is made if needed."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with written(path) as file:
    file.write(text.encode("utf-8"))
