# SPDX-License-Identifier: Apache-2.0
"""Gradients of several losses at one tensor in; their balanced sum out.

A loss' weight then says what share of the step it gets, whatever its scale
(EnCodec sec. 3.4): each gradient is divided by a moving average of its own
norm before the weighted sum.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class BalancerConfig:
  """Attributes of the balancing.

  Attributes:
    decay: of the average norms per microbatch (EnCodec: 0.999).
    total_norm: norm of an example's balanced gradient, on average, if all
      losses pulled the same way (EnCodec: 1). As with any loss that is a mean
      over the batch, its rows are then divided by the batch size.
  """

  decay: float = 0.999
  total_norm: float = 1.0

  def __post_init__(self):
    if not 0 < self.decay < 1:
      raise ValueError(f"decay={self.decay}: expected in (0, 1)")
    if not self.total_norm > 0:
      raise ValueError(f"total_norm={self.total_norm}: expected > 0")


class Norms(NamedTuple):
  """Moving averages, one entry per loss, float32 `[losses]`.

  Attributes:
    sums: decayed sums of norms.
    weights: decayed counts; `sums / weights` is free of the start at zero.
  """

  sums: jax.Array
  weights: jax.Array


def fresh(num_losses: int) -> Norms:
  """Norms of which nothing is known."""
  return Norms(jnp.zeros((num_losses,)), jnp.zeros((num_losses,)))


def balance(
  gradients: Mapping[str, jax.Array],
  shares: Mapping[str, float],
  norms: Norms,
  config: BalancerConfig,
) -> tuple[jax.Array, Norms, dict[str, jax.Array]]:
  """The sum of gradients, each brought to its share.

  A loss whose gradient is zero everywhere (critics that rest) takes no part:
  its average stays, and its share goes to the others.

  Args:
    gradients: by loss, `[batch, ...]`, of a mean over the batch.
    shares: by loss, positive; only their ratios count.
    norms: averages before, in the order of `shares`.
    config: decay and size.

  Returns:
    The balanced gradient, `[batch, ...]`; the averages after; and by loss the
    mean norm of an example in this batch.
  """
  batch = next(iter(gradients.values())).shape[0]
  # Of a mean over the batch: times its size, an example's own gradient.
  seen = {
    name: jnp.sqrt((gradients[name] ** 2).reshape(batch, -1).sum(-1)).mean()
    * batch
    for name in shares
  }
  now = jnp.stack(list(seen.values()))
  active = (now > 0).astype(jnp.float32)
  decay = jnp.where(active > 0, config.decay, 1.0)
  after = Norms(
    decay * norms.sums + (1 - decay) * now,
    decay * norms.weights + (1 - decay),
  )
  usual = after.sums / jnp.maximum(after.weights, 1e-12)
  weights = jnp.asarray(list(shares.values())) * active
  weights = weights / jnp.maximum(weights.sum(), 1e-12)
  scale = config.total_norm * weights / jnp.maximum(usual, 1e-12)
  total = sum(scale[i] * gradients[name] for i, name in enumerate(shares))
  return total, after, seen
