# SPDX-License-Identifier: Apache-2.0
"""One experiment: everything a gin file under `gin/experiments` describes."""

import argparse
import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from musiclm_jax.cli import gin_config
from musiclm_jax.core import atomic_files, errors, protocols
from musiclm_jax.partitioning import auto_mesh
from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.training import (
  agreement,
  best,
  checkpoints,
  distributed,
  ledger,
  loop,
  optimizers,
)
from musiclm_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A trainable with its data, loop, optimizer, mesh and exporter.

  Attributes:
    trainable: network and loss.
    data: loader of training and held-out batches (`data/loader.py`).
    loop: steps, batch, cadence.
    optimizer: what updates the parameters.
    mesh: device mesh and rule set, or how to choose them.
    exporter: freezes the result (`cli/exporters.py`), or None.
    rows_per_device: most rows of a microbatch on one device; the number of
      microbatches follows from it, the mesh and the global batch. 0 leaves
      `loop.num_microbatches` as it is.
  """

  trainable: protocols.Trainable
  data: Any
  loop: loop.LoopConfig
  optimizer: optimizers.OptimizerConfig
  mesh: mesh_lib.MeshConfig | auto_mesh.AutoMeshConfig
  exporter: Any = None
  rows_per_device: int = 0

  def __post_init__(self):
    # What clamps ids without a word would train on wrong texts.
    given = getattr(self.data, "num_text_ids", 0)
    known = getattr(self.trainable, "num_text_ids", given)
    if given > known:
      raise errors.UserError(
        f"the text vocabulary of the data has {given} ids, the text tower "
        f"{known}: expected at most as many; set the tower's vocab_size, or "
        "take the vocabulary that belongs to it"
      )

  def make_partitioner(
    self, devices: Sequence[Any] | None = None
  ) -> partitioner_lib.Partitioner:
    """The mesh over `devices` (all by default)."""
    return state_lib.make_partitioner(
      self.trainable, self.mesh, self.loop.global_batch_size, devices
    )

  def loop_on(
    self, partitioner: partitioner_lib.Partitioner
  ) -> loop.LoopConfig:
    """The loop with the number of microbatches that a mesh asks for."""
    if not self.rows_per_device:
      return self.loop
    return dataclasses.replace(
      self.loop,
      num_microbatches=partitioner.num_microbatches(
        self.loop.global_batch_size, self.rows_per_device
      ),
    )

  def artifact_fingerprints(self) -> dict[str, str]:
    """Fingerprints of the frozen parts that this training builds on."""
    if not hasattr(self.exporter, "parent_fingerprints"):
      return {}
    return self.exporter.parent_fingerprints()

  def train(
    self,
    model_dir: str,
    partitioner: partitioner_lib.Partitioner | None = None,
    options: loop.RunOptions | None = None,
    books: ledger.Ledger | None = None,
  ) -> None:
    """Trains, or goes on from the newest checkpoint in `model_dir`.

    Args:
      model_dir: folder of the run, shared by all processes.
      partitioner: the mesh; the experiment's own by default.
      options: of this start.
      books: where the time goes; closed by the caller.

    Raises:
      UserError: as `loop.train`, or if the held-out split is not there.
    """
    partitioner = partitioner or self.make_partitioner()
    host, hosts = partitioner.host_part()
    # Raises if there is no held-out split, at the start and not hours later.
    self.data.num_eval_batches()

    def train_batches(start_step):
      return self.data.train_batches(start_step, host, hosts)

    def eval_batches():
      return self.data.eval_batches(host_index=host, num_hosts=hosts)

    loop.train(
      model_dir,
      self.trainable,
      train_batches,
      eval_batches,
      self.loop_on(partitioner),
      self.optimizer,
      partitioner,
      options,
      books,
    )

  def restore(
    self, model_dir: str, checkpoint: str = "newest"
  ) -> state_lib.TrainState:
    """A state in `model_dir`.

    Args:
      model_dir: of the run.
      checkpoint: 'newest', 'best' (`LoopConfig.keep_best_by`) or a step.

    Raises:
      UserError: if there is no such checkpoint.
    """
    if checkpoints.latest_step(model_dir) is None:
      raise errors.UserError(
        f"no checkpoint in {model_dir}/checkpoints: run `musiclm train` first"
      )
    abstract, _ = state_lib.create(
      self.trainable,
      optimizers.make_optimizer(self.optimizer),
      self.make_partitioner(),
      self.loop.global_batch_size,
      self.loop.seed,
      self.loop.ema_decay > 0,
      abstract=True,
    )
    checkpointer = checkpoints.Checkpointer(model_dir, self.loop.checkpointing)
    try:
      if checkpoint == "newest":
        state = checkpointer.restore(abstract)
      else:
        if checkpoint == "best":
          step = best.find(model_dir, checkpointer.steps()).step
        else:
          step = _step_of(checkpoint)
        state = checkpointer.restore_step(step, abstract)
    finally:
      checkpointer.close()
    if state is None:
      raise errors.UserError(f"no readable checkpoint in {model_dir}")
    return state

  def export(
    self, model_dir: str, directory: str, checkpoint: str = "newest"
  ) -> str:
    """Freezes a state as an artefact; returns its fingerprint.

    `checkpoint` is as in `restore`. Of several processes all restore the
    state, process 0 freezes it (all of them, where the exporter says so), and
    the others wait and return ''.
    """
    if self.exporter is None:
      raise errors.UserError(
        "this experiment has no exporter: bind experiment.Experiment.exporter"
      )
    state = self.restore(model_dir, checkpoint)
    metadata = {"step": int(state.step), "model_dir": str(model_dir)}
    variables = agreement.to_hosts(state.best_variables)
    mark = ""
    if distributed.is_main() or getattr(self.exporter, "is_collective", False):
      mark = self.exporter.export(
        self.trainable, variables, directory, metadata
      )
    agreement.barrier("exported")
    return mark


def _step_of(checkpoint: str) -> int:
  if not checkpoint.isdecimal():
    raise errors.UserError(
      f"checkpoint={checkpoint!r}: expected 'newest', 'best' or a step"
    )
  return int(checkpoint)


def resolve(args: argparse.Namespace) -> gin_config.Resolved:
  """Reads and checks the gin files and overrides of a command line."""
  paths = [path for path in args.gin_search_paths.split(",") if path]
  return gin_config.resolve(args.gin_file, args.gin_overrides, paths)


def load(args: argparse.Namespace) -> tuple[Experiment, gin_config.Resolved]:
  """Resolves a command line's configuration and builds its experiment."""
  resolved = resolve(args)
  return gin_config.build(Experiment), resolved


def config_fingerprint(resolved: gin_config.Resolved) -> str:
  """Hex hash over the resolved values, wherever they were written."""
  text = "\n".join(
    f"{key} = {binding.value!r}"
    for key, binding in sorted(resolved.bindings.items())
  )
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def record_config(model_dir: str, resolved: gin_config.Resolved) -> None:
  """Writes the resolved configuration beside the run's checkpoints."""
  folder = pathlib.Path(model_dir)
  text = gin_config.describe(resolved) + "\n"
  atomic_files.write_text(folder / "config.txt", text)
