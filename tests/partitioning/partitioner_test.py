# SPDX-License-Identifier: Apache-2.0
"""One stage trained on several meshes of 8 virtual devices, and what is split.

With dropout: its masks do not depend on the mesh either.
"""

import pathlib

import numpy as np
import pytest
import virtual_devices

from musiclm_jax.partitioning import mesh, partitioner

_HERE = pathlib.Path(__file__).parent
# Most programs run a few times: little effort is spent on compiling them.
_FLAGS = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


@pytest.fixture(scope="module")
def results():
  return virtual_devices.run(_HERE / "meshes_on_8_devices.py", flags=_FLAGS)


def test_losses_do_not_depend_on_the_mesh(results):
  assert len(results) == 8 + 3
  for name, result in results.items():
    one = results["grouped one" if "grouped" in name else "one"]["losses"]
    assert len(one) == 10 and one[-1] < one[0] - 0.2
    np.testing.assert_allclose(result["losses"], one, rtol=1e-5, err_msg=name)
    assert name.endswith("one") or result["constraints"] > 10


def test_optimizer_state_is_split_with_the_parameters(results):
  whole = results["one"]["param_bytes"]
  for name, parts in [
    ("8x1x1", 1),
    ("4x2x1", 2),
    ("2x2x2", 4),
    ("1x8x1", 8),
    ("1x1x8", 8),
  ]:
    result = results[name]
    # Two moments per parameter; norms are split over fsdp alone, and no
    # parameter over data.
    assert result["optimizer_bytes"] == 2 * result["param_bytes"]
    assert whole / parts <= result["param_bytes"] < 2.1 * whole / parts
  assert results["8x1x1"]["param_bytes"] == whole


def test_slices_hold_one_block_of_the_mesh_each(results):
  result = results["2 slices"]
  assert result["shape"] == {"data": 2, "fsdp": 2, "sequence": 2, "tensor": 1}
  assert result["devices"] == list(range(8))
  assert result["host_part"] == [0, 1]


def test_microbatches_follow_from_the_batch():
  part = partitioner.Partitioner(mesh.MeshConfig(data=1))
  assert part.num_microbatches(12, 0) == 1
  assert part.num_microbatches(12, 4) == 3
  assert part.num_microbatches(12, 5) == 3  # 5 rows do not divide 12.
  assert part.num_microbatches(12, 100) == 1
  assert part.num_microbatches(7, 2) == 7
  with pytest.raises(ValueError, match="rows_per_device=-1"):
    part.num_microbatches(12, -1)


@pytest.mark.parametrize(
  ("rows", "parts"),
  [
    ({0: {0, 1}, 1: {2, 3}}, [(0, 2), (1, 2)]),
    # Chips of a host need not be neighbours in the batch.
    ({0: {1, 3}, 1: {0, 2}}, [(1, 2), (0, 2)]),
    # Hosts 0 and 1 lie along the tensor axis: they read the same rows.
    ({0: {0}, 1: {0}, 2: {1}, 3: {1}}, [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ({0: {0}, 1: {0}}, [(0, 1), (0, 1)]),
  ],
)
def test_hosts_read_what_their_devices_need(rows, parts):
  assert [partitioner.part_of_host(rows, host) for host in rows] == parts


def test_rows_that_no_host_could_read_are_refused():
  for rows in ({0: {0, 1}, 1: {1, 2}}, {0: {0}, 1: {1, 2}}):
    with pytest.raises(ValueError, match="overlap in part"):
      partitioner.part_of_host(rows, 0)
