# SPDX-License-Identifier: Apache-2.0
"""Mesh sizes from the model and the machine.

Number of parameters, devices and batch flow in, a `MeshConfig` flows out.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from musiclm_jax.partitioning import mesh

_GIB = 2**30
# High-bandwidth memory of one chip, by `device_kind` (Google's data sheets).
HBM_BYTES = {
  "TPU v2": 16 * _GIB,
  "TPU v3": 32 * _GIB,
  "TPU v4": 32 * _GIB,
  "TPU v5 lite": 16 * _GIB,
  "TPU v5": 95 * _GIB,
  "TPU v5p": 95 * _GIB,
  "TPU v6 lite": 32 * _GIB,
  "TPU7x": 192 * _GIB,
}


@dataclasses.dataclass(frozen=True)
class AutoMeshConfig:
  """How mesh sizes are chosen.

  Attributes:
    rules: name of the rule set.
    bytes_per_parameter: of the training state: float32 parameter, gradient
      and two moments.
    state_share: of a device's memory that the state may take.
    state_bytes: of the state that a device should hold at most, so that the
      optimizer reads and writes little; not a limit.
    max_tensor: widest tensor axis; not wider than the number of heads.
    hbm_bytes: memory of a device; 0 looks it up.
    num_slices: see `mesh.MeshConfig`.
  """

  rules: str = "standard"
  bytes_per_parameter: int = 16
  state_share: float = 0.5
  state_bytes: int = _GIB
  max_tensor: int = 16
  hbm_bytes: int = 0
  num_slices: int = 0

  def __post_init__(self):
    for name in ("bytes_per_parameter", "state_bytes", "max_tensor"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name}={getattr(self, name)}: expected a positive number"
        )
    if not 0 < self.state_share <= 1:
      raise ValueError(f"state_share={self.state_share}: expected in (0, 1]")
    for name in ("hbm_bytes", "num_slices"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)}: expected >= 0")


def hbm_bytes(device: Any) -> int:
  """Memory of a device; 0 where unknown (CPU)."""
  if device.device_kind in HBM_BYTES:
    # One device may be one of two cores of a chip.
    cores = 2 if device.device_kind in ("TPU v2", "TPU v3", "TPU7x") else 1
    return HBM_BYTES[device.device_kind] // cores
  try:
    stats = device.memory_stats() or {}
  except (AttributeError, NotImplementedError, RuntimeError):
    stats = {}
  return int(stats.get("bytes_limit", 0))


def _divisors(number: int) -> Iterator[int]:
  return (n for n in range(1, number + 1) if number % n == 0)


def _sizes(num_devices: int) -> Iterator[dict[str, int]]:
  """All ways to write a number as a product of the four axes."""
  for tensor in _divisors(num_devices):
    for sequence in _divisors(num_devices // tensor):
      rest = num_devices // tensor // sequence
      for fsdp in _divisors(rest):
        yield {
          "data": rest // fsdp,
          "fsdp": fsdp,
          "sequence": sequence,
          "tensor": tensor,
        }


def choose(
  config: AutoMeshConfig,
  num_parameters: int,
  global_batch_size: int,
  physical: Sequence[int],
  num_slices: int = 1,
  memory_bytes: int = 0,
) -> mesh.MeshConfig:
  """Sizes of all axes.

  In this order: the state fits; as few devices as possible share a row of the
  batch (tensor, then sequence: only where there are more devices than rows);
  parameters are split until a device holds `state_bytes`, and no further.
  Sizes that fill whole physical axes count half: rings need whole axes. Slices
  are replicas, unless the state fits in none.

  Args:
    config: how to choose.
    num_parameters: of the model.
    global_batch_size: rows; of a microbatch, if there are several.
    physical: sizes of the physical axes of one slice (`mesh.torus`).
    num_slices: slices.
    memory_bytes: of a device; 0: unlimited.

  Raises:
    ValueError: if the batch cannot be split over the slices.
  """
  num_devices = math.prod(physical)
  if global_batch_size % num_slices:
    raise ValueError(
      f"global_batch_size={global_batch_size}: expected a multiple of the "
      f"{num_slices} slices"
    )
  rows = global_batch_size // num_slices
  state = num_parameters * config.bytes_per_parameter
  limit = memory_bytes * config.state_share or math.inf
  across = num_slices if state > limit * num_devices else 1

  def cost(sizes):
    split = 1 if mesh.fits_torus(tuple(sizes.values()), physical) else 2
    shards = sizes["fsdp"] * sizes["tensor"] * across
    enough = shards * config.state_bytes >= state
    return (
      state > limit * shards,
      sizes["sequence"] * sizes["tensor"] * split,
      not enough,
      shards * split if enough else -shards,
      split,
      sizes["sequence"],
    )

  sizes = min(
    (
      sizes
      for sizes in _sizes(num_devices)
      if rows % (sizes["data"] * sizes["fsdp"]) == 0
      and sizes["tensor"] <= config.max_tensor
    ),
    key=cost,
  )
  return mesh.MeshConfig(
    **sizes,
    dcn_data=num_slices // across,
    dcn_fsdp=across,
    num_slices=num_slices,
    rules=config.rules,
  )


def resolve(
  config: AutoMeshConfig,
  num_parameters: int,
  global_batch_size: int,
  devices: Sequence[Any],
) -> mesh.MeshConfig:
  """`choose` for `devices`."""
  slices = mesh.split_slices(devices, config.num_slices)
  return choose(
    config,
    num_parameters,
    global_batch_size,
    mesh.torus(slices[0]),
    len(slices),
    config.hbm_bytes or hbm_bytes(devices[0]),
  )
