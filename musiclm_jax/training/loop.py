# SPDX-License-Identifier: Apache-2.0
"""The training loop, the same for every trainable.

Batches flow in from the data it is given; checkpoints and metrics flow out.
Everything random is a function of (seed, step), every batch of (seed, step,
row): a run killed at any step goes on as if it had not been.
"""

import collections
import dataclasses
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from musiclm_jax.core import errors, progress, protocols, rng
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.training import checkpoints, metrics, optimizers, steps
from musiclm_jax.training import state as state_lib

HostBatch = Mapping[str, np.ndarray]
IDS = "example_ids"


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

  def __post_init__(self):
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


class _SigtermFlag:
  """Notes SIGTERM, so that the loop can save and stop between steps."""

  def __init__(self):
    self.raised = False
    self._previous = None

  def __enter__(self) -> "_SigtermFlag":
    try:
      self._previous = signal.signal(signal.SIGTERM, self._note)
    except ValueError:  # not in the main thread (tests)
      self._previous = None
    return self

  def _note(self, *unused) -> None:
    self.raised = True

  def __exit__(self, *unused) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)


def _device_batch(
  batch: HostBatch, names: Any, partitioner: partitioner_lib.Partitioner
) -> dict[str, jax.Array]:
  missing = sorted(set(names) - set(batch))
  if missing:
    raise ValueError(
      f"batch lacks features {missing}: it has {sorted(batch)}; does the task "
      "fit this trainable?"
    )
  return partitioner.put_batch({name: batch[name] for name in names})


def evaluate(
  eval_step: Callable[..., Any],
  variables: Any,
  batches: Iterator[HostBatch],
  names: Any,
  partitioner: partitioner_lib.Partitioner,
  key: jax.Array,
  step: jax.Array,
  num_batches: int,
) -> tuple[dict[str, float], dict[str, jax.Array] | None]:
  """Mean held-out metrics, and the first batch on the devices."""
  parts, first = [], None
  for index, host_batch in enumerate(batches):
    if num_batches and index >= num_batches:
      break
    batch = _device_batch(host_batch, names, partitioner)
    first = batch if first is None else first
    parts.append(
      eval_step(variables, batch, jax.random.fold_in(key, index), step)
    )
  return metrics.to_floats(metrics.merge(parts)), first


class _Pending:
  """Metrics of steps not looked at yet, with the ids of their examples."""

  def __init__(self):
    self._items = collections.deque()

  def add(
    self, step: int, ids: Any, values: Mapping[str, protocols.Mean]
  ) -> None:
    self._items.append((step, ids, values))

  def flush(self) -> dict[str, float]:
    """Averages and forgets; raises FloatingPointError on a non-finite step."""
    items, self._items = list(self._items), collections.deque()
    for step, ids, values in items:
      if not float(values["finite"].total):
        bad = sorted(
          name
          for name, mean in values.items()
          if not np.all(np.isfinite(np.asarray(mean.total)))
        )
        raise FloatingPointError(
          f"step {step}: gradients or {bad or 'loss'} are not finite; the "
          f"batch held examples {np.asarray(ids).tolist()}"
        )
    return metrics.to_floats(metrics.merge(values for _, _, values in items))


def _warm_start(
  trainable: protocols.Trainable,
  state: state_lib.TrainState,
  shardings: state_lib.TrainState,
  batches: Iterator[HostBatch],
  names: Any,
  partitioner: partitioner_lib.Partitioner,
  key: jax.Array,
) -> state_lib.TrainState:
  """Lets a trainable start some of its variables from the first batches."""
  with partitioner.context():
    fitted = trainable.warm_start(
      state.variables,
      (
        _device_batch(next(batches), names, partitioner)
        for _ in range(trainable.num_warm_start_batches)
      ),
      rng.named(key, "warm_start"),
    )
  variables = jax.device_put(
    {**state.variables, **fitted},
    {"params": shardings.params, **shardings.collections},
  )
  params = variables.pop("params")
  return dataclasses.replace(
    state,
    params=params,
    collections=variables,
    ema_params=None if state.ema_params is None else params,
  )


def train(
  model_dir: str | os.PathLike,
  trainable: protocols.Trainable,
  train_batches: Callable[[int], Iterator[HostBatch]],
  eval_batches: Callable[[], Iterator[HostBatch]] | None,
  config: LoopConfig,
  optimizer: optimizers.OptimizerConfig,
  partitioner: partitioner_lib.Partitioner,
) -> state_lib.TrainState:
  """Trains to `total_steps`, from the newest good checkpoint if there is one.

  Args:
    model_dir: checkpoints, metrics and TensorBoard files go here.
    trainable: network and loss.
    train_batches: from a step, an endless iterator of this host's rows.
    eval_batches: one pass over held-out data, or None.
    config: of the run.
    optimizer: of the parameters.
    partitioner: mesh and rules.

  Returns:
    The final state.

  Raises:
    FloatingPointError: a loss or gradient is not finite; the last finite
      state is saved and the examples are named.
    Preempted: SIGTERM arrived; the state is saved.
  """
  pathlib.Path(model_dir).mkdir(parents=True, exist_ok=True)
  partitioner.check_batch_size(
    config.global_batch_size // config.num_microbatches
  )
  transform = optimizers.make_optimizer(optimizer)
  schedule = optimizers.make_schedule(optimizer)
  checkpointer = checkpoints.Checkpointer(model_dir, config.checkpointing)
  key = rng.root_key(config.seed)
  names = sorted(trainable.input_shapes(config.global_batch_size))

  # --- State: restored or fresh.
  create_args = (
    trainable,
    transform,
    partitioner,
    config.global_batch_size,
    config.seed,
    config.ema_decay > 0,
  )
  abstract, shardings = state_lib.create(*create_args, abstract=True)
  state = checkpointer.restore(abstract)
  if state is None:
    state, _ = state_lib.create(*create_args)
    if getattr(trainable, "num_warm_start_batches", 0):
      first_batches = iter(train_batches(0))
      state = _warm_start(
        trainable, state, shardings, first_batches, names, partitioner, key
      )
      first_batches.close()
  start_step = int(state.step)
  logging.info(
    "%d parameters, mesh %s, %s step %d of %d",
    state_lib.num_parameters(state.params),
    dict(partitioner.mesh.shape),
    "going on at" if start_step else "starting at",
    start_step,
    config.total_steps,
  )

  # --- Compiled steps.
  train_step = partitioner.jit(
    steps.make_train_step(
      trainable, transform, config.num_microbatches, config.ema_decay
    ),
    donate_argnums=0,
    out_shardings=(shardings, None),
  )
  eval_step = partitioner.jit(steps.make_eval_step(trainable))
  writer = metrics.MetricsWriter(model_dir, start_step)
  name = pathlib.Path(model_dir).name

  def run_eval(step: int) -> None:
    if eval_batches is None:
      return
    values, first = evaluate(
      eval_step,
      state.best_variables,
      eval_batches(),
      names,
      partitioner,
      rng.named(key, "eval"),
      state.step,
      config.num_eval_batches,
    )
    writer.scalars(step, "heldout", values)
    if first is not None and hasattr(trainable, "media"):
      writer.media(step, trainable.media(state.best_variables, first))

  # --- The loop.
  pending, waited = _Pending(), 0.0
  last_log = time.monotonic()
  batches = train_batches(start_step) if start_step < config.total_steps else ()
  source = iter(batches)
  try:
    with (
      _SigtermFlag() as sigterm,
      progress.Progress(name, config.total_steps, start_step) as bar,
    ):
      for step in range(start_step, config.total_steps):
        began = time.monotonic()
        host_batch = next(source)
        waited += time.monotonic() - began
        batch = _device_batch(host_batch, names, partitioner)
        state, values = train_step(state, batch, key)
        done = step + 1
        pending.add(done, host_batch.get(IDS, ()), values)

        note = ""
        last = done == config.total_steps
        if done % config.log_every_steps == 0 or last or sigterm.raised:
          floats = pending.flush()
          now = time.monotonic()
          floats["learning_rate"] = float(schedule(step))
          floats["input_wait_fraction"] = waited / max(now - last_log, 1e-9)
          last_log, waited = now, 0.0
          writer.scalars(done, "train", floats)
          note = f"loss {floats['loss']:.4f}"
        if last or (
          config.eval_every_steps and done % config.eval_every_steps == 0
        ):
          run_eval(done)
        if checkpointer.due(done) or last or sigterm.raised:
          checkpointer.save(state, wait=last or sigterm.raised)
        bar.update(1, note)
        if sigterm.raised and not last:
          raise errors.Preempted(
            f"SIGTERM: saved step {done} of {config.total_steps}"
          )
  except FloatingPointError:
    # Non-finite steps changed nothing, so what is saved here is good.
    checkpointer.save(state, wait=True)
    raise
  finally:
    writer.close()
    checkpointer.close()
    if hasattr(source, "close"):
      source.close()
  return state
