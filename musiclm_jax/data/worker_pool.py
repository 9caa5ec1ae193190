# SPDX-License-Identifier: Apache-2.0
"""Work spread over child processes: jobs flow in, results flow out.

Unlike multiprocessing, a child neither imports the parent's main module again
(which may cost seconds of TensorFlow) nor is it forked from a process with
threads; jobs may live in packages that only the parent knows how to find.
"""

import os
import pathlib
import pickle
import queue
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

_PACKAGE_PARENT = pathlib.Path(__file__).resolve().parents[2]


def default_num_processes() -> int:
  """CPU cores this process may use."""
  return len(os.sched_getaffinity(0))


def register_package(name: str, path: list[str]) -> None:
  """Makes `name` importable as a package whose modules lie in `path`."""
  if name not in sys.modules:
    package = types.ModuleType(name)
    package.__path__ = list(path)
    # TFDS looks for files beside a builder's package.
    package.__file__ = os.path.join(path[0], "__init__.py")
    sys.modules[name] = package


def run(
  function: Callable[[Any], Any], jobs: Iterable[Any], num_processes: int
) -> Iterator[tuple[int, Any]]:
  """Applies `function` to every job, in any order.

  Args:
    function: of a module (not a lambda or a nested function).
    jobs: picklable arguments.
    num_processes: child processes; up to 1 runs in this process.

  Yields:
    (index of the job, result), as they are finished.

  Raises:
    RuntimeError: if a job raised, with its traceback, or a child died.
  """
  jobs = list(jobs)
  num_processes = min(num_processes, len(jobs))
  if num_processes <= 1:
    for index, job in enumerate(jobs):
      yield index, function(job)
    return
  waiting: queue.SimpleQueue = queue.SimpleQueue()
  done: queue.SimpleQueue = queue.SimpleQueue()
  for item in enumerate(jobs):
    waiting.put(item)
  children = [_start_child(function) for _ in range(num_processes)]
  for child in children:
    threading.Thread(
      target=_feed, args=(child, function, waiting, done), daemon=True
    ).start()
  try:
    for _ in jobs:
      index, result, error = done.get()
      if error is not None:
        raise RuntimeError(f"job {index} of {function.__name__}: {error}")
      yield index, result
  finally:
    for child in children:
      child.kill()
      child.wait()


def _start_child(function: Callable[[Any], Any]) -> subprocess.Popen:
  environment = dict(os.environ)
  paths = [str(_PACKAGE_PARENT), environment.get("PYTHONPATH", "")]
  environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
  # Each child has a core of its own; more threads only fight for it.
  environment["OMP_NUM_THREADS"] = "1"
  child = subprocess.Popen(
    [sys.executable, "-m", "musiclm_jax.data.worker_pool"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env=environment,
  )
  root = function.__module__.split(".")[0]
  path = list(getattr(sys.modules[root], "__path__", []))
  _send(child.stdin, (root, path))
  return child


def _feed(
  child: subprocess.Popen,
  function: Callable[[Any], Any],
  waiting: queue.SimpleQueue,
  done: queue.SimpleQueue,
) -> None:
  while True:
    try:
      index, job = waiting.get_nowait()
    except queue.Empty:
      return
    try:
      _send(child.stdin, (function, job))
      result, error = pickle.load(child.stdout)
    except (EOFError, OSError, pickle.UnpicklingError) as failure:
      done.put((index, None, f"a worker process died ({failure!r})"))
      return
    except Exception as failure:  # a job that cannot be pickled
      done.put((index, None, repr(failure)))
      return
    done.put((index, result, error))


def _send(stream: BinaryIO, message: Any) -> None:
  pickle.dump(message, stream, protocol=pickle.HIGHEST_PROTOCOL)
  stream.flush()


def _serve() -> None:
  """The child's loop; ends when the parent closes its pipe or dies."""
  inbox = sys.stdin.buffer
  # Results own the real stdout; whatever a library prints goes to stderr.
  outbox = os.fdopen(os.dup(1), "wb")
  os.dup2(2, 1)
  root, path = pickle.load(inbox)
  if path:
    register_package(root, path)
  while True:
    try:
      function, job = pickle.load(inbox)
    except EOFError:
      return
    try:
      reply = (function(job), None)
    except Exception:
      reply = (None, traceback.format_exc())
    _send(outbox, reply)


if __name__ == "__main__":
  try:
    _serve()
  except (KeyboardInterrupt, BrokenPipeError):
    sys.exit(1)
