# SPDX-License-Identifier: Apache-2.0
"""Compiles the exact train step for TPUs that are not there.

A trainable, its loop and mesh configurations and a topology flow in; the
compiled program's text, memory and cost flow out. Nothing is run and no
parameter is made: shapes with shardings stand in for the state and the batch.
"""

import dataclasses
import pathlib
import re
import tempfile
import time
from typing import Any

import jax

from musiclm_jax.core import errors, protocols, rng
from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.partitioning import topologies
from musiclm_jax.training import hlo, loop, optimizers, program_cost, steps
from musiclm_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of HBM on one chip.

  Attributes:
    arguments: state and batch.
    temporaries: gradients, activations, buffers of collectives.
    output: results that do not take the place of an argument.
    program: the code.
    peak: what the chip must hold at once.
    budget: what it has, less what the system keeps.
  """

  arguments: int
  temporaries: int
  output: int
  program: int
  peak: int
  budget: int

  @property
  def over(self) -> int:
    return max(0, self.peak - self.budget)


@dataclasses.dataclass(frozen=True)
class Program:
  """A step compiled for a topology.

  Attributes:
    memory: of a chip.
    cost: of a step, None where the program does not fit and so was not built.
    compile_seconds: tracing, lowering and compiling.
    cpu_seconds: processor time of the same.
  """

  memory: Memory
  cost: program_cost.Cost | None
  compile_seconds: float
  cpu_seconds: float

  @property
  def fits(self) -> bool:
    return not self.memory.over


@dataclasses.dataclass(frozen=True)
class TrainSetup:
  """What a train step is made of.

  Attributes:
    trainable: network and loss.
    loop: batch, microbatches, averaging.
    optimizer: of the parameters.
    mesh: sizes of the axes and rules.
  """

  trainable: protocols.Trainable
  loop: loop.LoopConfig
  optimizer: optimizers.OptimizerConfig
  mesh: mesh_lib.MeshConfig


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
  step = jax.jit(
    steps.make_train_step(
      setup.trainable, transform, config.num_microbatches, config.ema_decay
    ),
    donate_argnums=0,
    out_shardings=(shardings, None),
  )
  with partitioner.context():
    traced = step.trace(state, batch, key)
    return traced.lower(lowering_platforms=("tpu",)), state


def _size(text: str, unit: str) -> int:
  scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  return int(float(text) * scale[unit])


def _out_of_memory(error: Exception) -> tuple[int, int] | None:
  """Bytes needed and there, from the compiler's refusal."""
  match = re.search(
    r"Used ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm", str(error)
  )
  if not match:
    return None
  return _size(match[1], match[2]), _size(match[3], match[4])


def compile_program(
  lowered: jax.stages.Lowered,
  network: program_cost.Network,
  began: float,
  cpu_began: float,
) -> Program:
  """Compiles for TPU and reads the result.

  Args:
    lowered: for TPU.
    network: topology and mesh.
    began: `time.monotonic()` when tracing began.
    cpu_began: `time.process_time()` then.

  Raises:
    UserError: if the compiler fails for another reason than memory.
  """
  budget = int(network.topology.chip.hbm_gib * topologies.GIB)

  def spent():
    return time.monotonic() - began, time.process_time() - cpu_began

  # The text comes from a dump: where gathers run on the sparse cores, jaxlib
  # cannot read the module back from the executable.
  with tempfile.TemporaryDirectory(prefix="musiclm_check_") as folder:
    options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    try:
      compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      sizes = _out_of_memory(error)
      if sizes is None:
        raise errors.UserError(
          f"the TPU compiler fails: {str(error).splitlines()[0]}"
        ) from error
      used, there = sizes
      memory = Memory(0, 0, 0, 0, used, there)
      return Program(memory, None, *spent())
    texts = sorted(pathlib.Path(folder).glob("*after_optimizations.txt"))
    text = max((path.read_text() for path in texts), key=len)
  stats = compiled.memory_analysis()
  seconds = spent()
  output = stats.output_size_in_bytes - stats.alias_size_in_bytes
  memory = Memory(
    stats.argument_size_in_bytes,
    stats.temp_size_in_bytes,
    output,
    stats.generated_code_size_in_bytes,
    stats.argument_size_in_bytes
    + stats.temp_size_in_bytes
    + output
    + stats.generated_code_size_in_bytes,
    budget,
  )
  cost = program_cost.analyze(hlo.Module(text), network)
  return Program(memory, cost, *seconds)


def compile_train_step(
  setup: TrainSetup, topology: topologies.Topology
) -> tuple[Program, state_lib.TrainState, jax.sharding.Mesh]:
  """Compiles a train step for `topology`.

  Returns:
    The program, the abstract state it takes, and the mesh.
  """
  began, cpu_began = time.monotonic(), time.process_time()
  partitioner = state_lib.make_partitioner(
    setup.trainable,
    setup.mesh,
    setup.loop.global_batch_size,
    topologies.devices(topology),
  )
  lowered, state = lower_train_step(setup, partitioner)
  network = program_cost.Network(topology, partitioner.mesh)
  program = compile_program(lowered, network, began, cpu_began)
  return program, state, partitioner.mesh
