# SPDX-License-Identifier: Apache-2.0
"""Logical axis names: parameters carry them, block edges are constrained.

Names in use: batch, length, frames, embed, heads, kv, mlp, vocab, layers,
codebook, code_dim, conv_in, conv_out, kernel_time, kernel_freq,
relpos_buckets, stats. `partitioning/rules.py` maps them to mesh axes.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Names = Sequence[Any]
Rules = Sequence[tuple[str, Any]]

_ACTIVE: contextvars.ContextVar[Any] = contextvars.ContextVar(
  "active_mesh", default=None
)
# A split that does not divide is padded by less than 1 / 4 at most.
_UNEVEN_FACTOR = 4


def named(init: Callable[..., Any], names: Names) -> Callable[..., Any]:
  """Wraps a parameter initializer so that the parameter carries `names`."""
  return nn.with_logical_partitioning(init, tuple(names))


@contextlib.contextmanager
def activate(mesh: jax.sharding.Mesh, rules: Rules) -> Iterator[None]:
  """Context in which `constrain` maps logical names to `mesh` by `rules`.

  Not jax's or flax's own mesh context: with one of those, flax also constrains
  parameters where it unboxes them, which fails for abstract ones. The context
  is read while tracing, and jax caches traces by function: trace a function
  object under one mesh only (`Partitioner.jit` does).
  """
  token = _ACTIVE.set((mesh, tuple(rules)))
  try:
    yield
  finally:
    _ACTIVE.reset(token)


def constrain(x: jax.Array, names: Names) -> jax.Array:
  """Pins activation `x` to the mesh axes its logical `names` map to.

  A dimension that does not divide is split anyway if little padding results
  (any length of a sequence), and whole if not (2 heads on 8 devices). Outside
  `activate`, and on one device, it returns `x`.
  """
  active = _ACTIVE.get()
  if active is None or active[0].size == 1:
    return x
  mesh, rules = active
  spec = nn.logical_to_mesh_axes(tuple(names), rules)
  kept = [
    axis if not size % width or size >= _UNEVEN_FACTOR * width else None
    for size, axis, width in zip(x.shape, spec, _widths(mesh, spec))
  ]
  return jax.lax.with_sharding_constraint(
    x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*kept))
  )


def is_split(name: str) -> bool:
  """Whether activations are now split along logical axis `name`.

  For layers that would merge this axis with another: the merged axis could not
  stay split.
  """
  if _ACTIVE.get() is None:
    return False
  mesh, rules = _ACTIVE.get()
  spec = nn.logical_to_mesh_axes((name,), rules)
  return _widths(mesh, spec)[0] > 1


def _widths(mesh: jax.sharding.Mesh, spec: Names) -> list[int]:
  """Shards of each dimension."""
  return [
    math.prod(
      mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis)
    )
    if axis
    else 1
    for axis in spec
  ]


def platform() -> str:
  """Kind of the devices a program is now traced for: 'tpu', 'gpu' or 'cpu'."""
  active = _ACTIVE.get()
  if active is None:
    return jax.default_backend()
  return active[0].devices.flat[0].platform


def on_each_device(
  function: Callable[..., Any],
  in_names: Sequence[Names],
  out_names: Names,
) -> Callable[..., Any]:
  """`function` run by each device on its part of the arguments.

  For programs that the compiler cannot split by itself (kernels). Where a
  mesh axis does not divide a dimension, all its devices do the same.

  Args:
    function: takes arrays positionally; sees their local shapes.
    in_names: logical names of each argument's dimensions; a tuple of names
      splits a dimension over the mesh axes of all of them.
    out_names: of the leading dimensions of the result, or of each array in
      it if it is a tree.
  """
  active = _ACTIVE.get()
  if active is None or active[0].size == 1:
    return function
  mesh, rules = active

  def resolve(names: Names) -> list[tuple[str, ...]]:
    groups = [name if isinstance(name, tuple) else (name,) for name in names]
    flat = [name for group in groups for name in group]
    found = iter(nn.logical_to_mesh_axes(tuple(flat), rules))
    parts = []
    for group in groups:
      part = [next(found) for _ in group]
      part = [p if isinstance(p, tuple) else (p,) for p in part if p]
      parts.append(tuple(axis for axes in part for axis in axes))
    return parts

  def call(*arrays: jax.Array) -> Any:
    kept: dict[Any, tuple[str, ...]] = {}
    for array, names in zip(arrays, in_names):
      for size, name, part in zip(array.shape, names, resolve(names)):
        part = kept.get(name, part)
        while size % math.prod(mesh.shape[axis] for axis in part):
          part = part[:-1]
        kept[name] = part

    def spec(names: Names) -> jax.sharding.PartitionSpec:
      return jax.sharding.PartitionSpec(
        *(kept.get(name) or None if name else None for name in names)
      )

    return jax.shard_map(
      function,
      mesh=mesh,
      in_specs=tuple(spec(names) for names in in_names),
      out_specs=spec(out_names),
      check_vma=False,
    )(*arrays)

  return call


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gather(
  x: jax.Array, names: Names, dtype: jax.typing.DTypeLike, whole: bool
) -> jax.Array:
  """A parameter for computing with: cast where it lies, then sent.

  Left to itself the compiler sends float32, and again for each use. The
  gradient is reduced in `dtype` too, to where the parameter lies.

  Args:
    x: parameter.
    names: logical names of its dimensions; hashable.
    dtype: to compute in.
    whole: every device gets all of 'embed' here; otherwise where it is used.
  """
  x = constrain(x.astype(dtype), names)
  if whole:
    x = constrain(x, [None if name == "embed" else name for name in names])
  return x


def _gather_forward(x, names, dtype, whole):
  return gather(x, names, dtype, whole), jnp.zeros((), x.dtype)


def _gather_backward(names, dtype, whole, saved, grad):
  del dtype, whole
  return (constrain(grad, names).astype(saved.dtype),)


gather.defvjp(_gather_forward, _gather_backward)


def unbox(variables: Any) -> Any:
  """Variables as plain arrays, without their axis names."""
  return nn.meta.unbox(variables)


def logical_specs(variables: Any) -> Any:
  """A tree of `PartitionSpec`s of logical names, one per leaf."""
  return nn.get_partition_spec(variables)


def mesh_shardings(
  variables: Any, mesh: jax.sharding.Mesh, rules: Rules
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
  mesh, spec = sharding.mesh, sharding.spec
  kept = [
    axis if size % width == 0 else None
    for size, axis, width in zip(shape, spec, _widths(mesh, spec))
  ]
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*kept))
