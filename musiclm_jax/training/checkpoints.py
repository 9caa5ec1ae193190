# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints through Orbax: async, sharded, atomic.

The only user of orbax. A damaged newest checkpoint is named, set aside and
skipped; the one before is used. Every process opens, saves and restores; all
of them agree on which checkpoint is taken.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from musiclm_jax.core import errors
from musiclm_jax.training import agreement, distributed
from musiclm_jax.training import state as state_lib

_ASIDE = "damaged"
_UNFINISHED = "*.orbax-checkpoint-tmp*"
# What file systems and tensorstore say when there is no room.
_NO_ROOM = (
  "No space left",
  "ENOSPC",
  "Disk quota",
  "EDQUOT",
  "File too large",
  "EFBIG",
  "Input/output error",
)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When checkpoints are written and how many are kept.

  Attributes:
    every_steps: a checkpoint every so many steps, and at the end.
    keep: newest checkpoints of that cadence kept.
    keep_every_steps: checkpoints at multiples of this are kept for good; 0
      keeps none.
    every_secs: a temporary checkpoint where so many seconds went by without
      one; it goes when the next one is written. 0 writes none.
  """

  every_steps: int = 1000
  keep: int = 2
  keep_every_steps: int = 0
  every_secs: float = 900.0

  def __post_init__(self):
    if self.every_steps < 1:
      raise ValueError(f"every_steps={self.every_steps}: expected >= 1")
    if self.keep < 1:
      raise ValueError(f"keep={self.keep}: expected >= 1")
    if self.every_secs < 0:
      raise ValueError(f"every_secs={self.every_secs}: expected >= 0")

  def kept(self, steps: Sequence[int], best: int | None = None) -> set[int]:
    """Which of the checkpoints at `steps` stay: a function of their numbers.

    The newest one, the newest `keep` at multiples of `every_steps`, those
    at multiples of `keep_every_steps`, and `best` if it is among them.
    """
    steps = sorted(steps)
    regular = [step for step in steps if step % self.every_steps == 0]
    stay = {*steps[-1:], *regular[-self.keep :], *({best} & {*steps})}
    if self.keep_every_steps:
      stay |= {step for step in steps if step % self.keep_every_steps == 0}
    return stay


@dataclasses.dataclass
class _Retention:
  """`CheckpointConfig.kept` as Orbax asks for it."""

  config: CheckpointConfig
  best: int | None = None

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    stay = self.config.kept([info.step for info in checkpoints], self.best)
    return [info.step in stay for info in checkpoints]


class _Manager(ocp.CheckpointManager):
  """Orbax' manager, without its own look at preemption.

  It asks JAX's preemption service about old steps, from another thread and in
  process 0 only, and so disturbs the step the processes agree on.
  """

  def reached_preemption(self, step: int) -> bool:
    return False


class Checkpointer:
  """Saves and restores `TrainState`s of one run."""

  def __init__(self, model_dir: str | os.PathLike, config: CheckpointConfig):
    """Opens `<model_dir>/checkpoints`, creating it.

    Args:
      model_dir: folder of the run.
      config: cadence and retention.
    """
    self._config = config
    self._retention = _Retention(config)
    self._directory = pathlib.Path(model_dir).absolute() / "checkpoints"
    self._directory.mkdir(parents=True, exist_ok=True)
    self._manager = self._open()
    self._last_save = time.monotonic()
    self._newest_begun = 0

  def _open(self) -> ocp.CheckpointManager:
    return _Manager(
      self._directory,
      # Named, so that shapes can be read before anything is restored.
      item_handlers=ocp.StandardCheckpointHandler(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._retention,
        enable_async_checkpointing=True,
      ),
    )

  def steps(self) -> list[int]:
    """Steps of the checkpoints, as process 0 sees them, in order."""
    found = json.dumps(sorted(self._manager.all_steps()))
    return json.loads(agreement.from_main("steps", found))

  def remove_unfinished(self) -> None:
    """Removes what killed writes left; only while nobody else writes."""
    if distributed.is_main():
      for path in self._directory.glob(_UNFINISHED):
        shutil.rmtree(path, ignore_errors=True)
    agreement.barrier("unfinished")

  def due(self, step: int) -> bool:
    """Whether the cadence asks for a checkpoint after `step` steps."""
    return step % self._config.every_steps == 0

  def overdue(self) -> bool:
    """Whether `every_secs` went by; every process must ask at once."""
    if not self._config.every_secs:
      return False
    waited = time.monotonic() - self._last_save
    mine = "1" if waited >= self._config.every_secs else "0"
    return agreement.from_main("overdue", mine) == "1"

  def keep_best(self, step: int | None) -> None:
    """From the next save on, the checkpoint of `step` stays too."""
    self._retention.best = step

  def save(self, state: state_lib.TrainState, wait: bool = False) -> None:
    """Starts writing `state`; with `wait`, returns when it is on disk.

    Raises:
      RetryError: if there is no room, or the file system failed; what an
        earlier save left behind on disk stays whole.
    """
    step = int(state.step)
    with self._writing():
      if step not in self._manager.all_steps():
        # Orbax waits too, but an error would then seem to be of this one.
        self._manager.wait_until_finished()
        self._newest_begun = step
        self._manager.save(step, args=ocp.args.StandardSave(_as_dict(state)))
      if wait:
        self._manager.wait_until_finished()
    self._last_save = time.monotonic()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns what goes wrong within into a sentence and exit code 42."""
    try:
      yield
    except Exception as error:  # orbax and tensorstore raise many kinds
      text = f"{error} {error.__cause__ or ''}"
      known = next((word for word in _NO_ROOM if word in text), "")
      if not known and not isinstance(error, OSError):
        raise
      if distributed.is_main():
        for path in self._directory.glob(_UNFINISHED):
          shutil.rmtree(path, ignore_errors=True)
      raise errors.RetryError(
        f"could not write checkpoint {self._newest_begun} in "
        f"{self._directory}: "
        f"{known or error} ({_free_mib(self._directory)} MiB free); the "
        f"newest whole one is {latest_step(self._directory.parent)}"
      ) from error

  def restore(
    self, abstract: state_lib.TrainState
  ) -> state_lib.TrainState | None:
    """The newest good state, placed by `abstract`'s shardings; or None.

    Raises:
      UserError: if a checkpoint is of a model of other sizes; it is no
        damage, and nothing is set aside.
    """
    for step in reversed(self.steps()):
      self._check_shapes(step, abstract)
      values = self.try_restore(step, abstract)
      if agreement.all_agree("restored", values is not None):
        return state_lib.TrainState(**values)
      self._set_aside(step)
    return None

  def restore_step(
    self, step: int, abstract: state_lib.TrainState
  ) -> state_lib.TrainState:
    """The state after `step` steps, placed by `abstract`'s shardings.

    Raises:
      UserError: if there is no such checkpoint, it is damaged, or of a model
        of other sizes.
    """
    steps = self.steps()
    if step not in steps:
      raise errors.UserError(
        f"no checkpoint of step {step} in {self._directory}: there are {steps}"
      )
    self._check_shapes(step, abstract)
    values = self.try_restore(step, abstract)
    if not agreement.all_agree("restored", values is not None):
      raise errors.UserError(
        f"checkpoint {self._directory / str(step)} cannot be read"
      )
    return state_lib.TrainState(**values)

  def try_restore(
    self, step: int, abstract: state_lib.TrainState
  ) -> dict[str, Any] | None:
    """The values of one checkpoint; None, and a warning, if it is damaged."""
    try:
      return self._manager.restore(
        step, args=ocp.args.StandardRestore(_as_dict(abstract))
      )
    except Exception as error:  # orbax and tensorstore raise many kinds
      first = str(error).strip().splitlines()[0][:200] if str(error) else ""
      logging.warning(
        "checkpoint %s is damaged (%s: %s)",
        self._directory / str(step),
        type(error).__name__,
        first,
      )
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
    if distributed.is_main():
      suffix = 0
      while target.exists():
        suffix += 1
        target = target.with_name(f"{_ASIDE}_checkpoint_{step}_{suffix}")
      (self._directory / str(step)).rename(target)
      logging.warning("checkpoint %d is set aside as %s", step, target)
    agreement.barrier("aside")
    self._manager = self._open()

  def delete_after(self, step: int) -> None:
    """Deletes checkpoints of more than `step` steps."""
    for later in self.steps():
      if later > step:
        self._manager.delete(later)

  def wait(self) -> None:
    """Waits for pending writes; raises what went wrong in them."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for pending writes."""
    try:
      self.wait()
    finally:
      self._manager.close()


def _free_mib(directory: pathlib.Path) -> int:
  return shutil.disk_usage(directory).free >> 20


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
