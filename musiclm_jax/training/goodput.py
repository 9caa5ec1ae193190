# SPDX-License-Identifier: Apache-2.0
"""What a run's ledger says: what a restart cost, and the goodput of it all."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.training import ledger

Lines = Sequence[Mapping[str, Any]]
UNKNOWN_CAUSE = "killed without a word (SIGKILL, out of memory, power)"


@dataclasses.dataclass(frozen=True)
class Restart:
  """What was lost between two attempts.

  Attributes:
    step: the checkpoint the new attempt goes on from.
    steps_lost: steps done before and to be done again.
    secs_lost: seconds from that checkpoint to the last sign of life.
    secs_down: seconds from then to the new start.
    cause: why the attempt before ended.
    last_step: the last step it did.
    last_time: Unix time of its last sign of life.
  """

  step: int
  steps_lost: int
  secs_lost: float
  secs_down: float
  cause: str
  last_step: int
  last_time: float

  def __str__(self) -> str:
    return (
      f"restart: goes on from step {self.step}; {self.steps_lost} steps "
      f"({self.secs_lost:.1f} s) are lost and done again, down for "
      f"{self.secs_down:.1f} s; cause: {self.cause}"
    )


@dataclasses.dataclass(frozen=True)
class _Attempt:
  """One attempt: its seconds by part, each with the steps done in it.

  `kept` are the parts since the last rollback: a restart does not lose what
  was given up before.
  """

  started: float
  ended: float
  last_step: int
  cause: str
  parts: tuple[tuple[int, int, Mapping[str, float]], ...]
  kept: tuple[tuple[int, int, Mapping[str, float]], ...]

  @property
  def booked(self) -> float:
    return sum(sum(secs.values()) for *_, secs in self.parts)


def _attempt(lines: Lines, progress: tuple[int, float] | None) -> _Attempt:
  first, last = lines[0], lines[-1]
  step, parts, kept = first["step"], [], []
  for line in lines:
    if line["kind"] == "parts":
      parts.append((line["from_step"], line["step"], line["secs"]))
      kept.append(parts[-1])
      step = line["step"]
    elif line["kind"] == "rollback":
      kept, step = [], line["step"]
  ended = last["time"]
  cause = UNKNOWN_CAUSE
  if last["kind"] == "end":
    cause = last["cause"]
    if last["message"]:
      cause += f" ({last['message']})"
  elif progress is not None and progress[1] >= ended:
    step, ended = progress
  return _Attempt(
    first["started"], ended, step, cause, tuple(parts), tuple(kept)
  )


def _after(attempt: _Attempt, step: int) -> float:
  """Seconds of training and waiting for data spent on steps after `step`."""
  total = attempt.ended - attempt.started - attempt.booked
  for begin, end, secs in attempt.kept:
    if end > step:
      share = (end - max(begin, step)) / max(end - begin, 1)
      total += share * (secs.get("step", 0.0) + secs.get("data_wait", 0.0))
  return max(total, 0.0)


def restart_report(
  model_dir: str | os.PathLike, step: int, started: float
) -> Restart | None:
  """What the end of the attempt before cost; None at a first start.

  Args:
    model_dir: folder of the run.
    step: the checkpoint that was restored.
    started: Unix time the new attempt began at.
  """
  before = ledger.attempts(ledger.read(model_dir))
  if not before:
    return None
  last = _attempt(before[-1], ledger.read_progress(model_dir))
  if last.cause == "done":
    return None
  lost = max(0, last.last_step - step)
  return Restart(
    step=step,
    steps_lost=lost,
    secs_lost=_after(last, step) if lost else 0.0,
    secs_down=max(0.0, started - last.ended),
    cause=last.cause,
    last_step=last.last_step,
    last_time=last.ended,
  )


def summary(model_dir: str | os.PathLike) -> dict[str, float]:
  """Seconds by part over all attempts of a run.

  Beside `ledger.PARTS`: 'lost' (work done again, and what a killed attempt
  did after its last line), 'down' (between attempts), and 'wall', their sum.
  """
  secs = {**dict.fromkeys(ledger.PARTS, 0.0), "lost": 0.0, "down": 0.0}
  groups = ledger.attempts(ledger.read(model_dir))
  progress, next_start, floor = ledger.read_progress(model_dir), None, None
  for lines in reversed(groups):
    attempt = _attempt(lines, progress)
    secs["lost"] += max(0.0, attempt.ended - attempt.started - attempt.booked)
    if next_start is not None:
      secs["down"] += max(0.0, next_start - attempt.ended)
    next_start = attempt.started
    for line in reversed(lines):
      if line["kind"] == "parts":
        _book(secs, line, floor)
      elif line["kind"] in ("start", "rollback"):
        floor = line["step"] if floor is None else min(floor, line["step"])
    # The progress file is the newest attempt's; of one before, its successor
    # noted the last sign of life.
    told = [line for line in lines if line["kind"] == "restart"]
    progress = (told[0]["last_step"], told[0]["last_time"]) if told else None
  secs["wall"] = sum(secs.values())
  return secs


def _book(
  secs: dict[str, float], line: Mapping[str, Any], floor: int | None
) -> None:
  """Adds a line's seconds; steps after `floor` were done again later."""
  begin, end = line["from_step"], line["step"]
  share = 0.0
  if floor is not None and end > floor:
    share = (end - max(begin, floor)) / max(end - begin, 1)
  for name, value in line["secs"].items():
    lost = share * value if name in ("step", "data_wait") else 0.0
    secs["lost"] += lost
    secs[name] = secs.get(name, 0.0) + value - lost


def describe(secs: Mapping[str, float]) -> str:
  """One line: goodput, and every part that took time."""
  wall = max(secs["wall"], 1e-9)
  parts = ", ".join(
    f"{name.replace('_', ' ')} {value:.1f} s ({100 * value / wall:.1f} %)"
    for name, value in secs.items()
    if name != "wall" and value >= 0.05
  )
  return f"goodput {100 * secs['step'] / wall:.1f} % of {wall:.1f} s: {parts}"
