# SPDX-License-Identifier: Apache-2.0
"""A disk with little room left, and what is on it."""

import contextlib
import pathlib
import resource


@contextlib.contextmanager
def room(num_bytes: int):
  """Within it no file grows past `num_bytes`: writing more is an OSError."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(directory) -> dict[str, bytes]:
  """Content by name of all files below a folder."""
  paths = sorted(pathlib.Path(directory).rglob("*"))
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in paths
    if path.is_file()
  }


def told(capfd) -> str:
  """What a verb said on standard error of the disk, which is one line."""
  lines = capfd.readouterr().err.splitlines()
  assert not any("Traceback" in line for line in lines), lines
  (line,) = [line for line in lines if line.startswith("musiclm")]
  assert "File too large" in line, line
  return line
