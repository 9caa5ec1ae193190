# SPDX-License-Identifier: Apache-2.0
"""Writing metrics: a JSON-lines file, and TensorBoard through clu.

`<model_dir>/metrics.jsonl` has one object per line: `step`, `split` ('train'
or 'heldout') and one number per metric. On resume, lines of steps that are
done again are dropped, so the file reads like that of an unbroken run.
"""

import collections
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from musiclm_jax.core import atomic_files, protocols
from musiclm_jax.training import agreement, alarms

FILE_NAME = "metrics.jsonl"
# A trainable may report it: 1 where all it read was finite.
INPUT_FINITE = "input_finite"


def merge(
  parts: Iterable[Mapping[str, protocols.Mean]],
) -> dict[str, protocols.Mean]:
  """Sums metrics of several steps."""
  merged: dict[str, protocols.Mean] = {}
  for part in parts:
    for name, metric in part.items():
      merged[name] = merged[name].merge(metric) if name in merged else metric
  return merged


def to_floats(metrics: Mapping[str, protocols.Mean]) -> dict[str, float]:
  """Means as Python floats (NaN where nothing was counted)."""
  values = jax.device_get(dict(metrics))
  return {
    name: float(np.asarray(m.total) / m.count) if m.count else float("nan")
    for name, m in values.items()
  }


class BadStepError(FloatingPointError):
  """A step whose gradients or metrics are not finite.

  Attributes:
    step: steps done with it.
  """

  def __init__(self, step: int, message: str):
    super().__init__(message)
    self.step = step


class Pending:
  """Metrics of steps not looked at yet, with the ids of their examples."""

  def __init__(self, history: alarms.History | None = None):
    """`history` explains a bad step by what came before it."""
    self._items = collections.deque()
    self._num_checked = 0
    self._history = history

  def add(
    self, step: int, ids: Any, values: Mapping[str, protocols.Mean]
  ) -> None:
    """Keeps what a step returned; nothing is waited for."""
    self._items.append((step, ids, values))

  def wait(self, num_running: int) -> None:
    """Returns when the devices have at most so many steps left to finish."""
    if len(self._items) > num_running:
      jax.block_until_ready(self._items[-1 - num_running][2])

  def num_running(self) -> int:
    """Steps that the devices have not finished."""
    count = 0
    for _, _, values in reversed(self._items):
      if values["finite"].total.is_ready():
        break
      count += 1
    return count

  def check(self) -> None:
    """Raises BadStepError for the first step that is not finite."""
    for step, ids, values in list(self._items)[self._num_checked :]:
      if not float(values["finite"].total):
        raise BadStepError(step, self._complaint(step, ids, values))
    self._num_checked = len(self._items)

  def _complaint(
    self, step: int, ids: Any, values: Mapping[str, protocols.Mean]
  ) -> str:
    """What is wrong with a step, in which examples, and what led to it."""
    bad = _not_finite(values)
    text = _complaint(step, ids, bad)
    if self._history is None:
      return text
    for earlier, _, its_values in self._items:
      if earlier < step:
        self._history.add(earlier, to_floats(its_values))
    first = self._history.first(bad)
    computed = f"; computed first: {first}" if first else ""
    return f"{text}{computed}. {self._history.explain()}"

  def flush(self) -> dict[str, float]:
    """Checks, averages and forgets."""
    self.check()
    items, self._items = list(self._items), collections.deque()
    self._num_checked = 0
    floats = to_floats(merge(values for _, _, values in items))
    if self._history is not None and items:
      self._history.add(items[-1][0], floats)
    return floats


def _not_finite(values: Mapping[str, protocols.Mean]) -> list[str]:
  """Names of the metrics that are not finite."""
  if INPUT_FINITE in values and to_floats(values)[INPUT_FINITE] < 1:
    return ["the samples of the batch itself"]
  return sorted(
    name
    for name, mean in values.items()
    if not np.all(np.isfinite(np.asarray(mean.total)))
  )


def _complaint(step: int, ids: Any, bad: list[str]) -> str:
  """Names what is not finite and the examples of all hosts."""
  mine = json.dumps(np.asarray(ids).tolist())
  everyones = [
    one
    for text in agreement.gather_text("bad_examples", mine)
    for one in json.loads(text)
  ]
  return (
    f"step {step}: gradients or {bad or 'loss'} are not finite; the batch held "
    f"examples {everyones}"
  )


class MetricsWriter:
  """Writes scalars, audio and spectrograms of one run (process 0 only)."""

  def __init__(
    self,
    model_dir: str | os.PathLike,
    start_step: int,
    tensorboard: bool = True,
  ):
    """Opens the files of a run that goes on after `start_step` steps.

    Args:
      model_dir: of the run.
      start_step: lines after it are dropped, for they will come again.
      tensorboard: whether to write its files as well.
    """
    self._path = pathlib.Path(model_dir) / FILE_NAME
    self._active = jax.process_index() == 0
    self._board = None
    if not self._active:
      return
    if self._path.exists():
      self._drop_after(start_step)
    if not tensorboard:
      return
    # clu loads TensorFlow, which only training may.
    from clu import metric_writers

    self._board = metric_writers.SummaryWriter(
      str(pathlib.Path(model_dir) / "tensorboard")
    )

  def _drop_after(self, step: int) -> None:
    kept = []
    for line in self._path.read_text().splitlines():
      try:
        record = json.loads(line)
      except json.JSONDecodeError:  # a line cut off by a kill
        continue
      if record["step"] <= step:
        kept.append(line + "\n")
    atomic_files.write_text(self._path, "".join(kept))

  def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Writes one line and the TensorBoard scalars `<split>/<name>`."""
    if not self._active:
      return
    with self._path.open("a") as file:
      file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
    if self._board is not None:
      self._board.write_scalars(
        step, {f"{split}/{name}": value for name, value in values.items()}
      )

  def media(self, step: int, items: Mapping[str, Any]) -> None:
    """Writes pictures and sounds to TensorBoard.

    Args:
      step: optimizer step.
      items: by name, `(float32 [batch, samples], sample_rate_hz)` for sound
        or float32 `[batch, height, width, channels]` in [0, 1] for pictures.
    """
    if self._board is None:
      return
    for name, item in items.items():
      if isinstance(item, tuple):
        waveform, rate = item
        self._board.write_audios(
          step, {name: np.asarray(waveform)[..., None]}, sample_rate=rate
        )
      else:
        self._board.write_images(step, {name: np.asarray(item)})

  def close(self) -> None:
    """Flushes and closes TensorBoard's file."""
    if self._board is not None:
      self._board.close()
