# SPDX-License-Identifier: Apache-2.0
"""TPU topologies without TPUs: data sheets, and devices to compile for.

A name such as 'v5p:4x4x8' or 'v5e-256' flows in; a `Topology` and the
described devices of libtpu flow out. Nothing here runs on a device, and jax is
imported only when devices are asked for: `prepare_environment` comes first.

Bandwidths are the published ones (cloud.google.com/tpu/docs); ICI links are
counted at 90 % of them, which is what well-formed collectives reach.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from musiclm_jax.core import errors

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Data sheet of one chip.

  Attributes:
    name: 'v5p', ... .
    peak_flops: bfloat16 products, per second.
    hbm_gib: memory.
    program_gib: of it, what the compiler lets a program have.
    hbm_bandwidth: bytes per second.
    ici_bandwidth: bytes per second of one link in one direction.
    dcn_bandwidth: bytes per second of a chip's share of its host's network.
    num_dims: dimensions of the torus.
    cores_per_chip: what slice names count ('v5p-128' has 64 chips).
    wrap: a dimension is a ring if its size is a multiple of this.
    max_chips: of one slice.
  """

  name: str
  peak_flops: float
  hbm_gib: float
  program_gib: float
  hbm_bandwidth: float
  ici_bandwidth: float
  dcn_bandwidth: float
  num_dims: int
  cores_per_chip: int
  wrap: int
  max_chips: int


CHIPS = {
  chip.name: chip
  for chip in (
    # DCN of v4 is not published; taken as that of v5p.
    Chip("v4", 275e12, 32, 30.75, 1228e9, 45e9, 6.25e9, 3, 2, 4, 4096),
    Chip("v5e", 197e12, 16, 15.75, 819e9, 45e9, 3.125e9, 2, 1, 16, 256),
    Chip("v5p", 459e12, 95, 95.73, 2765e9, 90e9, 6.25e9, 3, 2, 4, 6144),
    Chip("v6e", 918e12, 32, 31.24, 1640e9, 90e9, 12.5e9, 2, 1, 16, 256),
  )
}

# Shapes that slice names stand for, by number of chips.
_SHAPES_2D = {
  1: "1x1",
  4: "2x2",
  8: "2x4",
  16: "4x4",
  32: "4x8",
  64: "8x8",
  128: "8x16",
  256: "16x16",
}
_SHAPES_3D = {
  4: "2x2x1",
  8: "2x2x2",
  16: "2x2x4",
  32: "2x4x4",
  64: "4x4x4",
  128: "4x4x8",
  256: "4x8x8",
  512: "8x8x8",
  1024: "8x8x16",
  2048: "8x16x16",
  4096: "16x16x16",
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """One or several equal slices.

  Attributes:
    chip: data sheet.
    shape: chips along each dimension of a slice's torus.
    num_slices: slices, joined by the data-centre network.
  """

  chip: Chip
  shape: tuple[int, ...]
  num_slices: int = 1

  @property
  def num_devices(self) -> int:
    return math.prod(self.shape) * self.num_slices

  @property
  def name(self) -> str:
    text = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
    return text if self.num_slices == 1 else f"{self.num_slices} x {text}"


def parse(text: str, num_slices: int = 1) -> Topology:
  """A topology from 'v5p:4x4x8' or from the name of a slice, 'v5p-256'.

  Args:
    text: chip and shape. Names of slices count cores for v4 and v5p, and
      chips for v5e and v6e, as Google Cloud does.
    num_slices: equal slices.

  Raises:
    UserError: if there is no such chip or shape.
  """
  match = re.fullmatch(r"(\w+?)(?:litepod)?(?::([\dx]+)|-(\d+))", text.strip())
  chips = sorted(CHIPS)
  if not match:
    raise errors.UserError(
      f"--topology={text}: expected CHIP:SHAPE such as v5p:4x4x8, or the name "
      f"of a slice such as v5e-256; chips are {chips}"
    )
  name = "v5e" if match[1] == "v5" and "litepod" in text else match[1]
  if name not in CHIPS:
    raise errors.UserError(
      f"--topology={text}: no chip {name!r}, expected one of {chips}"
    )
  chip = CHIPS[name]
  shape_text = match[2] or _shape_of_slice(chip, int(match[3]), text)
  shape = tuple(int(size) for size in shape_text.split("x") if size)
  if len(shape) != chip.num_dims or min(shape) < 1:
    raise errors.UserError(
      f"--topology={text}: {name} slices have {chip.num_dims} dimensions, "
      f"got {shape_text!r}"
    )
  if math.prod(shape) > chip.max_chips:
    raise errors.UserError(
      f"--topology={text}: {math.prod(shape)} chips; a {name} slice has at "
      f"most {chip.max_chips}"
    )
  if num_slices < 1:
    raise errors.UserError(f"--num_slices={num_slices}: expected at least 1")
  return Topology(chip, shape, num_slices)


def _shape_of_slice(chip: Chip, number: int, text: str) -> str:
  shapes = _SHAPES_2D if chip.num_dims == 2 else _SHAPES_3D
  sizes = {
    chips * chip.cores_per_chip: shape for chips, shape in shapes.items()
  }
  if number not in sizes:
    raise errors.UserError(
      f"--topology={text}: expected a slice of {sorted(sizes)}, or a shape as "
      f"in {chip.name}:{shapes[16]}"
    )
  return sizes[number]


def prepare_environment() -> None:
  """Keeps jax off real devices; call before jax is imported.

  Raises:
    UserError: if libtpu, which holds the TPU compiler, is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise errors.UserError(
      "the TPU compiler is missing: pip install 'musiclm_jax[check]' (libtpu)"
    )
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  # No device is taken, so several may compile at once.
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  # Its start-up notes would bury the table.
  os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
  os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")


def devices(topology: Topology) -> list[Any]:
  """Described devices of `topology`: one can compile for them, not run.

  Raises:
    UserError: if the TPU compiler does not know the shape.
  """
  from jax.experimental import topologies as jax_topologies

  options: dict[str, Any] = {}
  if topology.chip.name == "v4":
    # One device per chip, as a v4 host shows them.
    options["chip_config_name"] = "megacore"
  if topology.num_slices > 1:
    options["num_slices"] = topology.num_slices
  shape = "x".join(map(str, topology.shape))
  try:
    description = jax_topologies.get_topology_desc(
      platform="tpu",
      topology_name=f"{topology.chip.name}:{shape}",
      **options,
    )
  except Exception as error:
    raise errors.UserError(
      f"topology {topology.name}: the TPU compiler refuses it: "
      f"{str(error).splitlines()[0]}"
    ) from error
  return list(description.devices)
