# SPDX-License-Identifier: Apache-2.0
"""Where the time of a run goes, in a file of JSON lines.

The loop says which part of the work it is in; every second belongs to exactly
one part, so the parts of `<model_dir>/ledger.jsonl` add up to the wall time.
Process 0 writes. Lines: `start` of an attempt, `parts` (seconds since the line
before and the steps done in them), notes such as `restart`, and `end`.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from musiclm_jax.core import errors
from musiclm_jax.training import alarms, distributed

FILE_NAME = "ledger.jsonl"
_PROGRESS_NAME = "ledger.progress"

# Parts of an attempt. 'other' is export and what fits nowhere else.
PARTS = (
  "init",
  "compile",
  "data_wait",
  "step",
  "checkpoint",
  "evaluation",
  "other",
)
# At most this share of the time goes into noting progress.
_PROGRESS_SHARE = 0.01


def process_start() -> float:
  """Unix time at which this process began, its imports included."""
  try:
    import psutil

    return psutil.Process().create_time()
  except ImportError:
    return time.time()


def cause_of(error: BaseException) -> str:
  """Why an attempt ended, in a word or two."""
  if isinstance(error, errors.Preempted):
    return "preempted"
  if isinstance(error, alarms.Diverged):
    return "stopped by an alarm"
  if isinstance(error, FloatingPointError):
    return "not finite"
  if distributed.is_infrastructure(error):
    return "lost a peer or a device"
  return type(error).__name__


class Ledger:
  """The books of one attempt; its clock runs until `close`."""

  def __init__(
    self,
    model_dir: str | os.PathLike,
    active: bool = True,
    started: float | None = None,
  ):
    """Opens the books; nothing is written before `open_attempt`.

    Args:
      model_dir: folder of the run.
      active: whether this process writes (process 0).
      started: Unix time the attempt began at; now by default.
    """
    self._path = pathlib.Path(model_dir) / FILE_NAME
    self._progress_path = pathlib.Path(model_dir) / _PROGRESS_NAME
    self._active = active
    now = time.time()
    self.started = now if started is None else started
    self._parts = ["init"]
    self._since = time.monotonic()
    self._secs = {"init": now - self.started}
    self._step = 0
    self._progress_file: int | None = None
    self._progress_next = 0.0
    self._open = False

  @property
  def current(self) -> str:
    """The part this process is in."""
    return self._parts[-1]

  def _charge(self) -> None:
    now = time.monotonic()
    name = self._parts[-1]
    self._secs[name] = self._secs.get(name, 0.0) + now - self._since
    self._since = now

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Time within belongs to `name`, and not to the part around it."""
    self._charge()
    self._parts.append(name)
    try:
      yield
    finally:
      self._charge()
      self._parts.pop()

  def enter(self, name: str) -> None:
    """From here on time belongs to `name`, until the next `enter`."""
    self._charge()
    self._parts[-1] = name

  def open_attempt(self, step: int, **facts: Any) -> None:
    """Writes the first line of an attempt that starts after `step` steps."""
    self._step = step
    self._open = True
    self.note("start", started=self.started, step=step, **facts)
    if self._active and self._progress_file is None:
      self._progress_file = os.open(
        self._progress_path, os.O_RDWR | os.O_CREAT, 0o644
      )

  def note(self, kind: str, **values: Any) -> None:
    """Writes a line of another kind."""
    if not self._active:
      return
    self._path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"kind": kind, "time": time.time(), **values})
    with self._path.open("a") as file:
      file.write(line + "\n")

  def flush(self, step: int) -> None:
    """Writes the seconds since the last line, in which `step` was reached."""
    self._charge()
    secs = {name: round(value, 6) for name, value in self._secs.items()}
    self.note("parts", from_step=self._step, step=step, secs=secs)
    self._secs = {}
    self._step = step

  def rewind(self, step: int, to_step: int, **why: Any) -> None:
    """Notes that the attempt goes on from an earlier step."""
    self.flush(step)
    self.note("rollback", step=to_step, **why)
    self._step = to_step

  def progress(self, step: int) -> None:
    """Notes the step reached where even SIGKILL leaves it readable."""
    if self._progress_file is None:
      return
    began = time.monotonic()
    if began < self._progress_next:
      return
    with contextlib.suppress(OSError):  # no room: progress is a courtesy
      os.pwrite(
        self._progress_file, f"{step:12d} {time.time():20.6f}\n".encode(), 0
      )
    now = time.monotonic()
    self._progress_next = now + (now - began) / _PROGRESS_SHARE

  def close(self, cause: str, step: int, message: str = "") -> None:
    """Writes the last line of the attempt."""
    if not self._open:
      return
    self._open = False
    with contextlib.suppress(OSError):
      self.flush(step)
      self.note("end", step=step, cause=cause, message=message)
    if self._progress_file is not None:
      os.close(self._progress_file)
      self._progress_file = None


def read(model_dir: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of a run's ledger; a line cut off by a kill is left out."""
  try:
    text = (pathlib.Path(model_dir) / FILE_NAME).read_text()
  except FileNotFoundError:
    return []
  lines = []
  for line in text.splitlines():
    with contextlib.suppress(json.JSONDecodeError):
      lines.append(json.loads(line))
  return lines


def read_progress(model_dir: str | os.PathLike) -> tuple[int, float] | None:
  """Step last noted and Unix time of it, or None."""
  try:
    text = (pathlib.Path(model_dir) / _PROGRESS_NAME).read_text()
    step, when = text.split()[:2]
    return int(step), float(when)
  except (FileNotFoundError, ValueError):
    return None


def attempts(lines: list[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
  """The lines of each attempt, in order."""
  found: list[list[Mapping[str, Any]]] = []
  for line in lines:
    if line["kind"] == "start":
      found.append([])
    if found:
      found[-1].append(line)
  return found
