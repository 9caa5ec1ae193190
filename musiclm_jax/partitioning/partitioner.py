# SPDX-License-Identifier: Apache-2.0
"""The partitioner: shardings of states and batches on one mesh.

Knows no model: it maps logical names to the mesh and moves host batches.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from musiclm_jax.partitioning import axes
from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.partitioning import rules as rules_lib


class Partitioner:
  """A mesh with its rules.

  Attributes:
    mesh: the device mesh.
    rules: ordered logical-to-mesh rules.
    batch_sharding: sharding of a batch's leading axis.
  """

  def __init__(self, config: mesh_lib.MeshConfig, devices: Any = None):
    """Builds the mesh of `config` over `devices` (all by default)."""
    self.mesh = mesh_lib.make_mesh(config, devices)
    self.rules = rules_lib.rule_set(config.rules)
    batch_axes = dict(self.rules)["batch"]
    self._batch_axes = (
      (batch_axes,) if isinstance(batch_axes, str) else batch_axes
    )
    self.batch_sharding = jax.sharding.NamedSharding(
      self.mesh, jax.sharding.PartitionSpec(self._batch_axes)
    )
    self.replicated = jax.sharding.NamedSharding(
      self.mesh, jax.sharding.PartitionSpec()
    )

  @property
  def batch_divisor(self) -> int:
    """Number of shards of a batch; global batches must be a multiple."""
    return int(np.prod([self.mesh.shape[name] for name in self._batch_axes]))

  def check_batch_size(self, global_batch_size: int) -> None:
    """Raises ValueError if a global batch does not split over the mesh."""
    if global_batch_size % self.batch_divisor:
      raise ValueError(
        f"global_batch_size={global_batch_size}: expected a multiple of "
        f"{self.batch_divisor} (mesh {dict(self.mesh.shape)})"
      )

  def shardings(self, abstract: Any) -> Any:
    """One sharding per leaf of an abstract, boxed tree."""
    return axes.mesh_shardings(abstract, self.mesh, self.rules)

  def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's rows, `[host_batch, ...]`, to global arrays."""
    return {
      name: jax.make_array_from_process_local_data(self.batch_sharding, array)
      for name, array in batch.items()
    }

  @contextlib.contextmanager
  def context(self) -> Iterator[None]:
    """Within it, `axes.constrain` splits activations over this mesh."""
    with self.mesh, axes.rule_context(self.rules):
      yield

  def jit(self, function: Callable[..., Any], **kwargs: Any) -> Any:
    """`jax.jit` whose calls and traces run inside `context`."""
    jitted = jax.jit(function, **kwargs)

    def call(*args):
      with self.context():
        return jitted(*args)

    call.lower = lambda *args: self._lower(jitted, args)
    return call

  def _lower(self, jitted: Any, args: tuple[Any, ...]) -> Any:
    with self.context():
      return jitted.lower(*args)
