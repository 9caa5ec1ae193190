# SPDX-License-Identifier: Apache-2.0
"""The back ends by name: what a bundle may hold beside coarse and fine stage.

A new back end is a module like `depthwise.py` and a line here.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.core import errors
from musiclm_jax.systems import acoustic_stage, depthwise, soundstorm

# By the value of `musiclm generate --acoustic`; 'stages' is the paper's way.
BACKENDS: dict[str, type[acoustic_stage.AcousticStage]] = {
  "depthwise": depthwise.DepthwiseStage,
  "soundstorm": soundstorm.SoundStormStage,
}
BY_KIND = {backend.KIND: backend for backend in BACKENDS.values()}
STAGES = "stages"
CHOICES = (STAGES, *BACKENDS)


def kind_of(network: Any) -> str:
  """Kind of artefact that a network's configuration belongs to.

  Raises:
    ValueError: if it is no back end's.
  """
  for backend in BACKENDS.values():
    if isinstance(network, backend.NETWORK):
      return backend.KIND
  raise ValueError(
    f"network={type(network).__name__}: expected one of "
    f"{[backend.NETWORK.__name__ for backend in BACKENDS.values()]}"
  )


def load_all(
  paths: Mapping[str, str | os.PathLike],
) -> dict[str, acoustic_stage.AcousticStage]:
  """The back ends among the parts of a bundle, by name."""
  return {
    name: backend.load(paths[backend.KIND])
    for name, backend in BACKENDS.items()
    if backend.KIND in paths
  }


def choose(
  choice: str,
  stages: Mapping[str, Any],
  found: Mapping[str, acoustic_stage.AcousticStage],
) -> dict[str, Any]:
  """What a system runs, in order.

  Args:
    choice: of `CHOICES`.
    stages: of the system, by name: 'semantic', and perhaps 'coarse', 'fine'.
    found: its back ends, by name.

  Returns:
    The stages; a back end takes the place of coarse and fine stage.

  Raises:
    UserError: if the choice is unknown, or the system lacks what it needs.
  """
  check(choice, stages, found)
  if choice == STAGES:
    return dict(stages)
  return {
    "semantic": stages["semantic"],
    BACKENDS[choice].KIND: found[choice],
  }


def settings_of(
  stages: Mapping[str, Any], settings: Sequence[Any]
) -> tuple[Any, ...]:
  """Settings of the three stages as those of what a system runs.

  Args:
    stages: from `choose`, or some of them.
    settings: of the semantic, coarse and fine stage.

  Returns:
    One for each of `stages`; a back end has those of coarse and fine stage.
  """
  of_stages = dict(zip(("semantic", "coarse", "fine"), settings))
  of_backend = tuple(settings[1:])
  return tuple(of_stages.get(name, of_backend) for name in stages)


def check(
  choice: str, stages: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
  """Whether a system can make acoustic codes as asked.

  Args:
    choice: of `CHOICES`.
    stages: of the system, by name.
    found: its back ends, by name.

  Raises:
    UserError: if the choice is unknown, or the system lacks what it needs.
  """
  if choice not in CHOICES:
    raise errors.UserError(
      f"acoustic={choice!r}: expected one of {', '.join(CHOICES)}"
      f"{errors.nearest(choice, CHOICES)}"
    )
  there = list(found)
  if {"coarse", "fine"} <= set(stages):
    there.insert(0, STAGES)
  if choice in there:
    return
  lacking = "stage_coarse and stage_fine"
  if choice != STAGES:
    lacking = BACKENDS[choice].KIND
  raise errors.UserError(
    f"acoustic={choice!r}: this bundle has no {lacking}; it has what is needed "
    f"for {', '.join(there) or 'none'}"
  )
