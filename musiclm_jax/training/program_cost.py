# SPDX-License-Identifier: Apache-2.0
"""What one run of a compiled TPU program costs a chip.

A parsed module (`training/hlo.py`) and the mesh flow in; executed FLOPs, HBM
bytes and collectives (by kind, mesh axes and network) flow out, and from them
the roofline time. XLA's own `cost_analysis` counts the body of a loop once;
here each instruction counts as often as it runs.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from musiclm_jax.partitioning import topologies
from musiclm_jax.training import collectives as collectives_lib
from musiclm_jax.training import hlo

# Neither read nor write memory of their own.
_FREE = frozenset(
  (
    "add-dependency",
    "after-all",
    "async-done",
    "async-start",
    "async-update",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "copy-done",
    "domain",
    "get-tuple-element",
    "iota",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
  )
)
_READS_A_PART = ("dynamic-slice", "slice", "gather")


# --- FLOPs.


def _window(attributes: str, num_dims: int) -> list[dict[str, tuple[int, int]]]:
  """Size, stride, padding and dilations of each spatial dimension."""
  result = [
    {
      "size": (1, 1),
      "stride": (1, 1),
      "pad": (0, 0),
      "lhs_dilate": (1, 1),
      "rhs_dilate": (1, 1),
    }
    for _ in range(num_dims)
  ]
  match = re.search(r"window=\{([^}]*)\}", attributes)
  for field in match[1].split() if match else ():
    key, _, values = field.partition("=")
    if key not in ("size", "stride", "pad", "lhs_dilate", "rhs_dilate"):
      continue
    for dim, value in enumerate(values.split("x")):
      low, _, high = value.partition("_")
      result[dim][key] = (int(low), int(high or low))
  return result


def _valid_positions(dim: dict[str, tuple[int, int]], size_in: int) -> int:
  """Pairs of output and kernel position that meet an input element."""
  dilate, rhs = dim["lhs_dilate"][0], dim["rhs_dilate"][0]
  size, stride = dim["size"][0], dim["stride"][0]
  low, high = dim["pad"]
  dilated = (size_in - 1) * dilate + 1
  reach = (size - 1) * rhs + 1
  outputs = (dilated + low + high - reach) // stride + 1
  at = (
    np.arange(outputs)[:, None] * stride + np.arange(size)[None, :] * rhs - low
  )
  return int(np.sum((at >= 0) & (at < dilated) & (at % dilate == 0)))


def _convolution_flops(visit: hlo.Visit) -> float:
  """Products and sums of a convolution (TPU programs have no other product)."""
  attributes = visit.instruction.attributes
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
  left = visit.operand(0).arrays[0].shape
  right = visit.operand(1).arrays[0].shape
  dims = sorted(label for label in labels[1] if label.isdigit())
  positions = math.prod(
    _valid_positions(window, left[labels[1].index(label)])
    for window, label in zip(_window(attributes, len(dims)), dims)
  )
  groups = re.search(r"batch_group_count=(\d+)", attributes)
  batch = left[labels[1].index("b")] // (int(groups[1]) if groups else 1)
  # The kernel's input features are already those of one feature group.
  return (
    2.0
    * positions
    * batch
    * right[labels[2].index("i")]
    * right[labels[2].index("o")]
    * _passes(attributes)
  )


def _dot_flops(visit: hlo.Visit) -> float:
  left = visit.operand(0).arrays[0].shape
  match = re.search(
    r"lhs_contracting_dims=\{([\d,]*)\}", visit.instruction.attributes
  )
  depth = math.prod(left[int(i)] for i in match[1].split(",") if i)
  out = math.prod(visit.instruction.arrays[0].shape)
  return 2.0 * out * depth * _passes(visit.instruction.attributes)


def _passes(attributes: str) -> int:
  """bfloat16 products that one product of this precision takes."""
  if "operand_precision={highest" in attributes:
    return 6
  return 3 if "operand_precision={high," in attributes else 1


def _custom_call_flops(visit: hlo.Visit) -> float:
  match = re.search(
    r'"cost_estimate":\{[^}]*"flops":"?(\d+)', visit.instruction.attributes
  )
  return float(match[1]) if match else 0.0


def flops_of(visit: hlo.Visit) -> float:
  """FLOPs of matrix products of one instruction, once."""
  opcode = visit.instruction.opcode
  if opcode == "convolution":
    return _convolution_flops(visit)
  if opcode == "dot":
    return _dot_flops(visit)
  return _custom_call_flops(visit) if opcode == "custom-call" else 0.0


# --- HBM.


class _Fusion:
  """A fused computation: what it reads of each parameter, what it writes.

  Fusions nest: a product's operand may be a fusion that takes one layer out
  of an array of all.
  """

  def __init__(self, name: str, module: hlo.Module):
    self._module = module
    self._body = module.computations[name]
    self._users: dict[str, list[hlo.Instruction]] = {}
    self._parameters: dict[int, str] = {}
    for instruction in self._body.values():
      for operand in instruction.operands:
        self._users.setdefault(operand, []).append(instruction)
      if instruction.opcode == "parameter":
        index = re.match(r"value=(\d+)", instruction.attributes)
        self._parameters[int(index[1])] = instruction.name
      if instruction.is_root:
        self._root = instruction
    self.written, self._updating = self._find_updates()

  def _find_updates(self) -> tuple[list[float | None], set[str]]:
    """Per result the bytes of the part that is written (None: all of it), and
    the instructions that update in place."""
    root = self._root
    names = root.operands if root.opcode == "tuple" else (root.name,)
    written, updating = [], set()
    for name in names:
      part, instruction = None, self._body[name]
      while instruction.opcode in ("bitcast", "copy", "convert"):
        instruction = self._body[instruction.operands[0]]
      if instruction.opcode == "dynamic-update-slice":
        part = self._body[instruction.operands[1]].arrays[0].num_bytes
      elif instruction.opcode == "fusion":
        (part, *_) = self._nested(instruction).written
      if part is not None:
        updating.add(instruction.name)
      written.append(part)
    return written, updating

  def _nested(self, instruction: hlo.Instruction) -> "_Fusion":
    return _Fusion(instruction.called("calls"), self._module)

  def read(self, index: int, whole: float) -> float:
    """Bytes read of parameter `index`, which has `whole`."""
    total, queue = 0.0, [self._parameters.get(index)]
    while queue:
      current = queue.pop()
      for user in self._users.get(current, ()):
        if user.opcode == "bitcast":
          queue.append(user.name)
        elif user.opcode in _READS_A_PART and user.operands[0] == current:
          total += sum(array.num_bytes for array in user.arrays)
        elif user.opcode == "fusion":
          places = [i for i, n in enumerate(user.operands) if n == current]
          total += sum(self._nested(user).read(i, whole) for i in places)
        elif user.name in self._updating and user.operands[0] == current:
          continue  # Updated in place: the rest is not touched.
        else:
          return whole
    return min(total, whole)


def _fusion_bytes(visit: hlo.Visit, module: hlo.Module) -> float:
  """Bytes a fusion moves: only the parts it reads or updates in place."""
  fusion = _Fusion(visit.instruction.called("calls"), module)
  total = 0.0
  for index, name in enumerate(visit.instruction.operands):
    whole = sum(array.hbm_bytes for array in visit.computation[name].arrays)
    if whole:
      total += fusion.read(index, whole)
  for array, part in zip(visit.instruction.arrays, fusion.written):
    if array.in_hbm:
      total += array.num_bytes if part is None else min(array.num_bytes, part)
  return total


def hbm_bytes_of(visit: hlo.Visit, module: hlo.Module) -> float:
  """Bytes one instruction reads from and writes to HBM, once."""
  instruction = visit.instruction
  opcode = instruction.opcode
  if visit.in_fusion or opcode in _FREE or opcode.endswith("-done"):
    return 0.0
  if opcode == "fusion":
    return _fusion_bytes(visit, module)
  out = sum(array.hbm_bytes for array in instruction.arrays)
  operands = [visit.computation[name] for name in instruction.operands]
  sizes = [sum(a.hbm_bytes for a in operand.arrays) for operand in operands]
  if opcode == "copy-start":
    return instruction.arrays[0].hbm_bytes + sum(sizes)
  if opcode in _READS_A_PART:
    part = sum(array.num_bytes for array in instruction.arrays)
    return out + min(sizes[0], part)
  if opcode == "dynamic-update-slice":
    return 2.0 * min(sizes[1] or operands[1].arrays[0].num_bytes, out)
  if opcode == "scatter":
    return 3.0 * sizes[-1]
  if opcode == "custom-call":
    return _custom_call_bytes(instruction, sizes, out)
  if opcode.endswith("-start"):
    # The result repeats the operands.
    return out
  return sum(sizes) + out


def _custom_call_bytes(
  instruction: hlo.Instruction, sizes: Sequence[float], out: float
) -> float:
  match = re.search(
    r'"cost_estimate":\{[^}]*"bytes_accessed":"?(\d+)', instruction.attributes
  )
  if match:
    return float(match[1])
  if "AllocateBuffer" in instruction.attributes:
    return 0.0
  if "output_to_operand_aliasing" in instruction.attributes:
    return 2.0 * sum(sizes[1:])
  # A gather on the sparse cores reads what it writes, not its whole table.
  return out + sum(min(size, out) for size in sizes)


def _collective_kind(opcode: str) -> str | None:
  kind = opcode.removesuffix("-start")
  return kind if kind in collectives_lib.KINDS else None


# --- All together.


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one chip does in one step.

  Attributes:
    flops: of matrix products, recomputation included.
    hbm_bytes: read and written.
    collectives: by kind and axes.
    uncounted_kernels: runs of kernels that do not say what they cost; their
      FLOPs are missing.
  """

  flops: float
  hbm_bytes: float
  collectives: tuple[collectives_lib.Collective, ...]
  uncounted_kernels: int = 0

  def seconds(self, chip: topologies.Chip) -> dict[str, float]:
    """Time of each resource, were it the only one."""

    def network(name: str) -> float:
      return sum(c.seconds for c in self.collectives if c.network == name)

    return {
      "compute": self.flops / chip.peak_flops,
      "hbm": self.hbm_bytes / chip.hbm_bandwidth,
      "ici": network("ici"),
      "dcn": network("dcn"),
    }


def analyze(module: hlo.Module, network: collectives_lib.Network) -> Cost:
  """Adds up what `module` costs each chip of `network`."""
  flops = hbm_bytes = 0.0
  uncounted = 0
  found: dict[tuple[str, str, str], list[float]] = {}
  num_devices = network.topology.num_devices
  for visit in module.walk():
    instruction = visit.instruction
    flops += visit.times * flops_of(visit)
    hbm_bytes += visit.times * hbm_bytes_of(visit, module)
    if (
      'custom_call_target="tpu_custom_call"' in instruction.attributes
      and '"cost_estimate"' not in instruction.attributes
    ):
      uncounted += visit.times
    kind = _collective_kind(instruction.opcode)
    if kind is None:
      continue
    groups = collectives_lib.groups_of(instruction.attributes, num_devices)
    if groups.shape[1] < 2:
      continue
    operands = sum(
      array.num_bytes
      for name in instruction.operands
      for array in visit.computation[name].arrays
    )
    result = sum(array.num_bytes for array in instruction.arrays)
    if instruction.opcode.endswith("-start"):
      result -= operands
    where, sent, seconds = network.collective(
      kind, groups, max(operands, result)
    )
    entry = found.setdefault((kind, network.axes_of(groups), where), [0, 0, 0])
    entry[0] += visit.times
    entry[1] += visit.times * sent
    entry[2] += visit.times * seconds
  collectives = tuple(
    collectives_lib.Collective(*key, int(count), sent, seconds)
    for key, (count, sent, seconds) in sorted(found.items())
  )
  return Cost(flops, hbm_bytes, collectives, uncounted)
