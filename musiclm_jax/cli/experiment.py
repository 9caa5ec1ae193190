# SPDX-License-Identifier: Apache-2.0
"""One experiment: everything a gin file under `gin/experiments` describes."""

import argparse
import dataclasses
import pathlib
from typing import Any

import jax

from musiclm_jax.cli import gin_config
from musiclm_jax.core import errors, protocols
from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.training import checkpoints, loop, optimizers
from musiclm_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A trainable with its data, loop, optimizer, mesh and exporter.

  Attributes:
    trainable: network and loss.
    data: loader of training and held-out batches (`data/loader.py`).
    loop: steps, batch, cadence.
    optimizer: what updates the parameters.
    mesh: device mesh and rule set.
    exporter: freezes the result (`cli/exporters.py`), or None.
  """

  trainable: protocols.Trainable
  data: Any
  loop: loop.LoopConfig
  optimizer: optimizers.OptimizerConfig
  mesh: mesh_lib.MeshConfig
  exporter: Any = None

  def train(self, model_dir: str) -> None:
    """Trains, or goes on from the newest checkpoint in `model_dir`."""
    partitioner = partitioner_lib.Partitioner(self.mesh)
    host, hosts = jax.process_index(), jax.process_count()

    def train_batches(start_step):
      return self.data.train_batches(start_step, host, hosts)

    def eval_batches():
      return self.data.eval_batches(host_index=host, num_hosts=hosts)

    loop.train(
      model_dir,
      self.trainable,
      train_batches,
      eval_batches,
      self.loop,
      self.optimizer,
      partitioner,
    )

  def restore(self, model_dir: str) -> state_lib.TrainState:
    """The newest state in `model_dir`.

    Raises:
      UserError: if there is no checkpoint.
    """
    if checkpoints.latest_step(model_dir) is None:
      raise errors.UserError(
        f"no checkpoint in {model_dir}/checkpoints: run `musiclm train` first"
      )
    abstract, _ = state_lib.create(
      self.trainable,
      optimizers.make_optimizer(self.optimizer),
      partitioner_lib.Partitioner(self.mesh),
      self.loop.global_batch_size,
      self.loop.seed,
      self.loop.ema_decay > 0,
      abstract=True,
    )
    checkpointer = checkpoints.Checkpointer(model_dir, self.loop.checkpointing)
    state = checkpointer.restore(abstract)
    checkpointer.close()
    if state is None:
      raise errors.UserError(f"no readable checkpoint in {model_dir}")
    return state

  def export(self, model_dir: str, directory: str) -> str:
    """Freezes the newest state as an artefact; returns its fingerprint."""
    if self.exporter is None:
      raise errors.UserError(
        "this experiment has no exporter: bind experiment.Experiment.exporter"
      )
    state = self.restore(model_dir)
    metadata = {"step": int(state.step), "model_dir": str(model_dir)}
    return self.exporter.export(
      self.trainable, state.best_variables, directory, metadata
    )


def resolve(args: argparse.Namespace) -> gin_config.Resolved:
  """Reads and checks the gin files and overrides of a command line."""
  paths = [path for path in args.gin_search_paths.split(",") if path]
  return gin_config.resolve(args.gin_file, args.gin_overrides, paths)


def load(args: argparse.Namespace) -> tuple[Experiment, gin_config.Resolved]:
  """Resolves a command line's configuration and builds its experiment."""
  resolved = resolve(args)
  return gin_config.build(Experiment), resolved


def record_config(model_dir: str, resolved: gin_config.Resolved) -> None:
  """Writes the resolved configuration beside the run's checkpoints."""
  folder = pathlib.Path(model_dir)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.txt").write_text(gin_config.describe(resolved) + "\n")
