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


def mesh_shardings(
  variables: Any, mesh: jax.sharding.Mesh, rules: Sequence[tuple[str, Any]]
) -> Any:
  """Shardings for (abstract, boxed) variables: one `NamedSharding` per leaf.

  A dimension that its mesh axes do not divide is replicated instead, so that
  a small model runs on any mesh.

  Args:
    variables: tree of boxed `ShapeDtypeStruct`s or arrays.
    mesh: the device mesh.
    rules: ordered (logical axis, mesh axis or axes or None) pairs; the first
      rule whose mesh axes are still free in a parameter wins.
  """
  specs = nn.logical_to_mesh(logical_specs(variables), tuple(rules))
  with_spec = jax.tree.map(
    lambda spec: jax.sharding.NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec),
  )
  return jax.tree.map(
    lambda leaf, sharding: _fit(leaf.shape, sharding),
    unbox(variables),
    with_spec,
  )


def _fit(
  shape: tuple[int, ...], sharding: jax.sharding.NamedSharding
) -> jax.sharding.NamedSharding:
  """Drops mesh axes from dimensions that they do not divide."""
  mesh, kept = sharding.mesh, []
  for size, axis in zip(shape, tuple(sharding.spec)):
    names = () if axis is None else axis if isinstance(axis, tuple) else (axis,)
    width = 1
    for name in names:
      width *= mesh.shape[name]
    kept.append(axis if size % width == 0 else None)
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*kept))


def rule_context(rules: Sequence[tuple[str, Any]]):
  """Context in which `constrain` maps logical names by `rules`."""
  return nn.logical_axis_rules(tuple(rules))
