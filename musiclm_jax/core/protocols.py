# SPDX-License-Identifier: Apache-2.0
"""Seams between folders: what a trainable is, what metrics are."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

Batch = Mapping[str, jax.Array]
Variables = Mapping[str, Any]


class Mean(NamedTuple):
  """A metric as sum and weight, so that batches and hosts average exactly."""

  total: Any
  count: Any

  def merge(self, other: "Mean") -> "Mean":
    return Mean(self.total + other.total, self.count + other.count)


class LossOutput(NamedTuple):
  """What `Trainable.loss` returns beside the loss.

  Attributes:
    state: updated non-parameter collections (codebooks, statistics).
    metrics: by name, `Mean`s.
  """

  state: Mapping[str, Any]
  metrics: Mapping[str, Mean]


@runtime_checkable
class Trainable(Protocol):
  """A network with its loss; knows neither devices, data nor optimizers.

  A trainable may also define
  `gradients(variables, batch, key, step) -> (grads, LossOutput)` where one
  loss does not fit all parameters (a GAN); `grads` has the tree of
  `variables['params']`. The loop then calls it in place of `jax.grad(loss)`.

  Where the rows of a batch depend on each other, `in_parts(num_microbatches)`
  gives a trainable with the loss of the whole batch that needs the memory of
  a part; the step then does not cut the batch itself.

  And it may start codebooks from data before the first step:
  `num_warm_start_batches` and `warm_start(variables, batches, key) ->` those
  variables ('params' or other collections, whole) that change. For TensorBoard,
  `media(variables, batch)` gives sounds and pictures of a held-out batch.

  What means trouble is declared: `alarm_rules(batch_size) ->` rules
  (`core/alarms.py`) that the loop compares with the metrics it logs, and
  `loss_terms`, by player the metrics its loss consists of in the order they
  are computed, among which the loop looks for the one that went bad first.
  """

  def input_shapes(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Features the loss reads, with shapes and dtypes."""

  def init(self, key: jax.Array, batch: Batch) -> Variables:
    """Fresh variables: 'params' and perhaps other collections.

    Leaves are boxed with logical axis names (`partitioning/axes.py`).
    """

  def loss(
    self,
    variables: Variables,
    batch: Batch,
    key: jax.Array,
    step: jax.Array,
    train: bool,
  ) -> tuple[jax.Array, LossOutput]:
    """Mean loss of a batch (float32 scalar), new state and metrics."""
