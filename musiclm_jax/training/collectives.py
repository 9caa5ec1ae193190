# SPDX-License-Identifier: Apache-2.0
"""Collectives of a compiled program: over which mesh axes, and how fast.

Attributes of an instruction and the mesh flow in; groups of devices, mesh
axes, bytes that a chip sends and seconds at link speed flow out.
"""

import dataclasses
import math
import re

import numpy as np

from musiclm_jax.partitioning import topologies

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """All runs of collectives of one kind over one set of mesh axes.

  Attributes:
    kind: 'all-gather', ... .
    axes: mesh axes, 'data+fsdp', or 'other'.
    network: 'ici', or 'dcn' where it crosses slices.
    count: runs in one step.
    num_bytes: sent by a chip in one step.
    seconds: at link speed.
  """

  kind: str
  axes: str
  network: str
  count: int
  num_bytes: float
  seconds: float


def _mesh_groups(text: str, num_devices: int) -> np.ndarray:
  """`mesh['a'=2,'b'=32] {'b'}`: groups over the named axes."""
  sizes = {k: int(v) for k, v in re.findall(r"'([^']+)'=(\d+)", text)}
  axes_text = text[text.index("{") :] if "{" in text else ""
  named = re.findall(r"'([^']+)'", axes_text)
  grid = np.arange(num_devices).reshape(list(sizes.values()))
  order = [i for i, name in enumerate(sizes) if name not in named]
  order += [i for i, name in enumerate(sizes) if name in named]
  width = math.prod(sizes[name] for name in named)
  return grid.transpose(order).reshape(-1, width)


def groups_of(attributes: str, num_devices: int) -> np.ndarray:
  """Devices that exchange data, `[groups, size]`; of pairs for a permute."""
  pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes)
  if pairs:
    numbers = [int(n) for n in re.findall(r"\d+", pairs[1])]
    return np.array(numbers).reshape(-1, 2)
  mesh = re.search(r"replica_groups=(mesh\[[^\]]*\] *\{[^}]*\})", attributes)
  if mesh:
    return _mesh_groups(mesh[1], num_devices)
  iota = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
  )
  if iota:
    shape, base = ([int(n) for n in iota[i].split(",")] for i in (1, 2))
    grid = np.arange(math.prod(base)).reshape(base)
    if iota[3]:
      grid = grid.transpose([int(n) for n in iota[3].split(",")])
    return grid.reshape(shape)
  listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", attributes)
  if listed:
    rows = [
      [int(n) for n in row.split(",")]
      for row in re.findall(r"\{([\d, ]+)\}", listed[1])
    ]
    if len({len(row) for row in rows}) == 1:
      return np.array(rows)
  return np.arange(num_devices)[None]


class Network:
  """Where the devices of a mesh stand, and how fast they talk.

  Attributes:
    topology: chips and slices.
    mesh: of described devices.
  """

  def __init__(self, topology: topologies.Topology, mesh):
    """Notes coordinates and slice of each device, in the mesh's order."""
    self.topology = topology
    self.mesh = mesh
    flat = list(mesh.devices.flat)
    self._coords = np.array([device.coords for device in flat])
    self._slices = np.array(
      [getattr(device, "slice_index", 0) or 0 for device in flat]
    )
    self._axis_index = np.stack(
      np.unravel_index(np.arange(len(flat)), mesh.devices.shape), axis=1
    )

  def axes_of(self, groups: np.ndarray) -> str:
    """Mesh axes along which the members of a group differ."""
    index = self._axis_index[groups[: min(len(groups), 64)]]
    varies = (index != index[:, :1]).any(axis=(0, 1))
    names = [n for n, moved in zip(self.mesh.axis_names, varies) if moved]
    return "+".join(names) or "none"

  def collective(
    self, kind: str, groups: np.ndarray, num_bytes: float
  ) -> tuple[str, float, float]:
    """Network, bytes sent by a chip, and seconds, of one collective.

    Args:
      kind: of `KINDS`.
      groups: `[groups, size]`.
      num_bytes: the larger of operand and result, per chip.
    """
    chip, size = self.topology.chip, groups.shape[1]
    share = (size - 1) / size
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0}
    sent = factor.get(kind, share) * num_bytes
    group = groups[0]
    slices = len(set(self._slices[group]))
    if slices == 1:
      return "ici", sent, self._ici_seconds(kind, group, num_bytes, sent)
    inside = size // slices
    across = factor.get(kind, (slices - 1) / slices) * num_bytes
    if kind == "all-reduce":
      across = 2 * (slices - 1) / slices * num_bytes
    seconds = across / inside / chip.dcn_bandwidth
    return "dcn", across / inside, seconds

  def _ici_seconds(
    self, kind: str, group: np.ndarray, num_bytes: float, sent: float
  ) -> float:
    """Seconds on rings along each dimension of the torus a group spans."""
    link = self.topology.chip.ici_bandwidth
    coords = self._coords[group]
    spans = [
      len(set(coords[:, dim])) for dim in range(len(self.topology.shape))
    ]
    if kind == "collective-permute":
      return num_bytes / link
    # Links a chip can use at once; a row without wrap-around has one.
    links = sum(
      2 if size == 2 or self._wraps(dim, size) else 1
      for dim, size in enumerate(spans)
      if size > 1
    )
    if kind.endswith("all-to-all"):
      return num_bytes * max(spans) / 4 / (max(links, 1) * link)
    return sent / (max(links, 1) * link)

  def _wraps(self, dim: int, size: int) -> bool:
    whole = self.topology.shape[dim]
    return size == whole and whole % self.topology.chip.wrap == 0
