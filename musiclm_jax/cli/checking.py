# SPDX-License-Identifier: Apache-2.0
"""The check: an experiment and a topology in, a table and a JSON file out."""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

from musiclm_jax.cli import experiment, gin_config
from musiclm_jax.partitioning import topologies
from musiclm_jax.training import aot, model_flops
from musiclm_jax.training import state as state_lib

# What reads a corpus, a cache or a folder; the step needs none of it.
_NOT_OF_THE_STEP = (
  "experiment.Experiment.data",
  "experiment.Experiment.exporter",
)
_STREAMS = "exporters.cache_streams.cache_dir"
# Required of a run; what they are changes no shape.
_FILL = {"TRAIN_STEPS": 1000, "LEARNING_RATE": 1e-3}


@dataclasses.dataclass(frozen=True)
class Result:
  """Everything a check found out.

  Attributes:
    gin_files: of the experiment.
    topology: checked for.
    mesh_shape: size of each axis.
    global_batch_size: rows per step.
    num_microbatches: the batch is processed in.
    parameters: entries.
    model_flops: needed by a step, over all chips.
    program: compiled.
  """

  gin_files: tuple[str, ...]
  topology: topologies.Topology
  mesh_shape: dict[str, int]
  global_batch_size: int
  num_microbatches: int
  parameters: int
  model_flops: float
  program: aot.Program

  @property
  def seconds(self) -> dict[str, float]:
    """Time of each resource in one step."""
    return self.program.cost.seconds(self.topology.chip)

  @property
  def roofline_seconds(self) -> float:
    return max(self.seconds.values())

  @property
  def bound(self) -> str:
    return max(self.seconds, key=self.seconds.get)

  @property
  def model_seconds(self) -> float:
    """Time of the model's FLOPs at the peak of all chips."""
    chips = self.topology.num_devices
    return self.model_flops / chips / self.topology.chip.peak_flops

  @property
  def predicted_mfu(self) -> float:
    """If all resources overlap perfectly."""
    return self.model_seconds / self.roofline_seconds

  @property
  def pessimistic_mfu(self) -> float:
    """If nothing overlaps."""
    return self.model_seconds / sum(self.seconds.values())

  @property
  def collective_bytes(self) -> float:
    return sum(entry.num_bytes for entry in self.program.cost.collectives)


def load(args: argparse.Namespace) -> experiment.Experiment:
  """Builds the experiment of a command line without its data."""
  without = list(_NOT_OF_THE_STEP)
  if not any(o.startswith("CACHE_DIR=") for o in args.gin_overrides):
    without.append(_STREAMS)
  paths = [path for path in args.gin_search_paths.split(",") if path]
  gin_config.resolve(
    args.gin_file, args.gin_overrides, paths, without=without, fill=_FILL
  )
  return gin_config.build(experiment.Experiment)


def check(args: argparse.Namespace, topology: topologies.Topology) -> Result:
  """Compiles the train step of a command line's experiment."""
  run = load(args)
  partitioner = run.make_partitioner(topologies.devices(topology))
  loop = run.loop_on(partitioner)
  setup = aot.TrainSetup(run.trainable, loop, run.optimizer)
  program, state = aot.compile_train_step(
    setup, partitioner, topology, args.whole
  )
  batch_size = loop.global_batch_size
  return Result(
    tuple(args.gin_file),
    topology,
    dict(partitioner.mesh.shape),
    batch_size,
    loop.num_microbatches,
    state_lib.num_parameters(state.params),
    model_flops.train_flops(run.trainable, batch_size),
    program,
  )


# --- Output.


def to_json(result: Result) -> dict[str, Any]:
  """The result as plain data."""
  memory, cost = result.program.memory, result.program.cost
  return {
    "fits": result.program.fits,
    "hbm_bytes": memory.budget,
    "peak_bytes": memory.peak,
    "parameters": result.parameters,
    "flops_per_step": result.model_flops,
    "hbm_bytes_accessed": cost.hbm_bytes,
    "collective_bytes": result.collective_bytes,
    "bound": result.bound,
    "roofline_seconds": result.roofline_seconds,
    "predicted_mfu": result.predicted_mfu,
    "compile_seconds": result.program.compile_seconds,
    "num_devices": result.topology.num_devices,
    # More than was asked for.
    "gin_files": list(result.gin_files),
    "topology": result.topology.name,
    "mesh": result.mesh_shape,
    "global_batch_size": result.global_batch_size,
    "num_microbatches": result.num_microbatches,
    "argument_bytes": memory.arguments,
    "temporary_bytes": memory.temporaries,
    "over_bytes": memory.over,
    "executed_flops_per_chip": cost.flops,
    "seconds": result.seconds,
    "pessimistic_mfu": result.pessimistic_mfu,
    "collectives": [dataclasses.asdict(entry) for entry in cost.collectives],
    "compile_cpu_seconds": result.program.cpu_seconds,
  }


def write_json(result: Result, path: str) -> None:
  """Writes `to_json` as a file."""
  pathlib.Path(path).write_text(json.dumps(to_json(result), indent=2) + "\n")


def _gib(num_bytes: float) -> str:
  return f"{num_bytes / topologies.GIB:.2f} GiB"


def table(result: Result) -> str:
  """The result for people."""
  memory, cost = result.program.memory, result.program.cost
  chips = result.topology.num_devices
  mesh = " ".join(f"{k}={v}" for k, v in result.mesh_shape.items())
  rows = [
    ("topology", f"{result.topology.name}: {chips} chips, mesh {mesh}"),
    (
      "batch",
      f"{result.global_batch_size} rows in {result.num_microbatches} "
      "microbatch(es)",
    ),
    ("parameters", f"{result.parameters:,}"),
    ("compiled in", f"{result.program.compile_seconds:.0f} s"),
  ]
  rows += [
    ("arguments", f"{_gib(memory.arguments)} per chip"),
    ("temporaries", f"{_gib(memory.temporaries)} per chip"),
  ]
  rows.append(
    ("peak", f"{_gib(memory.peak)} of {_gib(memory.budget)} per chip")
  )
  rows.append(
    (
      "model FLOPs",
      f"{result.model_flops / 1e12:.2f} T per step, "
      f"{result.model_flops / chips / 1e12:.3f} T per chip",
    )
  )
  seconds = result.seconds
  ms = {name: f"{value * 1e3:8.2f} ms" for name, value in seconds.items()}
  rows += [
    ("compute", f"{ms['compute']}  {cost.flops / 1e12:.3f} TFLOP executed"),
    ("HBM", f"{ms['hbm']}  {cost.hbm_bytes / 1e9:.2f} GB"),
    ("ICI", f"{ms['ici']}  {_network_bytes(result, 'ici'):.3f} GB"),
    ("DCN", f"{ms['dcn']}  {_network_bytes(result, 'dcn'):.3f} GB"),
  ]
  rows += [
    (
      f"  {entry.kind}",
      f"{entry.seconds * 1e3:8.2f} ms  {entry.num_bytes / 1e9:.3f} GB, "
      f"{entry.count} x over {entry.axes} ({entry.network})",
    )
    for entry in cost.collectives
  ]
  rows += [
    (
      "roofline",
      f"{result.roofline_seconds * 1e3:8.2f} ms  bound by {result.bound}",
    ),
    (
      "predicted MFU",
      f"{result.predicted_mfu:.1%} "
      f"(nothing overlapping: {result.pessimistic_mfu:.1%})",
    ),
    (
      "fits",
      "yes" if result.program.fits else f"NO: {_gib(memory.over)} over",
    ),
  ]
  return _lines(rows)


def _network_bytes(result: Result, network: str) -> float:
  return (
    sum(
      c.num_bytes
      for c in result.program.cost.collectives
      if c.network == network
    )
    / 1e9
  )


def _lines(rows: list[tuple[str, str]]) -> str:
  return "\n".join(f"{name:22}{value}" for name, value in rows)
