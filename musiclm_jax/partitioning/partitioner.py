# SPDX-License-Identifier: Apache-2.0
"""The partitioner: shardings of states and batches on one mesh.

Knows no model: it maps logical names to the mesh and moves host batches.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from musiclm_jax.partitioning import auto_mesh, axes
from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.partitioning import rules as rules_lib


def part_of_host(
  rows: Mapping[int, Collection[int]], host: int
) -> tuple[int, int]:
  """Index of a host's part of the batch, and number of parts.

  Args:
    rows: by host, the shards of the batch that its devices hold.
    host: whose part.

  Raises:
    ValueError: if parts overlap without being equal, or differ in size.
  """
  parts = sorted({tuple(sorted(part)) for part in rows.values()})
  every = [row for part in parts for row in part]
  if len(set(every)) < len(every) or len({len(part) for part in parts}) > 1:
    raise ValueError(
      "the mesh gives hosts rows of the batch that overlap in part, or more to "
      f"one than to another: {parts}; expected sizes for which each host has "
      "the same rows as another or none of them"
    )
  return parts.index(tuple(sorted(rows[host]))), len(parts)


class Partitioner:
  """A mesh with its rules.

  Attributes:
    config: sizes of the mesh; where they were left to choose, those chosen.
    mesh: the device mesh.
    rules: ordered logical-to-mesh rules.
    batch_sharding: sharding of a batch's leading axis.
  """

  def __init__(
    self,
    config: mesh_lib.MeshConfig | auto_mesh.AutoMeshConfig,
    devices: Sequence[Any] | None = None,
    num_parameters: int = 0,
    global_batch_size: int = 1,
  ):
    """Builds the mesh of `config`.

    Args:
      config: sizes, or how to choose them.
      devices: all by default; those of a topology description will do.
      num_parameters: of the model; read only where sizes are chosen.
      global_batch_size: rows of a (micro)batch; read only there too.
    """
    if isinstance(config, auto_mesh.AutoMeshConfig):
      devices = jax.devices() if devices is None else list(devices)
      config = auto_mesh.resolve(
        config, num_parameters, global_batch_size, devices
      )
    self.config = config
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

  def num_microbatches(
    self, global_batch_size: int, rows_per_device: int
  ) -> int:
    """Fewest parts of a global batch, none with more rows on a device.

    Devices that share their rows (sequence, tensor) count as one.

    Args:
      global_batch_size: rows of one optimizer step.
      rows_per_device: most rows of a microbatch on a device; 0: all of them.

    Raises:
      ValueError: if the batch does not split over the mesh.
    """
    self.check_batch_size(global_batch_size)
    rows = global_batch_size // self.batch_divisor
    if rows_per_device < 0:
      raise ValueError(f"rows_per_device={rows_per_device}: expected >= 0")
    most = min(rows_per_device or rows, rows)
    return rows // max(n for n in range(1, most + 1) if rows % n == 0)

  def host_part(self) -> tuple[int, int]:
    """Which part of each global batch this host reads, and of how many.

    Not always one part per host: hosts along the sequence or tensor axis need
    the same rows and read them both.

    Raises:
      ValueError: if the mesh gives hosts parts that overlap in part, or of
        different sizes.
    """
    shards = self.batch_sharding.devices_indices_map((self.batch_divisor,))
    rows: dict[int, set[int]] = {}
    for device, (place,) in shards.items():
      rows.setdefault(device.process_index, set()).add(place.start or 0)
    return part_of_host(rows, jax.process_index())

  def shardings(self, abstract: Any) -> Any:
    """One sharding per leaf of an abstract, boxed tree."""
    return axes.mesh_shardings(abstract, self.mesh, self.rules)

  def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's rows, `[host_batch, ...]`, to global arrays."""
    return {
      name: jax.make_array_from_process_local_data(self.batch_sharding, array)
      for name, array in batch.items()
    }

  def context(self) -> contextlib.AbstractContextManager[None]:
    """Within it, `axes.constrain` splits activations over this mesh."""
    return axes.activate(self.mesh, self.rules)

  def jit_per_device(self, function: Callable[[Any, Any], Any]) -> Any:
    """Jitted `function(weights, batch)`, each device alone with its rows.

    Every device has all weights and runs the very program one device would
    run on these rows, so what comes out of a row does not depend on how many
    devices there are. Traced outside `context`: nothing is split inside.

    Args:
      function: weights, and a tree of `[rows, ...]`, to such a tree.
    """
    whole, rows = self.replicated.spec, self.batch_sharding.spec
    return jax.jit(
      jax.shard_map(
        function,
        mesh=self.mesh,
        in_specs=(whole, rows),
        out_specs=rows,
        check_vma=False,
      )
    )

  def jit(self, function: Callable[..., Any], **kwargs: Any) -> Any:
    """`jax.jit` whose traces run inside `context`."""

    # A function object of its own: jax caches traces by function, and this
    # one must not be found by the next partitioner.
    def traced(*args):
      with self.context():
        return function(*args)

    traced.__name__ = getattr(function, "__name__", "traced")
    return jax.jit(traced, **kwargs)
