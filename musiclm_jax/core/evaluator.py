# SPDX-License-Identifier: Apache-2.0
"""What measures held-out data while a part trains, beside its loss."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from musiclm_jax.core import protocols


class Evaluator(Protocol):
  """A metric of held-out data that a loss does not give; run while training.

  It knows no devices: `rows` is traced into one program, whose results of all
  rows come to the host, where `score` makes numbers of them.

  Attributes:
    name: what its metrics are called by, 'NAME/...'.
    every_steps: how often; 0 goes with the held-out loss.
    num_batches: at most so many held-out batches; 0 takes all.
    directions: 'min' or 'max' by metric: every metric `score` returns.
  """

  name: str
  every_steps: int
  num_batches: int

  @property
  def directions(self) -> Mapping[str, str]: ...

  def fits(self, trainable: protocols.Trainable) -> bool:
    """Whether a trainable has what is measured."""

  def rows(
    self,
    trainable: protocols.Trainable,
    variables: protocols.Variables,
    batch: protocols.Batch,
    key: jax.Array,
  ) -> Any:
    """A tree of arrays `[batch, ...]`; pure, for `jax.jit`."""

  def score(self, rows: Any) -> dict[str, float]:
    """Metrics of such a tree of numpy arrays, `[items, ...]` of all batches."""
