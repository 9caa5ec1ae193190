# SPDX-License-Identifier: Apache-2.0
"""The device mesh: axes inside a slice over ICI, and across slices over DCN.

Sizes flow in, a `jax.sharding.Mesh` flows out. Its axes are data, fsdp,
sequence and tensor, the one that talks most last; across slices only data and
fsdp are split, whose traffic a slow network can carry.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils

AXES = ("data", "fsdp", "sequence", "tensor")
_DCN_AXES = ("dcn_data", "dcn_fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh axes.

  At most one of the first four may be -1: it takes the devices of a slice that
  are left. So may one of the two `dcn_` sizes, for slices.

  Attributes:
    data: replicas of the parameters inside a slice.
    fsdp: devices of a slice that split both batch and parameters.
    sequence: devices that split the length of activations.
    tensor: devices that split heads, MLP and vocabulary.
    dcn_data: replicas of the parameters across slices.
    dcn_fsdp: slices that split both batch and parameters, for what does not
      fit in one slice.
    num_slices: 0 asks the devices; otherwise devices that know no slices
      (virtual ones, GPUs) are dealt into so many, in order.
    rules: name of the rule set (`partitioning/rules.py`).
  """

  data: int = -1
  fsdp: int = 1
  sequence: int = 1
  tensor: int = 1
  dcn_data: int = -1
  dcn_fsdp: int = 1
  num_slices: int = 0
  rules: str = "standard"

  def __post_init__(self):
    for group in (AXES, _DCN_AXES):
      for name in group:
        size = getattr(self, name)
        if size != -1 and size < 1:
          raise ValueError(f"{name}={size}: expected a positive size or -1")
      if sum(getattr(self, name) == -1 for name in group) > 1:
        raise ValueError(f"expected at most one of {group} to be -1")
    if self.num_slices < 0:
      raise ValueError(f"num_slices={self.num_slices}: expected >= 0")


def split_slices(
  devices: Sequence[Any], num_slices: int = 0
) -> list[list[Any]]:
  """Devices of each slice.

  Args:
    devices: all devices of the job.
    num_slices: 0: as the devices say (only TPUs do); otherwise so many.

  Raises:
    ValueError: if the devices do not make so many equal slices.
  """
  by_index: dict[int, list[Any]] = {}
  if devices[0].platform == "tpu":
    for device in devices:
      by_index.setdefault(getattr(device, "slice_index", None) or 0, []).append(
        device
      )
  slices = [by_index[index] for index in sorted(by_index)]
  if len(slices) <= 1 and num_slices > 1:
    if len(devices) % num_slices:
      raise ValueError(
        f"num_slices={num_slices}: expected a divisor of {len(devices)} devices"
      )
    size = len(devices) // num_slices
    slices = [
      list(devices[start : start + size])
      for start in range(0, len(devices), size)
    ]
  slices = slices or [list(devices)]
  if num_slices and len(slices) != num_slices:
    raise ValueError(
      f"num_slices={num_slices}: the devices form {len(slices)} slices"
    )
  if len({len(part) for part in slices}) > 1:
    raise ValueError(
      f"slices of {[len(part) for part in slices]} devices: expected equal ones"
    )
  return slices


def torus(devices: Sequence[Any]) -> tuple[int, ...]:
  """Sizes of the physical axes of one slice; elsewhere one flat axis."""
  if devices[0].platform != "tpu":
    return (len(devices),)
  places = np.asarray(
    [(*d.coords, getattr(d, "core_on_chip", 0)) for d in devices]
  )
  return tuple(int(n) for n in np.ptp(places, axis=0) + 1 if n > 1) or (1,)


def fits_torus(sizes: Sequence[int], physical: Sequence[int]) -> bool:
  """Whether every logical axis is a product of whole physical axes.

  Only then do its collectives run on full rings.
  """
  todo = sorted((size for size in sizes if size > 1), reverse=True)
  if not todo:
    return True
  rest = list(physical)
  for mask in range(1, 2 ** len(rest)):
    taken = [n for i, n in enumerate(rest) if mask >> i & 1]
    left = [n for i, n in enumerate(rest) if not mask >> i & 1]
    if math.prod(taken) == todo[0] and fits_torus(todo[1:], left):
      return True
  return False


def _complete(
  config: MeshConfig, names: Sequence[str], total: int, unit: str
) -> list[int]:
  """Sizes of `names` with -1 filled in."""
  sizes = [getattr(config, name) for name in names]
  fixed = math.prod(size for size in sizes if size != -1)
  if -1 in sizes and total % fixed == 0:
    sizes[sizes.index(-1)] = total // fixed
  if math.prod(sizes) != total:
    raise ValueError(
      f"mesh {dict(zip(names, sizes))}: expected sizes whose product is the "
      f"{total} {unit} at hand"
    )
  return sizes


def _slice_mesh(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
  """Devices of one slice in the shape `sizes`, neighbours near each other."""
  try:
    return mesh_utils.create_device_mesh(sizes, devices)
  except NotImplementedError:
    logging.warning(
      "mesh %s does not factor into the torus %s: physical axes are split, "
      "collectives over them have part of the bandwidth",
      dict(zip(AXES, sizes)),
      torus(devices),
    )
    return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )


def arrange(config: MeshConfig, devices: Sequence[Any]) -> np.ndarray:
  """Devices in the shape of `AXES`.

  An axis that is split both across and inside slices has the slice as its
  slower part, so what neighbours exchange stays inside.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.
  """
  slices = split_slices(devices, config.num_slices)
  inside = _complete(config, AXES, len(slices[0]), "devices (of one slice)")
  across = _complete(config, _DCN_AXES, len(slices), "slices")
  # Not `create_hybrid_device_mesh`: it takes slices from TPUs alone.
  blocks = np.empty((*across, 1, 1), object)
  for place, part in zip(np.ndindex(*blocks.shape), slices):
    blocks[place] = _slice_mesh(inside, part)
  return np.block(blocks.tolist())


def make_mesh(
  config: MeshConfig, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """Builds the mesh of `config` over `devices` (all by default).

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  # Auto axes: with jax's default (explicit) ones logical constraints fail.
  return jax.sharding.Mesh(
    arrange(config, devices),
    AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
  )
