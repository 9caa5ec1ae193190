# SPDX-License-Identifier: Apache-2.0
"""The training state: everything a checkpoint holds."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from musiclm_jax.core import protocols, rng
from musiclm_jax.partitioning import auto_mesh, axes
from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.partitioning import partitioner as partitioner_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """State of one run; no randomness in it (keys are a function of the step).

  Attributes:
    step: int32 scalar, optimizer steps done.
    params: parameters.
    optimizer: optax state.
    collections: other variables (codebooks, statistics).
    ema_params: running mean of `params`, or None.
  """

  step: jax.Array
  params: Any
  optimizer: Any
  collections: Mapping[str, Any]
  ema_params: Any = None

  @property
  def variables(self) -> dict[str, Any]:
    return {"params": self.params, **self.collections}

  @property
  def best_variables(self) -> dict[str, Any]:
    """Variables for evaluation and export: averaged parameters if kept."""
    params = self.params if self.ema_params is None else self.ema_params
    return {"params": params, **self.collections}


def create(
  trainable: protocols.Trainable,
  optimizer: optax.GradientTransformation,
  partitioner: partitioner_lib.Partitioner,
  batch_size: int,
  seed: int,
  use_ema: bool = False,
  abstract: bool = False,
) -> tuple[TrainState, Any]:
  """A fresh state on the mesh, and its shardings.

  Args:
    trainable: what is trained.
    optimizer: an optax transformation.
    partitioner: decides where each leaf lives.
    batch_size: rows of the batch that shapes are derived from.
    seed: of the initial parameters.
    use_ema: keep a running mean of the parameters.
    abstract: return shapes with shardings in place of arrays.

  Returns:
    The state and a tree of shardings of the same structure.
  """

  def boxed(key):
    batch = {
      name: jnp.zeros(shape.shape, shape.dtype)
      for name, shape in trainable.input_shapes(batch_size).items()
    }
    variables = dict(trainable.init(rng.named(key, "init"), batch))
    params = variables.pop("params")
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      optimizer=optimizer.init(params),
      collections=variables,
      ema_params=params if use_ema else None,
    )

  key = rng.root_key(seed)
  shapes = jax.eval_shape(boxed, key)
  shardings = partitioner.shardings(shapes)
  if abstract:
    state = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      axes.unbox(shapes),
      shardings,
    )
    return state, shardings
  # Run once, so little is spent on compiling it: with XLA:CPU's usual effort,
  # random numbers for 100 parameters take 45 s to compile.
  options = {}
  if jax.default_backend() == "cpu":
    options = {"xla_backend_optimization_level": 0}
  # No mesh context here: unboxing inside one would constrain by logical name.
  initialize = jax.jit(
    lambda key: axes.unbox(boxed(key)),
    out_shardings=shardings,
    compiler_options=options,
  )
  return initialize(key), shardings


def make_partitioner(
  trainable: protocols.Trainable,
  config: mesh_lib.MeshConfig | auto_mesh.AutoMeshConfig,
  global_batch_size: int,
  devices: Sequence[Any] | None = None,
) -> partitioner_lib.Partitioner:
  """The mesh for a trainable; sizes are chosen here if left to choose.

  Args:
    trainable: its parameters are counted, not made.
    config: sizes, or how to choose them.
    global_batch_size: rows of one optimizer step.
    devices: all by default.
  """
  count = 0
  if isinstance(config, auto_mesh.AutoMeshConfig):
    abstract = jax.eval_shape(
      trainable.init, rng.root_key(0), trainable.input_shapes(1)
    )
    count = num_parameters(abstract["params"])
  return partitioner_lib.Partitioner(config, devices, count, global_batch_size)


def num_parameters(params: Any) -> int:
  """Total number of parameter entries."""
  return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
