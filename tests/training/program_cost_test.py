# SPDX-License-Identifier: Apache-2.0
"""Costs read from the text of small programs, against counts by hand."""

import types
from typing import NamedTuple

import numpy as np
import pytest

from musiclm_jax.partitioning import topologies
from musiclm_jax.training import collectives, hlo, program_cost

# A loop of 24 with one product, a collective and a copy into VMEM.
_LOOP = """HloModule m, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%product (p0: bf16[4,64,128], p1: bf16[24,128,256], p2: s32[]) -> bf16[4,64,256] {
  %p0 = bf16[4,64,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} parameter(1)
  %p2 = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %layer = bf16[1,128,256]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p1, %p2, %zero, %zero), dynamic_slice_sizes={1,128,256}
  ROOT %out = bf16[4,64,256]{2,1,0:T(8,128)(2,1)} convolution(%p0, %layer), window={size=1}, dim_labels=0bf_0io->0bf
}

%body (t: (s32[], bf16[4,64,128], bf16[24,128,256])) -> (s32[], bf16[4,64,128], bf16[24,128,256]) {
  %t = (s32[]{:T(128)}, /*index=1*/bf16[4,64,128]{2,1,0:T(8,128)(2,1)}, bf16[24,128,256]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %x = bf16[4,64,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%t), index=1
  %w = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} get-tuple-element(%t), index=2
  %y = bf16[4,64,256]{2,1,0:T(8,128)(2,1)} fusion(%x, %w, %i), kind=kOutput, calls=%product
  %all = bf16[4,64,256]{2,1,0:T(8,128)(2,1)} all-reduce(%y), replica_groups=GROUPS, to_apply=%add
  %start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%all)
  ROOT %r = (s32[]{:T(128)}, bf16[4,64,128]{2,1,0:T(8,128)(2,1)}, bf16[24,128,256]{2,1,0:T(8,128)(2,1)}) tuple(%i, %x, %w)
}

%condition (t: (s32[], bf16[4,64,128], bf16[24,128,256])) -> pred[] {
  %t = (s32[]{:T(128)}, bf16[4,64,128]{2,1,0}, bf16[24,128,256]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %end = s32[]{:T(128)} constant(24)
  ROOT %less = pred[]{:T(512)} compare(%i, %end), direction=LT
}

ENTRY %main (s: (s32[], bf16[4,64,128], bf16[24,128,256])) -> (s32[], bf16[4,64,128], bf16[24,128,256]) {
  %s = (s32[]{:T(128)}, bf16[4,64,128]{2,1,0}, bf16[24,128,256]{2,1,0}) parameter(0)
  ROOT %loop = (s32[]{:T(128)}, bf16[4,64,128]{2,1,0}, bf16[24,128,256]{2,1,0}) while(%s), condition=%condition, body=%body
}
"""  # noqa: E501


class _Device(NamedTuple):
  coords: tuple[int, ...]
  slice_index: int


def _network(text="v5p:4x4x4", shape=(4, 16), num_slices=1):
  topology = topologies.parse(text, num_slices)
  per_slice = topology.num_devices // num_slices
  devices = np.empty(topology.num_devices, object)
  for i in range(topology.num_devices):
    place = np.unravel_index(i % per_slice, topology.shape)
    devices[i] = _Device(tuple(map(int, place)), i // per_slice)
  mesh = types.SimpleNamespace(
    devices=devices.reshape(shape), axis_names=("data", "fsdp")
  )
  return collectives.Network(topology, mesh)


def _cost(groups):
  module = hlo.Module(_LOOP.replace("GROUPS", groups))
  return program_cost.analyze(module, _network())


def test_body_of_a_loop_counts_as_often_as_it_runs():
  cost = _cost("[4,16]<=[64]")
  # Groups of 4 x 64 rows with 128 x 256 weights, 24 times.
  assert cost.flops == 24 * 2 * 4 * 64 * 128 * 256
  rows, out, layer = 4 * 64 * 128 * 2, 4 * 64 * 256 * 2, 128 * 256 * 2
  # The product reads one layer of the stacked weights; the collective reads
  # and writes its array; the copy reads 8 x 128 floats and fills VMEM.
  copied, index = out, 4
  assert cost.hbm_bytes == 24 * (rows + layer + index + 3 * out + copied)


def test_nested_fusion_reads_one_layer():
  line = next(x for x in _LOOP.splitlines() if "dynamic-slice(" in x)
  nested = line[: line.index("dynamic-slice(")].replace("%layer", "ROOT %part")
  take = (
    "%take (p1: bf16[24,128,256], p2: s32[]) -> bf16[1,128,256] {\n"
    "  %p1 = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} parameter(0)\n"
    "  %p2 = s32[]{:T(128)} parameter(1)\n"
    "  %zero = s32[]{:T(128)} constant(0)\n"
    f"{nested}{line[line.index('dynamic-slice(') :]}\n}}\n\n"
  )
  call = f"{line[: line.index('dynamic-slice(')]}fusion(%p1, %p2), calls=%take"
  text = _LOOP.replace(line, call).replace("%product (", take + "%product (", 1)
  text = text.replace("GROUPS", "[4,16]<=[64]")
  cost = program_cost.analyze(hlo.Module(text), _network())
  assert cost == _cost("[4,16]<=[64]")


@pytest.mark.parametrize(
  "groups, axes, size",
  [
    ("[4,16]<=[64]", "fsdp", 16),
    ("[16,4]<=[4,16]T(1,0)", "data", 4),
    (f"{{{{{','.join(map(str, range(64)))}}}}}", "data+fsdp", 64),
    ("mesh['a'=4,'b'=16] {'a'}", "data", 4),
  ],
)
def test_collectives_are_attributed_to_axes(groups, axes, size):
  (entry,) = _cost(groups).collectives
  assert (entry.kind, entry.axes, entry.network) == ("all-reduce", axes, "ici")
  assert entry.count == 24
  payload = 4 * 64 * 256 * 2
  assert entry.num_bytes == pytest.approx(24 * 2 * payload * (size - 1) / size)


def test_rings_and_slices_set_the_speed():
  network = _network()
  link = network.topology.chip.ici_bandwidth
  # 16 neighbours: a plane, two rings with two links each.
  _, sent, seconds = network.collective(
    "all-gather", np.arange(64).reshape(4, 16), 1e9
  )
  assert sent == pytest.approx(1e9 * 15 / 16)
  assert seconds == pytest.approx(sent / (4 * link))
  # Four in a row along the first dimension: one ring.
  _, sent, seconds = network.collective(
    "all-gather", np.arange(64).reshape(4, 16).T, 1e9
  )
  assert seconds == pytest.approx(sent / (2 * link))
  # Two slices of v5e: half a gigabyte each way by each of 16 neighbours.
  across = _network("v5e:4x4", (2, 16), num_slices=2)
  where, sent, seconds = across.collective(
    "all-reduce", np.arange(32).reshape(1, 32), 1e9
  )
  assert where == "dcn"
  assert sent == pytest.approx(2 * 1e9 / 2 / 16)
  assert seconds == pytest.approx(sent / across.topology.chip.dcn_bandwidth)


def test_batched_product_written_as_convolution():
  """Only windows that meet an element count, as XLA writes batches on TPU."""
  text = """HloModule m

ENTRY %main (q: bf16[4,16,762,64], k: bf16[4,16,762,64]) -> f32[4,16,762,762] {
  %q = bf16[4,16,762,64]{3,2,1,0} parameter(0)
  %k = bf16[4,16,762,64]{3,2,1,0} parameter(1)
  ROOT %s = f32[4,16,762,762]{3,2,1,0} convolution(%q, %k), window={size=4x16 stride=3x15 lhs_dilate=4x16}, dim_labels=01bf_01oi->01bf
}
"""  # noqa: E501
  cost = program_cost.analyze(hlo.Module(text), _network())
  assert cost.flops == 2 * 4 * 16 * 762 * 762 * 64


def test_tiles_pad_and_vmem_is_not_hbm():
  (padded,) = hlo.arrays_of("f32[24,16]{1,0:T(8,128)}")
  assert padded.num_bytes == 24 * 128 * 4
  (turned,) = hlo.arrays_of("f32[1024,16]{0,1:T(8,128)}")
  assert turned.num_bytes == 1024 * 16 * 4
  (fast,) = hlo.arrays_of("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}")
  assert fast.hbm_bytes == 0
