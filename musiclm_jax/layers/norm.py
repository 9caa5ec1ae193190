# SPDX-License-Identifier: Apache-2.0
"""Norms over the last axis, statistics in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.partitioning import axes


class RMSNorm(nn.Module):
  """T5's norm: no mean, no bias.

  Attributes:
    precision: dtypes; the statistics are float32 in any case.
    epsilon: added to the mean square.
  """

  precision: precision_lib.Precision = precision_lib.Precision()
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., embed]` to the same shape, in the compute dtype."""
    scale = self.param(
      "scale",
      axes.named(nn.initializers.ones, ("embed",)),
      (x.shape[-1],),
      self.precision.param_dtype,
    )
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(mean_square + self.epsilon)
    return (x * scale).astype(self.precision.compute_dtype)


def layer_norm(
  precision: precision_lib.Precision, eps: float, axis: str, name: str
) -> nn.LayerNorm:
  """LayerNorm with scale and bias, for networks with imported weights.

  Args:
    precision: dtypes; the statistics are float32 in any case.
    eps: added to the variance.
    axis: logical name of the last axis.
    name: of the module.
  """
  return nn.LayerNorm(
    epsilon=eps,
    dtype=precision.compute_dtype,
    param_dtype=precision.param_dtype,
    scale_init=axes.named(nn.initializers.ones, (axis,)),
    bias_init=axes.named(nn.initializers.zeros, (axis,)),
    name=name,
  )
