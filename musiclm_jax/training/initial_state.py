# SPDX-License-Identifier: Apache-2.0
"""The state a run begins with: restored, or fresh and started from data."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from musiclm_jax.core import protocols, rng
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.training import checkpoints, evaluation
from musiclm_jax.training import state as state_lib

HostBatch = Mapping[str, np.ndarray]


def _warm_start(
  trainable: protocols.Trainable,
  state: state_lib.TrainState,
  shardings: state_lib.TrainState,
  batches: Iterator[HostBatch],
  names: Sequence[str],
  partitioner: partitioner_lib.Partitioner,
  key: jax.Array,
) -> state_lib.TrainState:
  """Lets a trainable start some of its variables from the first batches."""
  with partitioner.context():
    fitted = trainable.warm_start(
      state.variables,
      (
        evaluation.device_batch(next(batches), names, partitioner)
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


def restore_or_create(
  checkpointer: checkpoints.Checkpointer,
  trainable: protocols.Trainable,
  transform: optax.GradientTransformation,
  partitioner: partitioner_lib.Partitioner,
  config: Any,
  first_batches: Callable[[], Iterator[HostBatch]],
) -> tuple[state_lib.TrainState, Any]:
  """The newest good checkpoint on this mesh, or a fresh state.

  Args:
    checkpointer: of the run.
    trainable: network and loss.
    transform: the optimizer.
    partitioner: mesh and rules.
    config: `loop.LoopConfig`.
    first_batches: the batches a new state may be started from.

  Returns:
    The state and its shardings.
  """
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
  if state is not None:
    return state, shardings
  state, _ = state_lib.create(*create_args)
  if getattr(trainable, "num_warm_start_batches", 0):
    batches = first_batches()
    names = sorted(trainable.input_shapes(config.global_batch_size))
    key = rng.root_key(config.seed)
    state = _warm_start(
      trainable, state, shardings, batches, names, partitioner, key
    )
    batches.close()
  return state, shardings
