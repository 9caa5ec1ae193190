# SPDX-License-Identifier: Apache-2.0
"""The device mesh: data, fsdp and tensor axes over all devices."""

import dataclasses

import jax
import numpy as np
from jax.experimental import mesh_utils

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh axes.

  Attributes:
    data: replicas of the parameters; -1 takes all devices that are left.
    fsdp: devices that split both batch and parameters.
    tensor: devices that split heads, MLP and vocabulary.
    rules: name of the rule set (`partitioning/rules.py`).
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  rules: str = "standard"

  def __post_init__(self):
    for name in AXES:
      size = getattr(self, name)
      if size != -1 and size < 1:
        raise ValueError(f"{name}={size}: expected a positive size or -1")
    if sum(getattr(self, name) == -1 for name in AXES) > 1:
      raise ValueError("expected at most one mesh axis of size -1")


def make_mesh(config: MeshConfig, devices=None) -> jax.sharding.Mesh:
  """Builds the mesh of `config` over `devices` (all by default).

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [getattr(config, name) for name in AXES]
  fixed = int(np.prod([size for size in sizes if size != -1]))
  if -1 in sizes:
    if len(devices) % fixed:
      raise ValueError(
        f"{len(devices)} devices are not a multiple of the fixed mesh axes "
        f"{dict(zip(AXES, sizes))}"
      )
    sizes[sizes.index(-1)] = len(devices) // fixed
  if int(np.prod(sizes)) != len(devices):
    raise ValueError(
      f"mesh {dict(zip(AXES, sizes))} needs {int(np.prod(sizes))} devices, "
      f"got {len(devices)}"
    )
  # Auto axes: with jax's default (explicit) ones logical constraints fail.
  return jax.sharding.Mesh(
    mesh_utils.create_device_mesh(sizes, devices),
    AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
  )
