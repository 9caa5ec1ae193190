# SPDX-License-Identifier: Apache-2.0
"""Runs a function in a forked child: what it starts ends with it.

Modules are imported once, in the parent; a child has jax to itself. The
parent must not have used a device: threads do not survive a fork.
"""

import os
import pickle
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any


def start(function: Callable[..., Any], *args: Any) -> tuple[int, int, str]:
  """Forks a child that calls `function`; pass what it returns to `finish`."""
  scratch = tempfile.mkdtemp(prefix="musiclm_child_")
  sys.stdout.flush()
  sys.stderr.flush()
  reader, writer = os.pipe()
  with warnings.catch_warnings():
    # jax warns of threads; there are none before a backend exists.
    warnings.simplefilter("ignore")
    child = os.fork()
  if child:
    os.close(writer)
    return child, reader, scratch
  os.close(reader)
  # Its temporary files go with it, also those that a thread still writes.
  tempfile.tempdir = scratch
  try:
    answer = (True, function(*args))
  except BaseException as error:
    answer = (False, error)
  try:
    data = pickle.dumps(answer)
  except Exception:
    data = pickle.dumps((False, RuntimeError(str(answer[1]))))
  with os.fdopen(writer, "wb") as file:
    file.write(data)
  os._exit(0)


def finish(child: int, reader: int, scratch: str) -> Any:
  """The result of a child, once it has one.

  Raises:
    Whatever the function raised; RuntimeError if the child was killed.
  """
  with os.fdopen(reader, "rb") as file:
    data = file.read()
  _, status = os.waitpid(child, 0)
  shutil.rmtree(scratch, ignore_errors=True)
  if not data:
    raise RuntimeError(f"a child process ended with status {status}")
  good, value = pickle.loads(data)
  if not good:
    raise value
  return value


def call(function: Callable[..., Any], *args: Any) -> Any:
  """Calls `function` in a child."""
  return finish(*start(function, *args))


def call_all(
  function: Callable[..., Any],
  arguments: list[tuple[Any, ...]],
  num_parallel: int = 2,
) -> list[Any]:
  """Calls `function` with each arguments; exceptions are among the results."""
  results: list[Any] = [None] * len(arguments)
  for first in range(0, len(arguments), num_parallel):
    group = range(first, min(first + num_parallel, len(arguments)))
    running = [(i, start(function, *arguments[i])) for i in group]
    for i, handle in running:
      try:
        results[i] = finish(*handle)
      except Exception as error:
        results[i] = error
  return results
