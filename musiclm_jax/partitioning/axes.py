# SPDX-License-Identifier: Apache-2.0
"""Logical axis names: parameters carry them, block edges are constrained.

Names in use: batch, length, frames, embed, heads, kv, mlp, vocab, layers,
codebook, code_dim, conv_in, conv_out, kernel_time, kernel_freq,
relpos_buckets, stats. `partitioning/rules.py` maps them to mesh axes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

Names = Sequence[str | None]


def named(init: Callable[..., Any], names: Names) -> Callable[..., Any]:
  """Wraps a parameter initializer so that the parameter carries `names`."""
  return nn.with_logical_partitioning(init, tuple(names))


def constrain(x: jax.Array, names: Names) -> jax.Array:
  """Pins activation `x` to the mesh axes its logical `names` map to.

  Without an active rule set (no mesh, or a plain call) it returns `x`.
  """
  return nn.with_logical_constraint(x, tuple(names))


def unbox(variables: Any) -> Any:
  """Variables as plain arrays, without their axis names."""
  return nn.meta.unbox(variables)


def logical_specs(variables: Any) -> Any:
  """A tree of `PartitionSpec`s of logical names, one per leaf."""
  return nn.get_partition_spec(variables)
