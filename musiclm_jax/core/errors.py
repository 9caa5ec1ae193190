# SPDX-License-Identifier: Apache-2.0
"""Errors that the command line turns into exit codes.

0 done; 1 user error; 42 retry (infrastructure); 143 pre-empted and saved.
"""

import contextlib
from collections.abc import Iterator
from typing import Any


class UserError(ValueError):
  """Bad input from the user: shown as one line, exit code 1."""

  exit_code = 1


class RetryError(RuntimeError):
  """The infrastructure failed; the same command may succeed later."""

  exit_code = 42


class Preempted(RuntimeError):
  """SIGTERM arrived and the state was saved; start again to go on."""

  exit_code = 143


@contextlib.contextmanager
def naming(path: Any) -> Iterator[None]:
  """Within it an OSError that names no file, of a full disk say, names one."""
  try:
    yield
  except OSError as error:
    if error.filename is None:
      error.filename = str(path)
    raise


def nearest(name: str, candidates) -> str:
  """A hint that names the nearest candidate, or '' where none is near."""
  import difflib

  near = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.4)
  return f"; did you mean {near[0]!r}?" if near else ""
