# SPDX-License-Identifier: Apache-2.0
"""The best checkpoint so far: metrics flow in, `MODEL_DIR/best.json` out.

The file is written before the checkpoint it names, together with the one
before, which is deleted only when the new one is whole. So at any moment one
of the two is on disk, and a run killed in between evaluates the step again.
All processes follow the numbers of process 0.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from musiclm_jax.core import atomic_files, errors, metric_directions
from musiclm_jax.training import agreement, distributed

FILE_NAME = "best.json"
DIRECTIONS = (metric_directions.MIN, metric_directions.MAX)


@dataclasses.dataclass(frozen=True)
class Best:
  """A checkpoint and what it scored.

  Attributes:
    step: of the checkpoint.
    value: of the metric.
  """

  step: int
  value: float


def choose_direction(
  metric: str, given: str, known: Mapping[str, str | None]
) -> str:
  """Checks the name of a metric; returns 'min' or 'max'.

  Args:
    metric: 'SPLIT/NAME'.
    given: 'min' or 'max' of the configuration, '' for what is known.
    known: direction by name, of all metrics that the run will have.

  Raises:
    UserError: if there is no such metric, or no direction; it names the
      metrics that there are.
  """
  if metric not in known:
    raise errors.UserError(
      f"keep_best_by={metric!r}: there is no such metric"
      f"{errors.nearest(metric, known)}; there are {', '.join(sorted(known))}"
    )
  direction = given or known[metric]
  if direction is None:
    raise errors.UserError(
      f"keep_best_by={metric!r}: whether small or large values are better is "
      "not known; set best_is='min' or 'max', or take one of "
      + ", ".join(sorted(name for name, way in known.items() if way))
    )
  return direction


def read(model_dir: str | os.PathLike) -> dict[str, Any] | None:
  """What `best.json` of a run says, or None where there is none.

  Raises:
    UserError: if the file cannot be read as one.
  """
  path = pathlib.Path(model_dir) / FILE_NAME
  try:
    found = json.loads(path.read_text())
    _entries(found)
    str(found["metric"]), str(found["direction"])
  except FileNotFoundError:
    return None
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f"{path}: not a record of the best checkpoint ({error}); delete it to "
      "begin anew"
    ) from error
  return found


def _entries(record: Mapping[str, Any]) -> list[Best]:
  """The newest best one and the one before it."""
  parts = [record, record["previous"]]
  return [
    Best(int(one["step"]), float(one["value"]))
    for one in parts
    if one is not None
  ]


def find(model_dir: str | os.PathLike, steps: Sequence[int]) -> Best:
  """The best of the checkpoints at `steps`.

  Raises:
    UserError: if none is known, or it is no longer there.
  """
  record = read(model_dir)
  if record is None:
    raise errors.UserError(
      f"no {FILE_NAME} in {model_dir}: train with keep_best_by, or take "
      "checkpoint 'newest'"
    )
  for one in _entries(record):
    if one.step in steps:
      return one
  raise errors.UserError(
    f"{pathlib.Path(model_dir) / FILE_NAME} names step {record['step']}, but "
    f"there are checkpoints {sorted(steps)} only"
  )


class BestKeeper:
  """Knows the best value of one metric and the step that had it.

  Attributes:
    best: the best one whose checkpoint was begun, or None.
  """

  def __init__(self, model_dir: pathlib.Path, metric: str, direction: str):
    """Begins with nothing.

    Args:
      model_dir: of the run.
      metric: 'SPLIT/NAME'.
      direction: 'min' or 'max'.
    """
    self._path = pathlib.Path(model_dir) / FILE_NAME
    self._metric, self._direction = metric, direction
    self.best: Best | None = None
    self._offered: Best | None = None

  def restore(self, reached: int, steps: Sequence[int]) -> None:
    """Takes up what an earlier start of the run found.

    Args:
      reached: steps done; what came after them will come again.
      steps: of the checkpoints on disk.
    """
    record = None
    if distributed.is_main():
      record = read(self._path.parent)
    record = json.loads(agreement.from_main("best", json.dumps(record)))
    self.best, self._offered = None, None
    if record is None:
      return
    asked = (self._metric, self._direction)
    if (record["metric"], record["direction"]) != asked:
      logging.warning(
        "%s is of %s (%s), this run keeps the best by %s (%s): it begins anew",
        self._path,
        record["metric"],
        record["direction"],
        *asked,
      )
      return
    there = [
      one
      for one in _entries(record)
      if one.step <= reached and one.step in steps
    ]
    self.best = there[0] if there else None

  def offer(self, step: int, metrics: Mapping[str, float]) -> bool:
    """Whether `step` is better than all before it.

    Args:
      step: steps done.
      metrics: by 'SPLIT/NAME'; without the metric, nothing happens.
    """
    mine = repr(float(metrics.get(self._metric, math.nan)))
    value = float(agreement.from_main("best_value", mine))
    self._offered = None
    if not math.isfinite(value):
      return False
    if self.best is not None:
      sign = 1 if self._direction == metric_directions.MAX else -1
      if not sign * value > sign * self.best.value:
        return False
    self._offered = Best(step, value)
    return True

  def record(self) -> None:
    """Notes the step just offered, of which a checkpoint is to be written.

    The checkpoint of the best one before must be whole by now.
    """
    if self._offered is None:
      return
    before, self.best = self.best, self._offered
    self._offered = None
    logging.info(
      "best %s so far: %g at step %d",
      self._metric,
      self.best.value,
      self.best.step,
    )
    if not distributed.is_main():
      return
    text = json.dumps(
      {
        "metric": self._metric,
        "direction": self._direction,
        **dataclasses.asdict(self.best),
        "previous": None if before is None else dataclasses.asdict(before),
      }
    )
    with atomic_files.written(self._path) as file:
      file.write(text.encode() + b"\n")
      file.flush()
      os.fsync(file.fileno())
