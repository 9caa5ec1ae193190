# SPDX-License-Identifier: Apache-2.0
"""The compiled train step alone, on one batch that stays on the devices."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from musiclm_jax.cli import benchmarking, experiment
from musiclm_jax.core import rng
from musiclm_jax.training import optimizers, steps
from musiclm_jax.training import state as state_lib


def run(
  built: experiment.Experiment, timing: benchmarking.Timing
) -> dict[str, Any]:
  """Steps and tokens per second, after one call that compiles."""
  host_batches = built.data.train_batches(
    0, jax.process_index(), jax.process_count()
  )
  host_batch = next(host_batches)
  host_batches.close()
  names = built.trainable.input_shapes(built.loop.global_batch_size)
  return time_step(built, timing, {name: host_batch[name] for name in names})


def time_step(
  built: experiment.Experiment,
  timing: benchmarking.Timing,
  host_batch: Mapping[str, np.ndarray],
) -> dict[str, Any]:
  """Times the step on one batch.

  Args:
    built: what is trained.
    timing: number and length of runs.
    host_batch: this host's rows.

  Returns:
    Rates, sizes and the time of the call that compiles.
  """
  partitioner = built.make_partitioner()
  config = built.loop_on(partitioner)
  transform = optimizers.make_optimizer(built.optimizer)
  state, shardings = state_lib.create(
    built.trainable,
    transform,
    partitioner,
    config.global_batch_size,
    config.seed,
    config.ema_decay > 0,
  )
  batch = partitioner.put_batch(host_batch)
  train_step = partitioner.jit(
    steps.make_train_step(
      built.trainable, transform, config.num_microbatches, config.ema_decay
    ),
    donate_argnums=0,
    out_shardings=(shardings, None),
  )
  key = rng.root_key(config.seed)

  def step() -> None:
    nonlocal state
    state, _ = jax.block_until_ready(train_step(state, batch, key))

  started = time.perf_counter()
  step()
  first_secs = time.perf_counter() - started
  found = benchmarking.rates(step, timing)
  return {
    "num_parameters": state_lib.num_parameters(state.params),
    "global_batch_size": config.global_batch_size,
    "mesh": dict(partitioner.mesh.shape),
    "compile_and_first_step_secs": first_secs,
    "step_secs": 1.0 / found["calls_per_second"],
    **benchmarking.per_batch(found, host_batch),
  }
