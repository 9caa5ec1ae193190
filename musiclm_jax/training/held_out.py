# SPDX-License-Identifier: Apache-2.0
"""What a run measures on held-out data, and which of its states is the best.

The state of a step flows in; the loss and the metrics of evaluators flow out,
and the word whether the state is the best so far.
"""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from musiclm_jax.core import errors, metric_directions, protocols, rng
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.training import (
  agreement,
  best,
  checkpoints,
  evaluation,
  evaluators,
  ledger,
  metrics,
  steps,
)
from musiclm_jax.training import state as state_lib

HostBatch = Mapping[str, np.ndarray]


class HeldOut:
  """Evaluations of one start of a run.

  Attributes:
    best: keeps the best state; None if nothing says which one that is.
  """

  def __init__(
    self,
    model_dir: pathlib.Path,
    trainable: protocols.Trainable,
    batches: Callable[[], Iterator[HostBatch]] | None,
    config: Any,
    partitioner: partitioner_lib.Partitioner,
    books: ledger.Ledger,
    writer: metrics.MetricsWriter,
  ):
    """Compiles and reads nothing yet.

    Args:
      model_dir: of the run.
      trainable: network and loss.
      batches: one pass over held-out data; None: there is none.
      config: of the run (`loop.LoopConfig`).
      partitioner: mesh and rules.
      books: where the time goes.
      writer: of the metrics.

    Raises:
      UserError: if an evaluator or `keep_best_by` asks for data that is not
        there, or an evaluator does not fit the trainable.
    """
    self._model_dir, self._trainable = model_dir, trainable
    self._batches, self._config = batches, config
    self._partitioner, self._books = partitioner, books
    self._writer = writer
    self._key = rng.root_key(config.seed)
    self._shapes = trainable.input_shapes(config.global_batch_size)
    self._names = sorted(self._shapes)
    self._step = partitioner.jit(steps.make_eval_step(trainable))
    if batches is None:
      self._require("expected a split for it")
      logging.warning("no held-out data: nothing is evaluated")
    self._evaluators = [
      evaluators.Running(one, trainable, partitioner)
      for one in config.evaluators
    ]
    self.best: best.BestKeeper | None = None

  def _require(self, expected: str) -> None:
    """Raises UserError if what cannot be evaluated was asked for."""
    config, asked = self._config, []
    if config.keep_best_by:
      asked.append(f"keep_best_by={config.keep_best_by!r}")
    if config.evaluators:
      asked.append(f"evaluators={[one.name for one in config.evaluators]}")
    if asked:
      raise errors.UserError(
        f"{', '.join(asked)}: no held-out data, {expected}"
      )

  def restore_best(
    self, state: state_lib.TrainState, checkpointer: checkpoints.Checkpointer
  ) -> None:
    """Goes on keeping the best state, with what earlier starts found.

    Args:
      state: that the run begins with.
      checkpointer: what is to be kept.

    Raises:
      UserError: if there is no such metric.
    """
    metric = self._config.keep_best_by
    if not metric:
      return
    known = evaluators.known_metrics(
      self._step,
      (state.best_variables, self._shapes, self._key, state.step),
      self._config.evaluators,
      metric_directions.direction_of,
    )
    direction = best.choose_direction(metric, self._config.best_is, known)
    self.best = best.BestKeeper(self._model_dir, metric, direction)
    self.best.restore(int(state.step), checkpointer.steps())
    self.keep_best(checkpointer)

  def keep_best(self, checkpointer: checkpoints.Checkpointer) -> None:
    """Tells what deletes checkpoints which one is the best."""
    checkpointer.keep_best(self.best.best.step if self.best.best else None)

  def evaluate(
    self,
    done: int,
    is_last: bool,
    state: state_lib.TrainState,
    alarm: Callable[[int, Mapping[str, float], str], None],
  ) -> bool:
    """Runs what is due after a step.

    Args:
      done: steps done.
      is_last: whether there are no more.
      state: after them.
      alarm: is told steps, the metrics of the loss, and their split.

    Returns:
      Whether the state is the best so far.

    Raises:
      UserError: if there is no row to evaluate for what was asked for.
    """
    every = self._config.eval_every_steps
    is_loss_due = is_last or bool(every and done % every == 0)
    due = [
      one for one in self._evaluators if one.is_due(done, is_loss_due, is_last)
    ]
    if self._batches is None or not (is_loss_due or due):
      return False
    found: dict[str, float] = {}
    if is_loss_due:
      found = self._loss(done, state, alarm)
    for one in due:
      with self._books.part("evaluation"):
        values = one(
          state.best_variables,
          self._batches(),
          self._names,
          rng.named(self._key, one.name),
        )
        self._writer.scalars(done, one.name, values)
      found.update({f"{one.name}/{name}": v for name, v in values.items()})
    return self.best is not None and self.best.offer(done, found)

  def _loss(
    self,
    done: int,
    state: state_lib.TrainState,
    alarm: Callable[[int, Mapping[str, float], str], None],
  ) -> dict[str, float]:
    """The held-out metrics of the trainable, by 'heldout/NAME'."""
    with self._books.part("evaluation"):
      values, first = evaluation.evaluate(
        self._step,
        state.best_variables,
        self._batches(),
        self._names,
        self._partitioner,
        rng.named(self._key, "eval"),
        state.step,
        self._config.num_eval_batches,
      )
      if first is None:
        self._require("expected examples in their split")
        logging.warning("no held-out examples: nothing is evaluated")
        return {}
      self._writer.scalars(done, "heldout", values)
      alarm(done, values, "heldout")
      if hasattr(self._trainable, "media"):
        media = self._trainable.media(state.best_variables, first)
        self._writer.media(done, agreement.to_hosts(media))
    return {f"heldout/{name}": value for name, value in values.items()}
