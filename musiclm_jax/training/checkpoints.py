# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints through Orbax: async, sharded, atomic.

The only user of orbax. A damaged newest checkpoint is named, set aside and
skipped; the one before is used.
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from musiclm_jax.core import errors
from musiclm_jax.training import state as state_lib

_ASIDE = "damaged"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When checkpoints are written and how many are kept.

  Attributes:
    every_steps: a checkpoint every so many steps, and at the end.
    keep: newest checkpoints kept.
    keep_every_steps: checkpoints at multiples of this are kept for good; 0
      keeps none.
  """

  every_steps: int = 1000
  keep: int = 2
  keep_every_steps: int = 0

  def __post_init__(self):
    if self.every_steps < 1:
      raise ValueError(f"every_steps={self.every_steps}: expected >= 1")
    if self.keep < 1:
      raise ValueError(f"keep={self.keep}: expected >= 1")


class Checkpointer:
  """Saves and restores `TrainState`s of one run."""

  def __init__(self, model_dir: str | os.PathLike, config: CheckpointConfig):
    """Opens `<model_dir>/checkpoints`, creating it.

    Args:
      model_dir: folder of the run.
      config: cadence and retention.
    """
    self._config = config
    self._directory = pathlib.Path(model_dir).absolute() / "checkpoints"
    self._directory.mkdir(parents=True, exist_ok=True)
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._directory,
      # Named, so that shapes can be read before anything is restored.
      item_handlers=ocp.StandardCheckpointHandler(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=self._config.keep,
        keep_period=self._config.keep_every_steps or None,
        enable_async_checkpointing=True,
      ),
    )

  def due(self, step: int) -> bool:
    """Whether the cadence asks for a checkpoint after `step` steps."""
    return step % self._config.every_steps == 0

  def save(self, state: state_lib.TrainState, wait: bool = False) -> None:
    """Starts writing `state`; with `wait`, returns when it is on disk."""
    step = int(state.step)
    if step not in self._manager.all_steps():
      try:
        self._manager.save(step, args=ocp.args.StandardSave(_as_dict(state)))
      except OSError as error:
        raise errors.RetryError(
          f"could not write checkpoint {step} in {self._directory}: {error}"
        ) from error
    if wait:
      self._manager.wait_until_finished()

  def restore(
    self, abstract: state_lib.TrainState
  ) -> state_lib.TrainState | None:
    """The newest good state, placed by `abstract`'s shardings; or None.

    Raises:
      UserError: if a checkpoint is of a model of other sizes; it is no
        damage, and nothing is set aside.
    """
    for step in sorted(self._manager.all_steps(), reverse=True):
      self._check_shapes(step, abstract)
      try:
        values = self._manager.restore(
          step, args=ocp.args.StandardRestore(_as_dict(abstract))
        )
        return state_lib.TrainState(**values)
      except Exception as error:  # orbax and tensorstore raise many kinds
        first = str(error).strip().splitlines()[0][:200] if str(error) else ""
        logging.warning(
          "checkpoint %s is damaged and set aside (%s: %s)",
          self._directory / str(step),
          type(error).__name__,
          first,
        )
        self._set_aside(step)
    return None

  def _check_shapes(self, step: int, abstract: state_lib.TrainState) -> None:
    try:
      found = _shapes(self._manager.item_metadata(step))
    except Exception:  # unreadable; restoring will say so
      return
    expected = _shapes(_as_dict(abstract))
    if not found:
      return
    for name in sorted(set(found) | set(expected)):
      if found.get(name) != expected.get(name):
        raise errors.UserError(
          f"checkpoint {self._directory / str(step)} has {name} of shape "
          f"{found.get(name)}, this experiment {expected.get(name)}: use "
          "another model_dir, or the settings the run was started with"
        )

  def _set_aside(self, step: int) -> None:
    self._manager.close()
    target = self._directory.parent / f"{_ASIDE}_checkpoint_{step}"
    if jax.process_index() == 0:
      suffix = 0
      while target.exists():
        suffix += 1
        target = target.with_name(f"{_ASIDE}_checkpoint_{step}_{suffix}")
      (self._directory / str(step)).rename(target)
    self._manager = self._open()

  def close(self) -> None:
    """Waits for pending writes."""
    self._manager.wait_until_finished()
    self._manager.close()


def latest_step(model_dir: str | os.PathLike) -> int | None:
  """Step of the newest checkpoint of a run, or None; opens no device."""
  directory = pathlib.Path(model_dir) / "checkpoints"
  if not directory.is_dir():
    return None
  steps = [int(p.name) for p in directory.iterdir() if p.name.isdigit()]
  return max(steps, default=None)


def _as_dict(state: state_lib.TrainState) -> dict[str, Any]:
  return {
    field.name: getattr(state, field.name)
    for field in dataclasses.fields(state)
  }


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """Shapes of a tree's arrays by their path."""
  return {
    "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path): (
      tuple(leaf.shape)
    )
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    if hasattr(leaf, "shape")
  }
