# SPDX-License-Identifier: Apache-2.0
"""What a launcher is told: checked names, TPU types and the command to run.

Standard library only: launching needs no jax on the machine it is done from.
"""

import dataclasses
import re
from collections.abc import Sequence

from musiclm_jax.core import errors

# Verbs that make sense on a cluster.
VERBS = (
  "train",
  "tokenize",
  "generate",
  "evaluate",
  "export",
  "bench",
  "doctor",
)
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_PLACE = re.compile(r"[a-z]+-[a-z]+[0-9]+(-[a-z])?")


@dataclasses.dataclass(frozen=True)
class Generation:
  """One TPU generation, as Google Cloud names its parts.

  Attributes:
    counts_cores: the number in 'v4-32' counts cores, two to a chip.
    runtime_version: image of a TPU VM.
    gke_accelerator: node label.
    machine_type: of a GKE node, with the number of chips left open.
    is_3d: shape of its topologies.
  """

  counts_cores: bool
  runtime_version: str
  gke_accelerator: str
  machine_type: str
  is_3d: bool


GENERATIONS = {
  "v4": Generation(
    True, "tpu-ubuntu2204-base", "tpu-v4-podslice", "ct4p-hightpu-{}t", True
  ),
  "v5p": Generation(
    True, "v2-alpha-tpuv5", "tpu-v5p-slice", "ct5p-hightpu-{}t", True
  ),
  "v5litepod": Generation(
    False,
    "v2-alpha-tpuv5-lite",
    "tpu-v5-lite-podslice",
    "ct5lp-hightpu-{}t",
    False,
  ),
  "v6e": Generation(
    False, "v2-alpha-tpuv6e", "tpu-v6e-slice", "ct6e-standard-{}t", False
  ),
}
_TOPOLOGIES_2D = {
  1: "1x1",
  4: "2x2",
  8: "2x4",
  16: "4x4",
  32: "4x8",
  64: "8x8",
  128: "8x16",
  256: "16x16",
}
_TOPOLOGIES_3D = {
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
  6144: "16x16x24",
}


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """A slice such as 'v5p-128', as `parse_accelerator` reads it.

  Attributes:
    name: as given.
    generation: its TPU generation.
    num_chips: chips of the slice.
    topology: '4x4x4'.
    num_hosts: machines of the slice.
  """

  name: str
  generation: Generation
  num_chips: int
  topology: str
  num_hosts: int

  @property
  def chips_per_host(self) -> int:
    return self.num_chips // self.num_hosts

  @property
  def machine_type(self) -> str:
    return self.generation.machine_type.format(self.chips_per_host)


def parse_accelerator(name: str) -> Accelerator:
  """Reads an accelerator type of Cloud TPU.

  Raises:
    UserError: if the generation or the size is unknown.
  """
  prefix, _, size = name.partition("-")
  if prefix not in GENERATIONS or not size.isdigit():
    near = errors.nearest(prefix, GENERATIONS)
    raise errors.UserError(
      f"--accelerator_type={name}: expected one of {sorted(GENERATIONS)} with "
      f"a size, as v5p-128 or v5litepod-256{near}"
    )
  generation = GENERATIONS[prefix]
  chips = int(size) // (2 if generation.counts_cores else 1)
  table = _TOPOLOGIES_3D if generation.is_3d else _TOPOLOGIES_2D
  if chips not in table or (generation.counts_cores and int(size) % 2):
    sizes = [n * (2 if generation.counts_cores else 1) for n in table]
    raise errors.UserError(
      f"--accelerator_type={name}: expected a size in {sizes}"
    )
  # Hosts hold 4 chips; the 2D generations also come with 1 and 8 in one host.
  is_one_host = chips <= 8 and not generation.is_3d
  hosts = 1 if is_one_host else max(1, chips // 4)
  return Accelerator(name, generation, chips, table[chips], hosts)


def check_name(name: str) -> None:
  """Raises UserError unless Google Cloud and Kubernetes take the name."""
  if not _NAME.fullmatch(name):
    raise errors.UserError(
      f"--name={name}: expected at most 40 lower-case letters, digits and "
      "hyphens, starting with a letter and not ending in a hyphen"
    )


def check_place(option: str, value: str) -> None:
  """Raises UserError unless `value` looks like a zone or region."""
  if not _PLACE.fullmatch(value):
    raise errors.UserError(
      f"--{option}={value}: expected a place such as us-east5-a"
    )


def check_at_least(option: str, value: int, least: int) -> None:
  """Raises UserError if an integer option is too small."""
  if value < least:
    raise errors.UserError(f"--{option}={value}: expected >= {least}")


def check_bucket(bucket: str) -> None:
  """Raises UserError unless it is a bare bucket name."""
  if not re.fullmatch(r"[a-z0-9][-_.a-z0-9]{1,61}[a-z0-9]", bucket):
    raise errors.UserError(
      f"--bucket={bucket}: expected the bare name of a bucket, without gs://"
    )


def environment(pairs: Sequence[str]) -> dict[str, str]:
  """`KEY=VALUE` options to a dict.

  Raises:
    UserError: for anything else.
  """
  found = {}
  for pair in pairs:
    key, separator, value = pair.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
      raise errors.UserError(f"--env={pair}: expected KEY=VALUE")
    found[key] = value
  return found


def check_command(command: Sequence[str]) -> tuple[str, ...]:
  """The verb and options that the hosts run.

  Raises:
    UserError: if it is missing, no verb for a cluster, or names gs:// paths,
      which our file access does not know: buckets are mounted.
  """
  if not command:
    raise errors.UserError(
      "nothing to run: put a verb and its options behind --, as in "
      "`-- train --gin_file=... --model_dir=...`"
    )
  if command[0] not in VERBS:
    raise errors.UserError(
      f"cannot launch {command[0]!r}: expected one of {list(VERBS)}"
      f"{errors.nearest(command[0], VERBS)}"
    )
  for argument in command:
    if "gs://" in argument:
      raise errors.UserError(
        f"{argument}: pass --bucket=NAME and write /gcs/NAME/..., where the "
        "hosts mount it"
      )
  return tuple(command)
