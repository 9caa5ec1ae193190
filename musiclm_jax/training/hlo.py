# SPDX-License-Identifier: Apache-2.0
"""Reads the text of a compiled XLA program: computations, loops, sizes.

Text of an optimized, scheduled TPU module flows in; `Module` flows out, whose
`walk` gives each instruction with the number of times it runs (the bodies of
loops times their trip counts) and whether it stands in a fusion.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BYTES = {
  "pred": 1,
  "s4": 0.5,
  "u4": 0.5,
  "s8": 1,
  "u8": 1,
  "f8e4m3fn": 1,
  "f8e5m2": 1,
  "s16": 2,
  "u16": 2,
  "f16": 2,
  "bf16": 2,
  "s32": 4,
  "u32": 4,
  "f32": 4,
  "s64": 8,
  "u64": 8,
  "f64": 8,
  "c64": 8,
  "c128": 16,
}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of an instruction's result.

  Attributes:
    dtype: as XLA writes it.
    shape: dimensions.
    num_bytes: with the padding of its tiles.
    in_hbm: False where the layout puts it in VMEM or elsewhere on the core.
  """

  dtype: str
  shape: tuple[int, ...]
  num_bytes: float
  in_hbm: bool

  @property
  def hbm_bytes(self) -> float:
    return self.num_bytes if self.in_hbm else 0.0


@functools.lru_cache(maxsize=100_000)
def _array(dtype: str, dims: str, layout: str | None) -> Array:
  shape = tuple(int(size) for size in dims.split(",") if size)
  layout = layout or ""
  order, _, tiling = layout.partition(":")
  padded = [shape[int(i)] for i in order.split(",") if i] or list(shape)
  tile = re.match(r"T\(([\d,]+)\)", tiling)
  if tile:
    # `order` is minor to major; tiles are written major to minor.
    for i, size in enumerate(reversed(tile[1].split(","))):
      if i < len(padded):
        padded[i] = -(-padded[i] // int(size)) * int(size)
  space = re.search(r"S\((\d+)\)", tiling)
  return Array(
    dtype,
    shape,
    math.prod(padded) * _BYTES.get(dtype, 4),
    space is None or space[1] == "0",
  )


def arrays_of(text: str) -> tuple[Array, ...]:
  """All arrays of a (perhaps nested tuple) type."""
  return tuple(_array(*match) for match in _ARRAY.findall(text))


@dataclasses.dataclass
class Instruction:
  """One line of a computation.

  Attributes:
    name: without the percent sign.
    opcode: 'fusion', 'all-reduce-start', ... .
    type_text: of the result.
    operands: names of instructions of the same computation.
    attributes: the rest of the line.
    is_root: whether it is the computation's result.
  """

  name: str
  opcode: str
  type_text: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    return arrays_of(self.type_text)

  def called(self, key: str) -> str | None:
    """Name of the computation that attribute `key` names."""
    match = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
    return match[1] if match else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Visit:
  """An instruction where it runs.

  Attributes:
    instruction: the line.
    computation: it stands in.
    times: it runs in one step.
    in_fusion: its operands and result need not touch memory.
  """

  instruction: Instruction
  computation: Computation
  times: int
  in_fusion: bool

  def operand(self, index: int) -> Instruction:
    return self.computation[self.instruction.operands[index]]


def _closing(text: str, start: int) -> int:
  """Position after the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[i], 0)
    if depth == 0:
      return i + 1
  raise ValueError(f"unbalanced brackets in {text[:80]!r}")


def _instruction(line: str) -> Instruction | None:
  match = _INSTRUCTION.match(line)
  if not match:
    return None
  rest = _COMMENT.sub("", match[3])
  end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
  type_text, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition("(")
  end = _closing(rest, len(opcode))
  inner = rest[len(opcode) + 1 : end - 1]
  if opcode in ("constant", "parameter"):
    operands, attributes = (), f"value={inner}{rest[end:]}"
  else:
    operands = tuple(re.findall(r"%([\w.\-]+)", inner))
    attributes = rest[end:]
  return Instruction(
    match[2], opcode.strip(), type_text, operands, attributes, bool(match[1])
  )


class Module:
  """A parsed program.

  Attributes:
    computations: by name.
    entry: name of the one that runs.
  """

  def __init__(self, text: str):
    """Parses the text of a module."""
    self.computations: dict[str, Computation] = {}
    self.entry = ""
    current: Computation | None = None
    for line in text.splitlines():
      if current is None:
        match = _HEADER.match(line)
        if match:
          current = self.computations[match[2]] = {}
          if match[1]:
            self.entry = match[2]
      elif line.startswith("}"):
        current = None
      else:
        instruction = _instruction(line)
        if instruction is not None:
          current[instruction.name] = instruction
    if not self.entry:
      raise ValueError("not the text of an HLO module: no ENTRY computation")

  def trip_count(self, loop: Instruction, computation: Computation) -> int:
    """Times that the body of a while loop runs, 1 where it cannot be told."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
      return int(known[1])
    condition = self.computations[loop.called("condition")]
    limits = [
      int(instruction.attributes.split("=")[1].split(",")[0])
      for instruction in condition.values()
      if instruction.opcode == "constant"
      and re.fullmatch(r"[su](?:32|64)\[\].*", instruction.type_text)
    ]
    del computation
    return max(limits, default=1)

  def walk(
    self, name: str | None = None, times: int = 1, in_fusion: bool = False
  ) -> Iterator[Visit]:
    """Every instruction that runs, from the entry on."""
    computation = self.computations[name or self.entry]
    for instruction in computation.values():
      yield Visit(instruction, computation, times, in_fusion)
      opcode = instruction.opcode
      if opcode == "while":
        count = self.trip_count(instruction, computation)
        body = instruction.called("body")
        yield from self.walk(body, times * count, in_fusion)
      elif opcode == "fusion":
        yield from self.walk(instruction.called("calls"), times, True)
      elif opcode in ("call", "async-start"):
        target = instruction.called("to_apply") or instruction.called("calls")
        if target in self.computations:
          yield from self.walk(target, times, in_fusion)
      elif opcode == "conditional":
        # One branch runs; the dearest is not known yet, so take the first.
        branch = re.search(
          r"(?:branch_computations=\{|true_computation=)%?([\w.\-]+)",
          instruction.attributes,
        )
        if branch:
          yield from self.walk(branch[1], times, in_fusion)
