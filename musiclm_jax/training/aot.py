# SPDX-License-Identifier: Apache-2.0
"""Compiles the exact train step for TPUs that are not there.

A trainable, its loop and optimizer and a mesh of described devices flow in;
the compiled program's memory and cost flow out. Nothing is run and no
parameter is made: shapes with shardings stand in for the state and the batch.
"""

import dataclasses
import pathlib
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from musiclm_jax.core import errors, protocols, rng
from musiclm_jax.partitioning import axes, topologies
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.training import (
  collectives,
  hlo,
  loop,
  optimizers,
  program_cost,
  steps,
)
from musiclm_jax.training import state as state_lib

_ASSIGNED = "after_optimizations_after_buffer_assignment.txt"


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of HBM on one chip, as the compiler assigned them.

  Attributes:
    arguments: state and batch.
    temporaries: gradients, activations, buffers of collectives.
    peak: all that the chip must hold at once.
    budget: what the compiler lets a program have.
    donated: of the arguments, those whose memory a result takes over.
  """

  arguments: int
  temporaries: int
  peak: int
  budget: int
  donated: int = 0

  @property
  def over(self) -> int:
    return max(0, self.peak - self.budget)


@dataclasses.dataclass(frozen=True)
class Program:
  """A step compiled for a topology.

  Attributes:
    memory: of a chip.
    cost: of a step.
    compile_seconds: tracing, lowering and compiling.
    cpu_seconds: processor time of the same.
  """

  memory: Memory
  cost: program_cost.Cost
  compile_seconds: float
  cpu_seconds: float

  @property
  def fits(self) -> bool:
    return not self.memory.over


class Stopwatch:
  """Wall and processor seconds since it was made."""

  def __init__(self):
    self._wall, self._cpu = time.monotonic(), time.process_time()

  def read(self) -> tuple[float, float]:
    return time.monotonic() - self._wall, time.process_time() - self._cpu


@dataclasses.dataclass(frozen=True)
class TrainSetup:
  """What a train step is made of.

  Attributes:
    trainable: network and loss.
    loop: batch, microbatches, averaging.
    optimizer: of the parameters.
  """

  trainable: protocols.Trainable
  loop: loop.LoopConfig
  optimizer: optimizers.OptimizerConfig


def abstract_batch(
  shapes: Any, partitioner: partitioner_lib.Partitioner
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a global batch, split as the loop splits it."""
  return {
    name: jax.ShapeDtypeStruct(
      shape.shape, shape.dtype, sharding=partitioner.batch_sharding
    )
    for name, shape in shapes.items()
  }


def lower_train_step(
  setup: TrainSetup, partitioner: partitioner_lib.Partitioner
) -> tuple[jax.stages.Lowered, state_lib.TrainState]:
  """The train step as `training/loop.py` builds it, lowered for TPU.

  Returns:
    The lowered step and the abstract state.
  """
  config = setup.loop
  partitioner.check_batch_size(
    config.global_batch_size // config.num_microbatches
  )
  transform = optimizers.make_optimizer(setup.optimizer)
  state, shardings = state_lib.create(
    setup.trainable,
    transform,
    partitioner,
    config.global_batch_size,
    config.seed,
    config.ema_decay > 0,
    abstract=True,
  )
  batch = abstract_batch(
    setup.trainable.input_shapes(config.global_batch_size), partitioner
  )
  key = jax.eval_shape(lambda: rng.root_key(config.seed))
  key = jax.ShapeDtypeStruct(
    key.shape, key.dtype, sharding=partitioner.replicated
  )
  step = partitioner.jit(
    steps.make_train_step(
      setup.trainable, transform, config.num_microbatches, config.ema_decay
    ),
    donate_argnums=0,
    out_shardings=(shardings, None),
  )
  traced = step.trace(state, batch, key)
  return traced.lower(lowering_platforms=("tpu",)), state


class _Compilation(threading.Thread):
  """A compilation that can be looked at while it goes on."""

  def __init__(self, lowered: jax.stages.Lowered, folder: str):
    super().__init__(daemon=True)
    self._lowered, self._folder = lowered, pathlib.Path(folder)
    self.error: Exception | None = None

  def run(self) -> None:
    options = {"xla_dump_to": str(self._folder), "xla_dump_hlo_as_text": True}
    try:
      self._lowered.compile(compiler_options=options)
    except Exception as error:
      self.error = error

  def text(self, ending: str) -> str:
    """The dump of the largest module whose name ends so; '' if none."""
    paths = list(self._folder.glob(f"*{ending}"))
    return max((path.read_text() for path in paths), key=len, default="")

  def wait(self, whole: bool) -> None:
    """Returns when memory is assigned, or (`whole`) the code is there.

    Raises:
      UserError: if the compiler fails for another reason than memory.
    """
    while self.is_alive():
      # Written after the check that the program fits.
      if not whole and list(self._folder.glob(f"*{_ASSIGNED}")):
        return
      self.join(0.1)
    if self.error is None or "CompileTimeHbmOom" in str(self.error):
      return
    if not isinstance(self.error, jax.errors.JaxRuntimeError):
      raise self.error
    raise errors.UserError(
      f"the TPU compiler fails: {str(self.error).splitlines()[0]}"
    ) from self.error


def read_memory(assignment: str, report: str, budget: int) -> Memory:
  """What the compiler's dumps say about HBM.

  Args:
    assignment: text of the buffer assignment.
    report: text of the memory usage report.
    budget: bytes that a program may have.
  """
  arguments = temporaries = donated = 0
  for size, rest in re.findall(
    r"^allocation \d+: size (\d+), (.*)$", assignment, re.MULTILINE
  ):
    if rest.startswith("color"):
      continue  # VMEM, SMEM, semaphores.
    if "parameter " in rest:
      arguments += int(size)
      donated += int(size) if "maybe-live-out" in rest else 0
    elif "preallocated-temp" in rest:
      temporaries += int(size)
  total = re.search(r"Memory Space: default.*\nTotal bytes: (\d+)", report)
  peak = int(total[1]) if total else arguments + temporaries
  return Memory(arguments, temporaries, peak, budget, donated)


def compile_program(
  lowered: jax.stages.Lowered,
  network: collectives.Network,
  started: Stopwatch,
  whole: bool = False,
) -> Program:
  """Compiles for TPU and reads the result.

  Args:
    lowered: for TPU.
    network: topology and mesh.
    started: when tracing began.
    whole: also wait for the machine code. Without it this returns when the
      program is optimized, scheduled and given its memory, a tenth of the
      work; the rest goes on in a thread that only the end of the process
      stops.

  Raises:
    UserError: if the compiler fails for another reason than memory.
  """
  chip = network.topology.chip
  budget = int(chip.program_gib * topologies.GIB)
  # Everything comes from dumps: where gathers run on the sparse cores, jaxlib
  # cannot read a module back from the executable; and what does not fit gives
  # no executable.
  folder = tempfile.mkdtemp(prefix="musiclm_check_")
  try:
    compilation = _Compilation(lowered, folder)
    compilation.start()
    compilation.wait(whole)
    spent = started.read()
    memory = read_memory(
      compilation.text("after_optimizations-buffer-assignment.txt"),
      compilation.text("after_optimizations-memory-usage-report.txt"),
      budget,
    )
    text = compilation.text("after_optimizations.txt")
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  return Program(
    memory, program_cost.analyze(hlo.Module(text), network), *spent
  )


def compile_function(
  function: Callable[..., Any],
  arguments: Sequence[Any],
  topology: topologies.Topology,
  whole: bool = False,
) -> Program:
  """Compiles a function for one chip of `topology`.

  Args:
    function: of arrays.
    arguments: trees of shapes.
    topology: its first chip is taken.
    whole: see `compile_program`.
  """
  started = Stopwatch()
  mesh = jax.sharding.Mesh(
    np.array(topologies.devices(topology)[:1], object), ("chip",)
  )
  here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  placed = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
    tuple(arguments),
  )
  # Layers ask what they are traced for: this chip, not the host.
  with axes.activate(mesh, ()):
    traced = jax.jit(function).trace(*placed)
  lowered = traced.lower(lowering_platforms=("tpu",))
  network = collectives.Network(topology, mesh)
  return compile_program(lowered, network, started, whole)


def compile_train_step(
  setup: TrainSetup,
  partitioner: partitioner_lib.Partitioner,
  topology: topologies.Topology,
  whole: bool = False,
) -> tuple[Program, state_lib.TrainState]:
  """Compiles a train step for `topology`.

  Args:
    setup: what the step is made of.
    partitioner: over the described devices of `topology`.
    topology: chips and slices.
    whole: see `compile_program`.

  Returns:
    The program and the abstract state it takes.
  """
  started = Stopwatch()
  lowered, state = lower_train_step(setup, partitioner)
  network = collectives.Network(topology, partitioner.mesh)
  return compile_program(lowered, network, started, whole), state
