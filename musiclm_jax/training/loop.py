# SPDX-License-Identifier: Apache-2.0
"""The training loop, the same for every trainable and any number of processes.

Batches flow in from the data it is given; checkpoints, metrics and a ledger
flow out. Everything random is a function of (seed, step), every batch of
(seed, step, row): a run killed at any step goes on as if it had not been.
"""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from absl import logging

from musiclm_jax.core import errors, progress, protocols, rng
from musiclm_jax.core import evaluator as evaluator_lib
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.training import (
  agreement,
  alarms,
  best,
  checkpoints,
  compile_cache,
  distributed,
  evaluation,
  evaluators,
  goodput,
  held_out,
  initial_state,
  ledger,
  metrics,
  optimizers,
  preemption,
  profiling,
  skips,
  steps,
  watchdog,
)
from musiclm_jax.training import state as state_lib

HostBatch = Mapping[str, np.ndarray]
IDS = "example_ids"
# Steps handed to the device before the oldest of them is finished: enough to
# keep it busy, few enough that a kill or a notice finds the loop where it is.
_MAX_RUNNING = 2


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """One run.

  Attributes:
    total_steps: optimizer steps in all.
    global_batch_size: rows per step over all hosts.
    seed: of parameters, dropout and data.
    log_every_steps: training metrics are averaged over so many steps.
    eval_every_steps: held-out evaluation every so many steps and at the end;
      0 evaluates only at the end.
    num_eval_batches: at most so many held-out batches; 0 takes all.
    num_microbatches: parts a batch is processed in.
    ema_decay: of the running mean of parameters; 0 keeps none.
    checkpointing: cadence and retention.
    evaluators: metrics of held-out data beside the loss.
    keep_best_by: the metric, 'heldout/NAME' or 'EVALUATOR/NAME', by which the
      best checkpoint is kept; '' keeps none.
    best_is: 'min' or 'max', where the metric does not say so itself.
  """

  total_steps: int
  global_batch_size: int = 8
  seed: int = 0
  log_every_steps: int = 20
  eval_every_steps: int = 0
  num_eval_batches: int = 8
  num_microbatches: int = 1
  ema_decay: float = 0.0
  checkpointing: checkpoints.CheckpointConfig = checkpoints.CheckpointConfig()
  evaluators: tuple[evaluator_lib.Evaluator, ...] = ()
  keep_best_by: str = ""
  best_is: str = ""

  def __post_init__(self):
    object.__setattr__(self, "evaluators", tuple(self.evaluators))
    evaluators.check_names(self.evaluators)
    if self.best_is not in ("", *best.DIRECTIONS):
      raise ValueError(
        f"best_is={self.best_is!r}: expected one of {best.DIRECTIONS}, or ''"
      )
    for name in ("total_steps", "global_batch_size", "log_every_steps"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected >= 1")
    if self.global_batch_size % self.num_microbatches:
      raise ValueError(
        f"num_microbatches={self.num_microbatches}: expected a divisor of "
        f"global_batch_size={self.global_batch_size}"
      )
    if not 0 <= self.ema_decay < 1:
      raise ValueError(f"ema_decay={self.ema_decay}: expected in [0, 1)")


@dataclasses.dataclass(frozen=True)
class RunOptions:
  """What an operator chooses at each start; no part of the experiment.

  Attributes:
    rollback: after a step that is not finite, go back to the last checkpoint
      and leave the batch out, in place of stopping.
    max_rollbacks: to one checkpoint; then the run stops all the same.
    profile_steps: (first, last): the steps after `first` up to `last` are
      profiled; None profiles nothing.
    stall_warn_secs: without progress for so long, stacks are written; 0 never.
    stall_exit_secs: without progress for so long, the process exits with 42;
      0 never.
    tensorboard: write TensorBoard's files too, which loads TensorFlow.
  """

  rollback: bool = False
  max_rollbacks: int = 3
  profile_steps: tuple[int, int] | None = None
  stall_warn_secs: float = 300.0
  stall_exit_secs: float = 1800.0
  tensorboard: bool = True


class _Run:
  """One start of a run: what stays the same while the state moves on.

  Attributes:
    state: the newest one.
    reached: steps done.
  """

  def __init__(
    self,
    model_dir: pathlib.Path,
    trainable: protocols.Trainable,
    train_batches: Callable[[int], Iterator[HostBatch]],
    eval_batches: Callable[[], Iterator[HostBatch]] | None,
    config: LoopConfig,
    optimizer: optimizers.OptimizerConfig,
    partitioner: partitioner_lib.Partitioner,
    options: RunOptions,
    books: ledger.Ledger,
  ):
    self.model_dir, self.trainable = model_dir, trainable
    self.train_batches, self.eval_batches = train_batches, eval_batches
    self.config, self.partitioner = config, partitioner
    self.options, self.books = options, books
    self.names = sorted(trainable.input_shapes(config.global_batch_size))
    self.key = rng.root_key(config.seed)
    self.transform = optimizers.make_optimizer(optimizer)
    self.schedule = optimizers.make_schedule(optimizer)
    self.checkpointer = checkpoints.Checkpointer(
      model_dir, config.checkpointing
    )
    self.profiler = profiling.Profiler(model_dir, options.profile_steps)
    self.dog = watchdog.Watchdog(
      model_dir,
      lambda: books.current,
      options.stall_warn_secs,
      options.stall_exit_secs,
    )
    # What is logged of a split batch is the mean over its parts.
    rules = alarms.rules_of(
      trainable, config.global_batch_size // config.num_microbatches
    )
    self.alarms, self.history = alarms.Alarms(rules), alarms.History(trainable)
    self.rollbacks: dict[int, int] = {}
    self.state: state_lib.TrainState | None = None
    self.writer: metrics.MetricsWriter | None = None
    self.reached = 0

  # --- The beginning.

  def start(self) -> int:
    """Takes the newest good checkpoint or a fresh state; returns its step."""
    self.skipped = [one["batch"] for one in skips.read(self.model_dir)]
    self.state, shardings = initial_state.restore_or_create(
      self.checkpointer,
      self.trainable,
      self.transform,
      self.partitioner,
      self.config,
      lambda: skips.without(self.train_batches, self.skipped, 0),
    )
    self.reached = int(self.state.step)
    logging.info(
      "%d parameters, mesh %s, %s step %d of %d",
      state_lib.num_parameters(self.state.params),
      dict(self.partitioner.mesh.shape),
      "going on at" if self.reached else "starting at",
      self.reached,
      self.config.total_steps,
    )
    self.train_step = self.partitioner.jit(
      steps.make_train_step(
        self.trainable,
        self.transform,
        self.config.num_microbatches,
        self.config.ema_decay,
      ),
      donate_argnums=0,
      out_shardings=(shardings, None),
    )
    self.writer = metrics.MetricsWriter(
      self.model_dir, self.reached, self.options.tensorboard
    )
    self.held_out = held_out.HeldOut(
      self.model_dir,
      self.trainable,
      self.eval_batches,
      self.config,
      self.partitioner,
      self.books,
      self.writer,
    )
    self.held_out.restore_best(self.state, self.checkpointer)
    return self.reached

  def open_books(self, step: int) -> None:
    """Reports what the end of the attempt before cost; starts a new page."""
    report = None
    if distributed.is_main():
      report = goodput.restart_report(self.model_dir, step, self.books.started)
    self.books.open_attempt(step, num_processes=jax.process_count())
    if report is not None:
      self.books.note("restart", **dataclasses.asdict(report))
      logging.info("%s", report)

  # --- The loop.

  def until_done(self, stop: preemption.Preemption) -> None:
    """Runs the steps that are left, going back after bad ones if asked to."""
    while True:
      try:
        return self.run_steps(stop)
      except metrics.BadStepError as error:
        self.roll_back(error)

  def run_steps(self, stop: preemption.Preemption) -> None:
    """Runs the steps that are left."""
    pending, start_step = metrics.Pending(self.history), self.reached
    total = self.config.total_steps
    self.waited_secs, self.last_log = 0.0, time.monotonic()
    source = skips.without(self.train_batches, self.skipped, start_step)
    with (
      contextlib.closing(source),
      progress.Progress(self.model_dir.name, total, start_step) as bar,
    ):
      for step in range(start_step, total):
        self._step(step, source, pending, is_first=step == start_step)
        self.reached = done = step + 1
        last, stopping = done == total, stop.reached(done)
        note = ""
        if done % self.config.log_every_steps == 0 or last or stopping:
          note = self._log(done, pending)
        is_best = self.held_out.evaluate(done, last, self.state, self._alarm)
        if (
          self.checkpointer.due(done)
          or is_best
          or last
          or stopping
          or (note and self.checkpointer.overdue())
        ):
          self._save(done, pending, wait=last or stopping)
        self.books.progress(done - pending.num_running())
        self.dog.beat(done)
        bar.update(1, note)
        if stopping and not last:
          raise errors.Preempted(f"SIGTERM: saved step {done} of {total}")
    self.profiler.stop(self.state)

  def _step(
    self,
    step: int,
    source: Iterator[HostBatch],
    pending: metrics.Pending,
    is_first: bool,
  ) -> None:
    """Takes a batch and one optimizer step, which may go on in the device."""
    self.profiler.before(step, self.state)
    began = time.monotonic()
    with self.books.part("data_wait"):
      host_batch = next(source)
    self.waited_secs += time.monotonic() - began
    batch = evaluation.device_batch(host_batch, self.names, self.partitioner)
    if is_first:
      with self.books.part("compile"), compile_cache.logged("train step"):
        agreement.compile_together(self.train_step, self.state, batch, self.key)
    self.state, values = self.train_step(self.state, batch, self.key)
    pending.add(step + 1, host_batch.get(IDS, ()), values)
    pending.wait(_MAX_RUNNING)

  def _log(self, done: int, pending: metrics.Pending) -> str:
    """Writes the metrics since the last time; returns a note for people."""
    floats = pending.flush()
    now = time.monotonic()
    floats["learning_rate"] = float(self.schedule(done - 1))
    floats["input_wait_fraction"] = self.waited_secs / max(
      now - self.last_log, 1e-9
    )
    self.last_log, self.waited_secs = now, 0.0
    self.writer.scalars(done, "train", floats)
    self.books.flush(done)
    self._alarm(done, floats, "train")
    return f"loss {floats['loss']:.4f}"

  def _alarm(self, done: int, values: Mapping[str, float], split: str) -> None:
    """Says once what a rule of the trainable calls trouble."""
    found = self.alarms.check(done, values, split)
    for alarm in found:
      logging.warning("%s", alarm)
      self.books.note(
        "alarm",
        step=done,
        name=alarm.rule.name,
        metric=alarm.metric,
        value=alarm.value,
        message=str(alarm),
      )
    alarms.raise_if_stopping(found, self.history)

  def _save(self, done: int, pending: metrics.Pending, wait: bool) -> None:
    with self.books.part("checkpoint"):
      # What is on disk is good: a rollback can rely on it.
      pending.check()
      if self.held_out.best is not None:
        # The best one before is whole, and stays until this one is.
        self.checkpointer.wait()
        self.held_out.best.record()
        self.held_out.keep_best(self.checkpointer)
      self.checkpointer.save(self.state, wait)
    self.books.flush(done)

  # --- The end.

  def roll_back(self, error: metrics.BadStepError) -> None:
    """Goes back before a bad step and leaves its batch out from now on.

    Raises:
      BadStepError: `error`, if that is not wanted or was done too often.
    """
    before = [s for s in self.checkpointer.steps() if s < error.step]
    good = max(before, default=0)
    self.rollbacks[good] = self.rollbacks.get(good, 0) + 1
    if (
      not self.options.rollback
      or self.rollbacks[good] > self.options.max_rollbacks
    ):
      # Steps that are not finite change nothing: what is saved here is good.
      self.checkpointer.save(self.state, wait=True)
      raise error
    batch = skips.batch_at(error.step - 1, self.skipped)
    logging.warning(
      "%s; going back to step %d without batch %d", error, good, batch
    )
    skips.add(self.model_dir, batch, str(error))
    self.checkpointer.wait()
    self.checkpointer.delete_after(error.step - 1)
    self.writer.close()
    self.books.rewind(error.step, good, batch=batch, reason=str(error))
    with self.books.part("init"):
      self.start()

  def close(self, error: BaseException | None) -> None:
    """Closes files; waits for pending writes unless a peer may be gone."""
    if self.writer is not None:
      self.writer.close()
    if error is None or not distributed.is_multi_process():
      with contextlib.suppress(*(() if error is None else (Exception,))):
        self.checkpointer.close()


def train(
  model_dir: str | os.PathLike,
  trainable: protocols.Trainable,
  train_batches: Callable[[int], Iterator[HostBatch]],
  eval_batches: Callable[[], Iterator[HostBatch]] | None,
  config: LoopConfig,
  optimizer: optimizers.OptimizerConfig,
  partitioner: partitioner_lib.Partitioner,
  options: RunOptions | None = None,
  books: ledger.Ledger | None = None,
) -> state_lib.TrainState:
  """Trains to `total_steps`, from the newest good checkpoint if there is one.

  Every process of a job calls it with the same arguments.

  Args:
    model_dir: checkpoints, metrics and TensorBoard files go here; a folder
      that all processes share.
    trainable: network and loss.
    train_batches: from a step, an endless iterator of this host's rows.
    eval_batches: one pass over held-out data, or None.
    config: of the run.
    optimizer: of the parameters.
    partitioner: mesh and rules.
    options: of this start.
    books: where the time goes, closed by the caller; its own by default.

  Returns:
    The final state.

  Raises:
    UserError: what is to be evaluated cannot be.
    FloatingPointError: a loss or gradient is not finite; the last finite
      state is saved and the examples are named. Or a rule of the trainable
      with action 'stop' held.
    Preempted: SIGTERM arrived; the state is saved.
    RetryError: a checkpoint could not be written.
  """
  model_dir = pathlib.Path(model_dir)
  model_dir.mkdir(parents=True, exist_ok=True)
  partitioner.check_batch_size(
    config.global_batch_size // config.num_microbatches
  )
  own_books = books is None
  if own_books:
    books = ledger.Ledger(model_dir, distributed.is_main())
  run = _Run(
    model_dir,
    trainable,
    train_batches,
    eval_batches,
    config,
    optimizer,
    partitioner,
    options or RunOptions(),
    books,
  )
  error = None
  try:
    with run.dog:
      run.checkpointer.remove_unfinished()
      run.open_books(run.start())
      books.enter("step")
      with preemption.Preemption() as stop:
        run.until_done(stop)
      books.enter("other")
  except BaseException as caught:
    error = caught
    books.close(ledger.cause_of(caught), run.reached, str(caught))
    raise
  finally:
    run.close(error)
  if own_books:
    books.close("done", config.total_steps)
  return run.state
