# SPDX-License-Identifier: Apache-2.0
"""The check: an experiment and a topology in, what the step costs out.

Everything runs in child processes (`children.py`): the parent imports, a child
builds the experiment, compiles it and ends, with what the compiler still does.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from musiclm_jax.cli import experiment, gin_config
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.partitioning import topologies
from musiclm_jax.systems import acoustic_backends, stage_weights
from musiclm_jax.training import aot, collectives, model_flops
from musiclm_jax.training import state as state_lib

WHAT = ("train", "decode", "tokenize")
# What reads a corpus, a cache or a folder; the step needs none of it.
_NOT_OF_THE_STEP = (
  "experiment.Experiment.data",
  "experiment.Experiment.exporter",
)
_STREAMS = "exporters.cache_streams.cache_dir"
# Required of a run; what they are changes no shape.
_FILL = {"TRAIN_STEPS": 1000, "LEARNING_RATE": 1e-3}


@dataclasses.dataclass(frozen=True)
class Request:
  """What to check.

  Attributes:
    gin_files: of the experiment.
    overrides: 'NAME=value' of the command line.
    topology: chips and slices.
    search_paths: folders of gin files.
    what: of `WHAT`.
    rows_per_chip: items a chip decodes or tokenizes at once.
    weights: of a stage that decodes, of `stage_weights.CHOICES`.
    whole: see `aot.compile_program`.
    changes: what a knob changes: names and values for `changed`.
  """

  gin_files: tuple[str, ...]
  overrides: tuple[str, ...]
  topology: topologies.Topology
  search_paths: tuple[str, ...] = ()
  what: str = "train"
  rows_per_chip: int = 16
  whole: bool = False
  changes: tuple[tuple[str, Any], ...] = ()
  weights: str = stage_weights.COMPUTE


@dataclasses.dataclass(frozen=True)
class Result:
  """Everything a check found out.

  Attributes:
    request: what was asked.
    mesh_shape: size of each axis.
    global_batch_size: rows per step.
    num_microbatches: the batch is processed in.
    rows_per_device: of a microbatch.
    parameters: entries.
    model_flops: needed by a step, over all chips.
    program: compiled.
    audio_secs: of one row.
    remat: policy, or None where there is none.
    knobs: changes that would save memory, and are worth a look.
  """

  request: Request
  mesh_shape: dict[str, int]
  global_batch_size: int
  num_microbatches: int
  rows_per_device: int
  parameters: int
  model_flops: float
  program: aot.Program
  audio_secs: float | None = None
  remat: str | None = None
  knobs: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()

  @property
  def topology(self) -> topologies.Topology:
    return self.request.topology

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

  def collective_seconds(self) -> float:
    return self.seconds["ici"] + self.seconds["dcn"]


def load(request: Request) -> experiment.Experiment:
  """Builds the experiment of a request without its data."""
  return load_without_data(
    request.gin_files, request.overrides, request.search_paths
  )


def load_without_data(
  gin_files: Sequence[str],
  overrides: Sequence[str],
  search_paths: Sequence[str] = (),
) -> experiment.Experiment:
  """Builds an experiment without its data; streams are the published ones.

  Raises:
    UserError: if a gin file is missing, or a binding does not fit.
  """
  without = list(_NOT_OF_THE_STEP)
  if not any(o.startswith("CACHE_DIR=") for o in overrides):
    without.append(_STREAMS)
  gin_config.resolve(
    gin_files, overrides, search_paths, without=without, fill=_FILL
  )
  return gin_config.build(experiment.Experiment)


def load_stage_experiment(request: Any, stage: str) -> experiment.Experiment:
  """The experiment of a stage at a size, without its data.

  Args:
    request: has `size`, `gin_files`, `overrides` and `search_paths`.
    stage: 'semantic', 'coarse' or 'fine', or the name of a back end.

  Raises:
    UserError: if there is no such size, or a gin file does not fit.
  """
  kind = stage if stage in acoustic_backends.BACKENDS else "stage"
  return load_without_data(
    (
      f"experiments/musiclm_{stage}_paper_audio_folder.gin",
      f"sizes/{kind}_{request.size}.gin",
      *request.gin_files,
    ),
    request.overrides,
    request.search_paths,
  )


def load_stage(request: Any, stage: str) -> Any:
  """The trainable of `load_stage_experiment`."""
  return load_stage_experiment(request, stage).trainable


# --- Knobs.


def _transformer_config(trainable: Any) -> Any:
  return getattr(getattr(trainable, "config", None), "transformer", None)


def changed(
  run: experiment.Experiment, changes: tuple[tuple[str, Any], ...]
) -> experiment.Experiment:
  """The experiment with knobs turned.

  Args:
    run: as configured.
    changes: ('rows_per_device', int), ('remat', policy), ('optimizer', name),
      ('mesh', a whole `MeshConfig`).
  """
  for name, value in changes:
    if name == "rows_per_device":
      run = dataclasses.replace(run, rows_per_device=value)
    elif name == "optimizer":
      optimizer = dataclasses.replace(run.optimizer, name=value)
      run = dataclasses.replace(run, optimizer=optimizer)
    elif name == "mesh":
      run = dataclasses.replace(run, mesh=value)
    elif name == "remat":
      config = run.trainable.config
      shape = dataclasses.replace(config.transformer, remat=value)
      trainable = type(run.trainable)(
        dataclasses.replace(config, transformer=shape)
      )
      run = dataclasses.replace(run, trainable=trainable)
    else:
      raise ValueError(f"changes: no knob {name!r}")
  return run


def _knobs(
  run: experiment.Experiment,
  partitioner: partitioner_lib.Partitioner,
  rows: int,
) -> tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]:
  """Changes that may save memory: what to write, and what to change."""
  found, mesh = [], partitioner.config
  if rows > 1:
    found.append(
      (
        f"experiment.Experiment.rows_per_device={rows // 2}",
        (("rows_per_device", rows // 2),),
      )
    )
  shape = _transformer_config(run.trainable)
  if getattr(shape, "remat", "full") != "full":
    found.append(
      ("transformer.TransformerConfig.remat='full'", (("remat", "full"),))
    )
  if run.optimizer.name != "adafactor":
    found.append(
      (
        "optimizers.OptimizerConfig.name='adafactor'",
        (("optimizer", "adafactor"),),
      )
    )
  for text, sizes in _mesh_knobs(mesh):
    changes = (("mesh", dataclasses.replace(mesh, **sizes)),)
    # With fewer shards of the batch, a device keeps its rows.
    found.append((text, (*changes, ("rows_per_device", rows))))
  return tuple(found)


def _mesh_knobs(mesh: Any) -> list[tuple[str, dict[str, int]]]:
  found = []
  if mesh.data > 1:
    found.append(
      (
        f"mesh: data=1 fsdp={mesh.data * mesh.fsdp}",
        {"data": 1, "fsdp": mesh.data * mesh.fsdp},
      )
    )
  if mesh.dcn_data > 1:
    across = mesh.dcn_data * mesh.dcn_fsdp
    found.append(
      (
        f"mesh: dcn_data=1 dcn_fsdp={across}",
        {"dcn_data": 1, "dcn_fsdp": across},
      )
    )
  from_axis = "fsdp" if mesh.fsdp % 2 == 0 else "data"
  for axis in ("tensor", "sequence"):
    size = getattr(mesh, from_axis)
    if size % 2 == 0:
      sizes = {from_axis: size // 2, axis: 2 * getattr(mesh, axis)}
      text = " ".join(f"{name}={value}" for name, value in sizes.items())
      found.append((f"mesh: {text}", sizes))
  return found


# --- The train step.


def check_train(request: Request) -> Result:
  """Compiles the train step of a request; call it in a child process."""
  run = changed(load(request), request.changes)
  topology = request.topology
  partitioner = run.make_partitioner(topologies.devices(topology))
  loop = run.loop_on(partitioner)
  setup = aot.TrainSetup(run.trainable, loop, run.optimizer)
  program, state = aot.compile_train_step(
    setup, partitioner, topology, request.whole
  )
  batch_size = loop.global_batch_size
  shards = partitioner.batch_divisor * loop.num_microbatches
  rows = batch_size // shards
  return Result(
    request,
    dict(partitioner.mesh.shape),
    batch_size,
    loop.num_microbatches,
    rows,
    state_lib.num_parameters(state.params),
    model_flops.train_flops(run.trainable, batch_size),
    program,
    remat=getattr(_transformer_config(run.trainable), "remat", None),
    knobs=_knobs(run, partitioner, rows),
  )


def check(request: Request) -> Result:
  """Compiles what a request asks for; call it in a child process."""
  if request.what == "train":
    return check_train(request)
  from musiclm_jax.cli import check_serving

  trainable, rows = load(request).trainable, request.rows_per_chip
  if request.what == "decode":
    served = check_serving.decode_program(
      trainable, rows, weights=request.weights
    )
  else:
    served = check_serving.tokenize_program(trainable, rows)
  program = aot.compile_function(
    served.function, served.arguments, request.topology, request.whole
  )
  chips = request.topology.num_devices
  flops = model_flops.trace_flops(served.function, *served.arguments)
  return Result(
    request,
    {"chips that work alone": chips},
    request.rows_per_chip * chips,
    1,
    request.rows_per_chip,
    served.parameters,
    flops * chips,
    program,
    audio_secs=served.audio_secs,
  )


# --- Refusal.


@dataclasses.dataclass(frozen=True)
class Saving:
  """What a knob would do, measured by compiling with it.

  Attributes:
    text: what to write.
    num_bytes: of peak memory saved on a chip.
    fits: whether the step then fits.
    predicted_mfu: then.
  """

  text: str
  num_bytes: int
  fits: bool
  predicted_mfu: float


def savings(result: Result, results: list[Any]) -> list[Saving]:
  """Knobs that save memory, the best first.

  Args:
    result: of a step that does not fit.
    results: of the same with each of `result.knobs`, or exceptions.
  """
  found = []
  for (text, _), other in zip(result.knobs, results):
    if isinstance(other, Exception):
      continue
    saved = result.program.memory.peak - other.program.memory.peak
    if saved > 0:
      found.append(Saving(text, saved, other.program.fits, other.predicted_mfu))
  return sorted(found, key=lambda saving: -saving.num_bytes)


def by_network(result: Result, network: str) -> list[collectives.Collective]:
  """Collectives of a result on 'ici' or 'dcn'."""
  return [c for c in result.program.cost.collectives if c.network == network]
