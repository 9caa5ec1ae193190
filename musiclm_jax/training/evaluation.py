# SPDX-License-Identifier: Apache-2.0
"""Held-out evaluation, in which no process leaves a collective early.

Batches flow in from each process' own data; metrics of all rows come out.
Before each batch the processes agree whether there is one. A process that has
none left while others have joins in with rows of weight 0.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.training import agreement, distributed, metrics

HostBatch = Mapping[str, np.ndarray]
_WEIGHTS = "weights"


def device_batch(
  batch: HostBatch,
  names: Sequence[str],
  partitioner: partitioner_lib.Partitioner,
) -> dict[str, jax.Array]:
  """The features a trainable reads, on the devices.

  Raises:
    ValueError: if one is missing.
  """
  missing = sorted(set(names) - set(batch))
  if missing:
    raise ValueError(
      f"batch lacks features {missing}: it has {sorted(batch)}; does the task "
      "fit this trainable?"
    )
  return partitioner.put_batch({name: batch[name] for name in names})


def _filler(batch: HostBatch, names: Sequence[str]) -> HostBatch | None:
  """Rows like those of `batch` that count nothing; None where all count."""
  weights = [name for name in names if _WEIGHTS in name]
  if not weights:
    return None
  return {
    **batch,
    **{name: np.zeros_like(batch[name]) for name in weights},
  }


def in_step(
  batches: Iterator[HostBatch], names: Sequence[str]
) -> Iterator[HostBatch]:
  """This process' batches, as many as the process with most of them has.

  Features with 'weights' in their name are 0 in what is filled in. Where the
  trainable reads no weights, all stop with the process that has fewest.
  """
  source, last = iter(batches), None
  while True:
    batch = next(source, None)
    if not distributed.is_multi_process():
      if batch is None:
        return
      yield batch
      continue
    if agreement.all_agree("eval_has_none", batch is None):
      return
    if batch is None and last is not None:
      batch = _filler(last, names)
    if not agreement.all_agree("eval_has_one", batch is not None):
      return
    yield batch
    last = batch


def evaluate(
  eval_step: Callable[..., Any],
  variables: Any,
  batches: Iterator[HostBatch],
  names: Sequence[str],
  partitioner: partitioner_lib.Partitioner,
  key: jax.Array,
  step: jax.Array,
  num_batches: int,
) -> tuple[dict[str, float], dict[str, jax.Array] | None]:
  """Mean held-out metrics, and the first batch on the devices."""
  parts, first = [], None
  for index, host_batch in enumerate(in_step(batches, names)):
    if num_batches and index >= num_batches:
      break
    batch = device_batch(host_batch, names, partitioner)
    first = batch if first is None else first
    args = (variables, batch, jax.random.fold_in(key, index), step)
    if not parts and distributed.is_multi_process():
      agreement.compile_together(eval_step, *args)
    parts.append(eval_step(*args))
  return metrics.to_floats(metrics.merge(parts)), first
