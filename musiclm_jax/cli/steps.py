# SPDX-License-Identifier: Apache-2.0
"""A list of verbs with dependencies, run side by side and resumably.

Each step is one `musiclm` process. A finished step leaves a marker; a second
run skips it. Steps that do not need each other run at once, each on cores of
its own: two small trainings on one core each finish sooner than one after the
other on two.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from musiclm_jax.core import atomic_files, errors, progress

_PROGRESS = re.compile(r"\((\d+) %\).*?(\d+:\d\d) left")
_PR_SET_PDEATHSIG = 1
_PEAK = "peak_memory_bytes"


@dataclasses.dataclass(frozen=True)
class Step:
  """One verb of a longer run.

  Attributes:
    name: unique, a file name.
    argv: the verb and its options.
    needs: names of steps that must be done before.
    num_cores: cores the step is given while it runs.
  """

  name: str
  argv: tuple[str, ...]
  needs: tuple[str, ...] = ()
  num_cores: int = 1


def _die_with_parent() -> None:
  """In the child: be killed when the parent is (Linux)."""
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _resident_bytes() -> int:
  """Resident memory of this process and all below it."""
  import psutil

  total = 0
  own = psutil.Process()
  for process in [own, *own.children(recursive=True)]:
    with contextlib.suppress(psutil.Error):
      total += process.memory_info().rss
  return total


def finished(workdir: str | os.PathLike) -> list[dict[str, str | float]]:
  """Name and seconds (over all attempts) of finished steps, in order."""
  folder = pathlib.Path(workdir) / "steps"
  records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
  return [
    {"name": record["name"], "seconds": record["seconds"]}
    for record in sorted(records, key=lambda record: record["number"])
  ]


def peak_memory_bytes(workdir: str | os.PathLike) -> int:
  """Most memory that all running steps held at once, sampled."""
  try:
    text = (pathlib.Path(workdir) / "steps" / _PEAK).read_text()
    return int(text)
  except (FileNotFoundError, ValueError):
    return 0


class _Running:
  """A step's process: its log, its last progress line, its cores."""

  def __init__(self, step: Step, number: int, total: int, log: pathlib.Path):
    self.step = step
    self.label = f"[{number:2d}/{total}] {step.name}"
    self.log = log
    self.cores: list[int] = []
    self.started = time.monotonic()
    self.earlier_secs = 0.0
    self.last_line = ""
    self.process: subprocess.Popen | None = None
    self._thread: threading.Thread | None = None

  def start(self, cores: list[int], line_secs: float, show) -> None:
    """Starts the process on `cores`; `show(line)` gets its progress."""
    self.cores = cores

    def before_exec():
      _die_with_parent()
      if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)

    self.process = subprocess.Popen(
      [sys.executable, "-m", "musiclm_jax.cli.main", *self.step.argv],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors="replace",
      env={
        **os.environ,
        progress.LINE_SECS_VARIABLE: str(line_secs),
        "PYTHONUNBUFFERED": "1",
      },
      preexec_fn=before_exec,
    )
    self._thread = threading.Thread(target=self._read, args=(show,))
    self._thread.start()

  def _read(self, show) -> None:
    with self.log.open("a") as log:
      for line in self.process.stdout:
        log.write(line)
        log.flush()
        if line.strip():
          self.last_line = line.strip()
        if _PROGRESS.search(line):
          show(f"{self.label}: {line.strip()}")

  def finish(self) -> int:
    """Waits for the process and its last lines; returns its exit code."""
    code = self.process.wait()
    self._thread.join()
    return code


class _Display:
  """A status line on a terminal, plain lines elsewhere."""

  def __init__(self):
    self._tty = sys.stdout.isatty()
    self._lock = threading.Lock()

  @property
  def line_secs(self) -> float:
    return 1.0 if self._tty else 10.0

  def line(self, text: str) -> None:
    """Prints a line that stays."""
    with self._lock:
      if self._tty:
        sys.stdout.write("\r\033[K")
      print(text, flush=True)

  def progress(self, text: str) -> None:
    """A progress line: kept only where there is no status line."""
    if not self._tty:
      self.line(text)

  def status(self, running: Sequence[_Running]) -> None:
    """Redraws the status line: one bar per running step."""
    if not self._tty or not running:
      return
    parts = []
    for item in running:
      match = _PROGRESS.search(item.last_line)
      percent, left = (int(match[1]), match[2]) if match else (0, "--:--")
      filled = percent // 10
      bar = "#" * filled + "." * (10 - filled)
      parts.append(f"{item.label} |{bar}| {percent} % {left} left")
    width = shutil.get_terminal_size().columns - 1
    with self._lock:
      sys.stdout.write("\r\033[K" + "  ".join(parts)[:width])
      sys.stdout.flush()


class StepRunner:
  """Runs steps in a working directory and remembers what is done."""

  def __init__(self, workdir: str | os.PathLike, steps: Sequence[Step]):
    """Checks the plan.

    Args:
      workdir: markers and logs go to its `steps/` and `logs/`.
      steps: in an order in which they could run one by one.

    Raises:
      ValueError: if a step needs one that does not come before it.
    """
    self._workdir = pathlib.Path(workdir)
    self._steps = list(steps)
    seen: set[str] = set()
    for step in self._steps:
      missing = set(step.needs) - seen
      if missing:
        raise ValueError(
          f"step {step.name!r} needs {sorted(missing)} before it"
        )
      seen.add(step.name)
    self._markers = self._workdir / "steps"
    self._logs = self._workdir / "logs"
    self._display = _Display()
    self._peak = 0
    self._stop = threading.Event()

  def _marker(self, step: Step) -> pathlib.Path:
    return self._markers / f"{step.name}.json"

  def _is_done(self, step: Step) -> bool:
    try:
      record = json.loads(self._marker(step).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
      return False
    return tuple(record["argv"]) == step.argv

  def _earlier_seconds(self, step: Step) -> float:
    """Seconds that attempts before this one took, as far as recorded."""
    path = self._marker(step).with_suffix(".partial")
    try:
      return float(path.read_text())
    except (FileNotFoundError, ValueError):
      return 0.0

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    self._markers.mkdir(parents=True, exist_ok=True)
    self._logs.mkdir(parents=True, exist_ok=True)
    with (self._workdir / "steps" / "lock").open("w") as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise errors.UserError(
          f"another run is at work in {self._workdir}"
        ) from error
      yield

  def run(self) -> None:
    """Runs what is not done yet.

    Raises:
      UserError: if a step fails; names its log. Its exit code is kept.
      Preempted: on SIGTERM, after the running steps saved and stopped.
    """
    with self._locked():
      self._show_plan()
      watcher = threading.Thread(target=self._watch_memory, daemon=True)
      watcher.start()
      previous = signal.getsignal(signal.SIGTERM)
      signal.signal(signal.SIGTERM, _raise_preempted)
      try:
        self._schedule()
      finally:
        signal.signal(signal.SIGTERM, previous)
        self._stop.set()
        watcher.join()

  def _show_plan(self) -> None:
    for number, step in enumerate(self._steps, 1):
      state = "done" if self._is_done(step) else "to do"
      self._display.line(
        f"[{number:2d}/{len(self._steps)}] {step.name:<22} {state}"
      )

  def _schedule(self) -> None:
    todo = [step for step in self._steps if not self._is_done(step)]
    # What depends on a step that runs again, runs again.
    again = {step.name for step in todo}
    for step in self._steps:
      if step not in todo and again & set(step.needs):
        again.add(step.name)
        self._marker(step).unlink()
    todo = [step for step in self._steps if step.name in again]
    done = {step.name for step in self._steps} - again
    cores = sorted(os.sched_getaffinity(0))
    running: list[_Running] = []
    try:
      while todo or running:
        for step in list(todo):
          width = min(step.num_cores, len(cores) + _in_use(running))
          if set(step.needs) <= done and width <= len(cores):
            mine, cores = cores[:width], cores[width:]
            running.append(self._start(step, mine))
            todo.remove(step)
        for item in list(running):
          if item.process.poll() is not None:
            running.remove(item)
            cores = sorted(cores + item.cores)
            self._finish(item)
            done.add(item.step.name)
        self._note_seconds(running)
        self._display.status(running)
        time.sleep(0.2)
    except BaseException:
      self._terminate(running)
      raise

  def _start(self, step: Step, cores: list[int]) -> _Running:
    number = self._steps.index(step) + 1
    log = self._logs / f"{number:02d}_{step.name}.log"
    item = _Running(step, number, len(self._steps), log)
    item.earlier_secs = self._earlier_seconds(step)
    self._display.line(f"{item.label}: starting (log: {log})")
    item.start(cores, self._display.line_secs, self._display.progress)
    return item

  def _finish(self, item: _Running) -> None:
    code = item.finish()
    if code:
      error = errors.UserError(
        f"step {item.step.name!r} failed with exit code {code}: "
        f"{item.last_line or 'no output'} (log: {item.log})"
      )
      error.exit_code = code if code > 0 else 42
      raise error
    seconds = time.monotonic() - item.started
    total = seconds + item.earlier_secs
    marker = self._marker(item.step)
    atomic_files.write_text(
      marker,
      json.dumps(
        {
          "name": item.step.name,
          "number": self._steps.index(item.step) + 1,
          "seconds": round(total, 2),
          "argv": list(item.step.argv),
        }
      ),
    )
    marker.with_suffix(".partial").unlink(missing_ok=True)
    self._display.line(f"{item.label}: done in {seconds:.0f} s")

  def _note_seconds(self, running: Sequence[_Running]) -> None:
    """Keeps the seconds of running steps, in case this run is killed."""
    for item in running:
      elapsed = item.earlier_secs + time.monotonic() - item.started
      path = self._marker(item.step).with_suffix(".partial")
      atomic_files.write_text(path, f"{elapsed:.1f}")

  def _terminate(self, running: Sequence[_Running]) -> None:
    for item in running:
      if item.process.poll() is None:
        item.process.terminate()
    for item in running:
      try:
        item.process.wait(timeout=60)
      except subprocess.TimeoutExpired:
        item.process.kill()
      item.finish()

  def _watch_memory(self) -> None:
    path = self._markers / _PEAK
    self._peak = peak_memory_bytes(self._workdir)
    while not self._stop.wait(0.5):
      found = _resident_bytes()
      if found > self._peak:
        self._peak = found
        atomic_files.write_text(path, str(found))


def _in_use(running: Sequence[_Running]) -> int:
  return sum(len(item.cores) for item in running)


def _raise_preempted(*unused) -> None:
  raise errors.Preempted("SIGTERM: stopped the running steps; run again")
