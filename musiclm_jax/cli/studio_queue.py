# SPDX-License-Identifier: Apache-2.0
"""One worker for several visitors: tasks in, one at a time, results by visitor.

A task is of one visitor, runs alone, and its result goes to no other. Nothing
that one task sets, as its seed, is seen by the next.
"""

import dataclasses
import itertools
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from musiclm_jax.core import errors
from musiclm_jax.systems import watched

WAITING, RUNNING, DONE = "waiting", "running", "done"
FAILED, STOPPED = "failed", "stopped"


@dataclasses.dataclass
class Task:
  """What a visitor asked for.

  Attributes:
    number: counts up.
    visitor: whose.
    watcher: how far it is.
    state: one of this module's constants.
    error: one line for the visitor, once it failed.
    result: what was made, once it is done.
  """

  number: int
  visitor: str
  watcher: watched.Watcher
  state: str = WAITING
  error: str = ""
  result: Any = None

  @property
  def is_over(self) -> bool:
    """Whether nothing more will happen."""
    return self.state in (DONE, FAILED, STOPPED)


class Queue:
  """First come, first served, one task per visitor."""

  def __init__(self, max_waiting: int = 16):
    """Starts the worker.

    Args:
      max_waiting: tasks that may wait.

    Raises:
      ValueError: if it is not positive.
    """
    if max_waiting < 1:
      raise ValueError(f"max_waiting={max_waiting}: expected >= 1")
    self._max_waiting = max_waiting
    self._numbers, self._is_closed = itertools.count(), False
    self._pending: list[tuple[Task, Callable[[watched.Watcher], Any]]] = []
    self._running: Task | None = None
    self._changed = threading.Condition()
    self._speed = watched.Speed()
    self._worker = threading.Thread(target=self._work, daemon=True)
    self._worker.start()

  def submit(
    self, visitor: str, work: Callable[[watched.Watcher], Any]
  ) -> Task:
    """Puts work at the end.

    Args:
      visitor: whose.
      work: called by the worker; what it returns is the task's result.

    Raises:
      UserError: if the visitor has a task already, or too many wait.
    """
    with self._changed:
      tasks = [task for task, _ in self._pending]
      if self._running is not None:
        tasks.append(self._running)
      if any(task.visitor == visitor for task in tasks):
        raise errors.UserError(
          "something is being made for you already: cancel it, or wait"
        )
      if len(self._pending) >= self._max_waiting:
        raise errors.UserError(
          f"{len(self._pending)} visitors are waiting: try again later"
        )
      task = Task(next(self._numbers), visitor, watched.Watcher(self._speed))
      self._pending.append((task, work))
      self._changed.notify_all()
    return task

  def num_ahead(self, task: Task) -> int:
    """Tasks that come before one that waits; 0 for any other."""
    with self._changed:
      waiting = [other for other, _ in self._pending]
      if task not in waiting:
        return 0
      return waiting.index(task) + (self._running is not None)

  def stop(self, visitor: str) -> bool:
    """Stops what a visitor asked for, at the next window; whether there was."""
    with self._changed:
      found = [pair for pair in self._pending if pair[0].visitor == visitor]
      for pair in found:
        self._pending.remove(pair)
        pair[0].state = STOPPED
      running = self._running
      if running is not None and running.visitor == visitor:
        running.watcher.is_stopped = True
        found.append(running)
      self._changed.notify_all()
    return bool(found)

  def wait(self, task: Task, secs: float) -> bool:
    """Waits until a task is over, at most so long; whether it is."""
    with self._changed:
      return self._changed.wait_for(lambda: task.is_over, secs)

  def close(self, secs: float = 10.0) -> None:
    """Stops all tasks and the worker."""
    with self._changed:
      self._is_closed = True
      for task, _ in self._pending:
        task.state = STOPPED
      self._pending.clear()
      if self._running is not None:
        self._running.watcher.is_stopped = True
      self._changed.notify_all()
    self._worker.join(secs)

  def _work(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._pending or self._is_closed)
        if self._is_closed:
          return
        task, work = self._pending.pop(0)
        task.state, self._running = RUNNING, task
      state, error, result = DONE, "", None
      try:
        result = work(task.watcher)
      except watched.Stopped:
        state = STOPPED
      except errors.UserError as problem:
        state, error = FAILED, str(problem)
      except Exception as problem:
        traceback.print_exception(problem, file=sys.stderr)
        state, error = FAILED, internal(problem)
      with self._changed:
        task.error, task.result, self._running = error, result, None
        task.state = state
        self._changed.notify_all()


def internal(problem: BaseException) -> str:
  """What a visitor is told of a bug: its kind, and nothing of this machine."""
  return f"internal error ({type(problem).__name__}): see the server's log"
