# SPDX-License-Identifier: Apache-2.0
"""Generation of whole items on a TPU slice: every program of every stage.

Chips work alone, each with its part of the items, as bulk generation has it.
A program is compiled once and runs so many times, one after the other.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from musiclm_jax.cli import check_serving, checking, children
from musiclm_jax.core import errors
from musiclm_jax.decoding import continuation
from musiclm_jax.models import token_lm
from musiclm_jax.partitioning import topologies
from musiclm_jax.systems import (
  cascade,
  stage_sampling,
  stage_weights,
  stage_windows,
)
from musiclm_jax.training import aot


@dataclasses.dataclass(frozen=True)
class Request:
  """What to check.

  Attributes:
    size: of `gin/sizes/stage_SIZE.gin`.
    topology: one slice.
    batch_size: items made at once, by all chips.
    seconds: of each item.
    gin_files: after those of experiment and size.
    overrides: 'NAME=value' of the command line.
    search_paths: folders of gin files.
    whole: see `aot.compile_program`.
    weights: of the stages in memory, of `stage_weights.CHOICES`.
  """

  size: str
  topology: topologies.Topology
  batch_size: int
  seconds: float
  gin_files: tuple[str, ...] = ()
  overrides: tuple[str, ...] = ()
  search_paths: tuple[str, ...] = ()
  whole: bool = False
  weights: str = stage_weights.COMPUTE

  def __post_init__(self):
    if self.batch_size < 1:
      raise errors.UserError(f"--batch_size={self.batch_size}: expected >= 1")
    if not (math.isfinite(self.seconds) and self.seconds > 0):
      raise errors.UserError(f"--seconds={self.seconds}: expected > 0")


@dataclasses.dataclass(frozen=True)
class Work:
  """A program of a stage and how often it runs.

  Attributes:
    stage: name.
    known_frames: compiled in as prefix; 0 in first windows.
    num_tokens: new ones of a row.
    rows_per_chip: at once.
    num_rows: in all calls, of all chips, without rows that only fill.
    num_calls: one after the other.
  """

  stage: str
  known_frames: int
  num_tokens: int
  rows_per_chip: int
  num_rows: int
  num_calls: int


@dataclasses.dataclass(frozen=True)
class Checked:
  """A program, compiled."""

  work: Work
  program: aot.Program
  roofline_seconds: float

  @property
  def bytes_per_token(self) -> float:
    """Of HBM, per token of a row."""
    tokens = self.work.rows_per_chip * self.work.num_tokens
    return self.program.cost.hbm_bytes / tokens

  @property
  def tokens_per_second(self) -> float:
    """By roofline, of all chips."""
    return self.work.num_rows * self.work.num_tokens / self.seconds

  @property
  def seconds(self) -> float:
    """Of all its calls, by roofline."""
    return self.work.num_calls * self.roofline_seconds


def _secs(trainable: token_lm.TokenLM, request: Request) -> float:
  whole = cascade.whole_secs(request.seconds)
  return min(whole, trainable.config.spec.crop_secs)


def plan(trainable: token_lm.TokenLM, stage: str, request: Request) -> list:
  """The programs of one stage.

  Args:
    trainable: the stage.
    stage: its name.
    request: what to make.

  Returns:
    `Work`s, first windows first.
  """
  stream = trainable.layout.target_stream
  levels = trainable.layout.num_target_levels
  chips, batch = request.topology.num_devices, request.batch_size
  total = stream.num_frames(cascade.whole_secs(request.seconds))
  window = stream.num_frames(_secs(trainable, request))
  per_chip = -(-batch // chips)
  if cascade.is_parallel(stage):
    rows = batch * len(continuation.plan_windows(total, window, 0))
    at_once = min(rows, max(batch, stage_windows.MAX_ROWS))
    per_chip = -(-at_once // chips)
    calls = -(-rows // (per_chip * min(chips, at_once)))
    return [Work(stage, 0, window * levels, per_chip, rows, calls)]
  windows = continuation.plan_windows(total, window, window // 2)
  found = [Work(stage, 0, window * levels, per_chip, batch, 1)]
  if len(windows) > 1:
    more, known = len(windows) - 1, window // 2
    new = (window - known) * levels
    found.append(Work(stage, known, new, per_chip, batch * more, more))
  return found


def _plan(request: Request, stage: str) -> list[Work]:
  return plan(checking.load_stage(request, stage), stage, request)


def _compile(request: Request, work: Work) -> Checked:
  """Compiles a program; call it in a child process."""
  trainable = checking.load_stage(request, work.stage)
  served = check_serving.decode_program(
    trainable,
    work.rows_per_chip,
    _secs(trainable, request),
    work.known_frames,
    request.weights,
  )
  program = aot.compile_function(
    served.function, served.arguments, request.topology, request.whole
  )
  seconds = max(program.cost.seconds(request.topology.chip).values())
  return Checked(work, program, seconds)


def check(request: Request) -> list[Checked]:
  """Compiles all programs, each in a child process."""
  works = [
    work
    for stage in stage_sampling.STAGES
    for work in children.call(_plan, request, stage)
  ]
  return [children.call(_compile, request, work) for work in works]


def to_json(request: Request, found: Sequence[Checked]) -> dict[str, Any]:
  """The result as plain data; the codec and MuLan are not part of it."""
  seconds = sum(one.seconds for one in found)
  return {
    "what": "generate",
    "size": request.size,
    "topology": request.topology.name,
    "num_devices": request.topology.num_devices,
    "batch_size": request.batch_size,
    "weights": request.weights,
    "audio_seconds": request.seconds,
    "fits": all(one.program.fits for one in found),
    "seconds": seconds,
    "real_time_factor": request.batch_size * request.seconds / seconds,
    "programs": [
      {
        **dataclasses.asdict(one.work),
        "bytes_per_token": one.bytes_per_token,
        "tokens_per_second": one.tokens_per_second,
        "roofline_seconds_per_call": one.roofline_seconds,
        "seconds": one.seconds,
        "flops_per_call_and_chip": one.program.cost.flops,
        "peak_bytes": one.program.memory.peak,
        "compile_seconds": one.program.compile_seconds,
      }
      for one in found
    ],
  }


def table(request: Request, found: Sequence[Checked]) -> str:
  """The result for people."""
  values = to_json(request, found)
  lines = [
    f"{request.batch_size} item(s) of {request.seconds:g} s, size "
    f"{request.size}, on {request.topology.name}, chips work alone",
    "stage     known  rows/chip  calls    MB/token    tokens/s   seconds"
    "      peak",
  ]
  for one in found:
    work = one.work
    lines.append(
      f"{work.stage:9}{work.known_frames:6}{work.rows_per_chip:11}"
      f"{work.num_calls:7}{one.bytes_per_token / 1e6:12.2f}"
      f"{one.tokens_per_second:12.0f}{one.seconds:10.2f}"
      f"{one.program.memory.peak / topologies.GIB:6.2f} GiB"
    )
  factor = values["real_time_factor"]
  lines.append(
    f"roofline: {values['seconds']:.2f} s, {factor:.1f} s of audio per second "
    "(without codec and MuLan)"
  )
  lines.append(f"fits: {'yes' if values['fits'] else 'NO'}")
  return "\n".join(lines)


def write_json(request: Request, found: Sequence[Checked], path: str) -> None:
  """Writes `to_json` as a file."""
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  target.write_text(json.dumps(to_json(request, found), indent=2) + "\n")
