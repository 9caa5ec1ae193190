# SPDX-License-Identifier: Apache-2.0
"""A thread that notices what the loop cannot: stalls, and peers that failed.

Where no step ends for long, the stacks of all threads go to standard error
and to `<model_dir>/stalls/`; where that lasts, the process ends with exit code
42 and names the hosts that hold the others up.
"""

import faulthandler
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable

import jax
from absl import logging

from musiclm_jax.core import errors
from musiclm_jax.training import agreement, distributed

# Parts of the work in which a process waits for the others.
_TOGETHER = ("step", "compile", "checkpoint", "evaluation")
_STALLED = "stalled"


class Watchdog:
  """Use as a context around the loop; call `beat` after each piece of work."""

  def __init__(
    self,
    model_dir: str | os.PathLike,
    part: Callable[[], str],
    warn_secs: float,
    exit_secs: float,
  ):
    """Prepares; the thread starts with the context.

    Args:
      model_dir: stacks go to its `stalls/`.
      part: says which part of the work the loop is in.
      warn_secs: without a beat for so long, stacks are written; 0 never.
      exit_secs: without a beat for so long, the process ends; 0 never.
    """
    self._directory = pathlib.Path(model_dir) / "stalls"
    self._part = part
    self._warn_secs, self._exit_secs = warn_secs, exit_secs
    self._step = 0
    self._idle_secs = 0.0
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self) -> "Watchdog":
    self._thread.start()
    return self

  def __exit__(self, *unused) -> None:
    self._stop.set()
    self._thread.join(timeout=10)

  def beat(self, step: int) -> None:
    """Says that work goes on, after `step` steps."""
    self._step = step
    self._idle_secs = 0.0

  def _watch(self) -> None:
    times = [secs for secs in (self._warn_secs, self._exit_secs) if secs]
    tick = min([1.0, *(secs / 4 for secs in times)])
    last, warned, next_poll = time.monotonic(), False, 0.0
    while not self._stop.wait(tick):
      now = time.monotonic()
      # While the whole process is suspended nothing stalls: a gap between
      # two looks counts as no more than two ticks.
      self._idle_secs += min(now - last, 2 * tick)
      last = now
      warned = warned and self._idle_secs >= self._warn_secs
      if self._warn_secs and self._idle_secs >= self._warn_secs and not warned:
        warned = True
        self._warn()
      if self._exit_secs and self._idle_secs >= self._exit_secs:
        self._give_up(self._culprits())
      if distributed.is_multi_process() and now >= next_poll:
        next_poll = now + distributed.poll_secs()
        said = distributed.reported_failure()
        if said and not said.startswith(f"process {jax.process_index()} "):
          self._give_up(said)

  def _warn(self) -> None:
    logging.warning(
      "no progress for %.0f s after step %d, in %s: stacks follow",
      self._idle_secs,
      self._step,
      self._part(),
    )
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    self._directory.mkdir(parents=True, exist_ok=True)
    name = f"process_{jax.process_index()}_step_{self._step}.txt"
    with (self._directory / name).open("w") as file:
      faulthandler.dump_traceback(file=file, all_threads=True)
    agreement.say(_STALLED, self._part())

  def _culprits(self) -> str:
    """Names those that are stuck in work of their own."""
    text = (
      f"stalled for {self._idle_secs:.0f} s after step {self._step} in "
      f"{self._part()}"
    )
    parts = agreement.said_by_all(_STALLED)
    alone = {i: part for i, part in parts.items() if part not in _TOGETHER}
    return text + "".join(
      f"; process {index} is stuck in {part}" for index, part in alone.items()
    )

  def _give_up(self, message: str) -> None:
    """Ends the process from this thread: the main one may never return."""
    print(f"musiclm: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    distributed.leave(errors.RetryError.exit_code, message, 10)
    os._exit(errors.RetryError.exit_code)
