# SPDX-License-Identifier: Apache-2.0
"""Meshes over slices and tori, and the sizes chosen for them."""

import dataclasses
import math

import numpy as np
import pytest

from musiclm_jax.partitioning import auto_mesh, mesh, rules

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
  """What a mesh reads of a device."""

  id: int
  coords: tuple[int, ...] = ()
  slice_index: int = 0
  platform: str = "gpu"
  device_kind: str = "fake"
  process_index: int = 0
  core_on_chip: int = 0


def tpu_slices(num_slices, *shape):
  return [
    Device(
      slice_index * math.prod(shape) + index,
      coords,
      slice_index,
      "tpu",
      "TPU v5 lite",
    )
    for slice_index in range(num_slices)
    for index, coords in enumerate(np.ndindex(*shape))
  ]


def test_slices_come_from_tpus_or_are_dealt_out():
  slices = mesh.split_slices(tpu_slices(2, 4, 4, 1))
  assert [[d.slice_index for d in part] for part in slices] == [
    [0] * 16,
    [1] * 16,
  ]
  flat = [Device(i) for i in range(8)]
  assert [len(part) for part in mesh.split_slices(flat)] == [8]
  assert [[d.id for d in part] for part in mesh.split_slices(flat, 2)] == [
    [0, 1, 2, 3],
    [4, 5, 6, 7],
  ]
  with pytest.raises(ValueError, match="num_slices=3"):
    mesh.split_slices(flat, 3)
  with pytest.raises(ValueError, match="num_slices=4.*2 slices"):
    mesh.split_slices(tpu_slices(2, 2, 2, 1), 4)


def test_slices_are_blocks_along_data_or_fsdp():
  flat = [Device(i) for i in range(8)]
  config = mesh.MeshConfig(data=1, fsdp=2, tensor=2, num_slices=2)
  replicas = mesh.arrange(config, flat)
  assert replicas.shape == (2, 2, 1, 2)
  assert [d.id for d in replicas[1].flatten()] == [4, 5, 6, 7]
  split = mesh.arrange(
    dataclasses.replace(config, dcn_data=1, dcn_fsdp=2), flat
  )
  assert split.shape == (1, 4, 1, 2)
  assert [d.id for d in split[0, 2:].flatten()] == [4, 5, 6, 7]
  with pytest.raises(ValueError, match="dcn_data.*2 slices"):
    mesh.arrange(dataclasses.replace(config, dcn_data=3), flat)
  with pytest.raises(ValueError, match="4 devices"):
    mesh.arrange(dataclasses.replace(config, fsdp=3), flat)


def test_a_torus_refuses_nothing():
  devices = tpu_slices(2, 4, 8, 1)
  whole = mesh.arrange(mesh.MeshConfig(data=4, fsdp=8), devices)
  assert whole.shape == (8, 8, 1, 1)
  assert {d.slice_index for d in whole[:4].flatten()} == {0}
  # 16 is no product of whole axes of 4 x 8: they are split.
  split = mesh.arrange(mesh.MeshConfig(data=2, fsdp=16), devices)
  assert split.shape == (4, 16, 1, 1)
  assert len({d.id for d in split.flatten()}) == 64


@pytest.mark.parametrize(
  ("sizes", "physical", "fits"),
  [
    ((128, 1, 1, 1), (4, 4, 8), True),
    ((8, 16, 1, 1), (4, 4, 8), True),
    ((4, 32, 1, 1), (4, 4, 8), True),
    ((64, 2, 1, 1), (4, 4, 8), False),
    ((32, 128, 1, 1), (16, 16, 16), False),
    ((256, 1, 1, 16), (16, 16, 16), True),
    ((1, 1, 1, 1), (1,), True),
  ],
)
def test_fits_torus(sizes, physical, fits):
  assert mesh.fits_torus(sizes, physical) == fits


@pytest.mark.parametrize(
  ("num_parameters", "batch", "physical", "hbm", "expected"),
  [
    # A paper-size stage: 7 GiB of state, 1 GiB or less on a device.
    (430e6, 512, (4, 4, 8), 95, (16, 8, 1, 1)),
    (430e6, 1024, (16, 16), 16, (16, 16, 1, 1)),
    (30e6, 1024, (16, 16), 16, (256, 1, 1, 1)),
    # More chips than rows: rows are shared.
    (430e6, 512, (16, 16, 16), 95, (256, 1, 1, 16)),
    (8e9, 1024, (16, 16), 16, (1, 256, 1, 1)),
    # Fits nowhere: all is split; the check says by how much it fails.
    (8e9, 1024, (4, 4), 16, (1, 16, 1, 1)),
  ],
)
def test_chosen_sizes(num_parameters, batch, physical, hbm, expected):
  config = auto_mesh.choose(
    auto_mesh.AutoMeshConfig(),
    int(num_parameters),
    batch,
    physical,
    memory_bytes=hbm * GIB,
  )
  assert tuple(getattr(config, name) for name in mesh.AXES) == expected


def test_slices_are_replicas_unless_the_state_fits_in_none():
  def choose(num_parameters, batch=1024):
    return auto_mesh.choose(
      auto_mesh.AutoMeshConfig(),
      int(num_parameters),
      batch,
      (4, 4),
      num_slices=4,
      memory_bytes=16 * GIB,
    )

  small, large = choose(430e6), choose(10e9)
  assert (small.dcn_data, small.dcn_fsdp) == (4, 1)
  assert (large.dcn_data, large.dcn_fsdp) == (1, 4)
  with pytest.raises(ValueError, match="global_batch_size=6"):
    choose(1e6, batch=6)


def test_chosen_for_devices():
  config = auto_mesh.resolve(
    auto_mesh.AutoMeshConfig(), int(430e6), 1024, tpu_slices(2, 16, 16, 1)
  )
  assert mesh.arrange(config, tpu_slices(2, 16, 16, 1)).shape == (32, 16, 1, 1)


def test_every_rule_set_names_all_axes():
  names = {name for name, _ in rules.rule_set("standard")}
  for other in rules.RULE_SETS.values():
    assert {name for name, _ in other} == names
  with pytest.raises(ValueError, match="rules='none'"):
    rules.rule_set("none")
