# SPDX-License-Identifier: Apache-2.0
"""Activations of the codec's decoder: `[..., channels]` in, the same out."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.partitioning import axes

ACTIVATIONS = ("elu", "snake")


class Snake(nn.Module):
  """`x + sin(a x)^2 / a` with an `a` per channel (arXiv 2006.08195).

  Periodic, so that a sum of few units stays a tone beyond what was trained on.

  Attributes:
    start: `a` at the start; small ones begin nearly linear.
  """

  start: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = axes.named(nn.initializers.constant(self.start), ("conv_out",))
    frequency = self.param("frequency", init, (x.shape[-1],))
    # Of 0 the limit is the identity; the bound keeps it off.
    frequency = jnp.where(jnp.abs(frequency) < 1e-4, 1e-4, frequency)
    return x + jnp.sin(frequency * x) ** 2 / frequency
