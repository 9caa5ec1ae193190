# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all, whoever is killed when."""

import contextlib
import os
import pathlib
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from typing import BinaryIO

from musiclm_jax.core import errors

SCRATCH = ".writing"


@contextlib.contextmanager
def written(
  path: str | os.PathLike, mode: int | None = None
) -> Iterator[BinaryIO]:
  """A file for bytes that takes its place at `path` when the block ends.

  Any number of processes may write the same path at once; the last one stays.

  Args:
    path: its folder must exist. Where it is a link, the file it leads to is
      written.
    mode: permissions; by default those of the file that is there, or of any
      new file.

  Yields:
    The file, which can be read too.

  Raises:
    OSError: naming `path`, of a full disk say; nothing is left then.
  """
  path = pathlib.Path(os.path.realpath(path))
  scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}{SCRATCH}")
  flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
  handle = os.open(scratch, flags, 0o666 if mode is None else mode)
  try:
    with errors.naming(path), os.fdopen(handle, "w+b") as file:
      yield file
    if mode is None:
      with contextlib.suppress(FileNotFoundError):
        os.chmod(scratch, stat.S_IMODE(path.stat().st_mode))
    os.replace(scratch, path)
  except BaseException:
    # Gone already where another process took it for abandoned.
    scratch.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def written_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A folder that takes its place at `path` when the block ends.

  For one process at a time: what another has left half-written is removed.

  Args:
    path: replaced when it exists; the folders above are made if needed.

  Yields:
    An empty folder beside it, to write to; it is removed if the block fails.
  """
  path = pathlib.Path(path)
  scratch = path.with_name(path.name + SCRATCH)
  shutil.rmtree(scratch, ignore_errors=True)
  scratch.mkdir(parents=True)
  try:
    yield scratch
  except BaseException:
    shutil.rmtree(scratch, ignore_errors=True)
    raise
  # From here on the new content is never removed: the old may be gone.
  if path.exists():
    shutil.rmtree(path)
  scratch.rename(path)


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


def write_text(
  path: str | os.PathLike, text: str, mode: int | None = None
) -> None:
  """Writes UTF-8 text as `written` does; the folder is made if needed."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with written(path, mode) as file:
    file.write(text.encode("utf-8"))
