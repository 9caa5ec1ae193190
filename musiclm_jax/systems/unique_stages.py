# SPDX-License-Identifier: Apache-2.0
"""Stages over codes without repeats: what a system must mind, and what it can.

Such codes have no time, so nobody can say which of them belong to a part of
an item: they are made for a whole crop, told as a whole, and an item is no
longer than a crop (`core.stages.Segment`).
"""

from collections.abc import Mapping

import numpy as np

from musiclm_jax.core import errors, unique_codes
from musiclm_jax.decoding import tracks
from musiclm_jax.systems import stage_windows

Stages = Mapping[str, stage_windows.StageWindows]


def check_stages(stages: Stages) -> None:
  """Whether stages are told codes without repeats where others make such.

  Raises:
    UserError: if not, or if their crops differ in length.
  """
  for maker, spec in ((name, one.spec) for name, one in stages.items()):
    is_unique = spec.target.unique_consecutive
    for name, stage in stages.items():
      told = [
        segment
        for segment in stage.spec.segments[:-1]
        if segment.stream == spec.target.stream
      ]
      if any(segment.unique_consecutive != is_unique for segment in told):
        raise errors.UserError(
          f"stage {name!r} was trained on {spec.target.stream} codes "
          f"{_kind(not is_unique)} repeats, stage {maker!r} makes them "
          f"{_kind(is_unique)}: expected the same of both"
        )
      if told and is_unique and spec.crop_secs != stage.spec.crop_secs:
        raise errors.UserError(
          f"stage {name!r} has crops of {stage.spec.crop_secs:g} s, stage "
          f"{maker!r} of {spec.crop_secs:g} s: expected the same of both, for "
          "codes without repeats cannot be cut"
        )


def _kind(is_unique: bool) -> str:
  return "without" if is_unique else "with"


def check_seconds(stages: Stages, seconds: float, quantum_secs: float) -> None:
  """Whether items can be so long.

  Args:
    stages: of the system.
    seconds: asked for.
    quantum_secs: multiples of which are made.

  Raises:
    UserError: if they are longer than a crop without time.
  """
  for name, stage in stages.items():
    most = stage.spec.crop_secs // quantum_secs * quantum_secs
    if not stage.spec.is_timed and seconds > most:
      raise errors.UserError(
        f"seconds={seconds:g}: expected at most {most:g}, a crop of stage "
        f"{name!r}, which works without repeated codes: there is no telling "
        "which of them belong to a later window"
      )


def check_scenes(
  stages: Stages, conditioning: Mapping[str, tracks.Conditioning]
) -> None:
  """Raises UserError if prompts change along codes that have no time."""
  if not any(isinstance(one, tracks.Scenes) for one in conditioning.values()):
    return
  for name, stage in stages.items():
    if not stage.spec.is_timed:
      raise errors.UserError(
        f"stage {name!r} works without repeated codes: expected one prompt, "
        "for they have no time at which another could set in"
      )


def given_codes(
  stage: stage_windows.StageWindows, codes: np.ndarray, needed_frames: int
) -> np.ndarray:
  """Given target codes as such a stage makes them.

  Args:
    stage: without repeats.
    codes: in time, or without repeats already, `[batch, frames, 1]`.
    needed_frames: in time, of the whole item.

  Returns:
    int32 `[batch, frames, 1]`: all that the stage would make, with -1 behind
    them, if the whole item is given; else its begin.
  """
  total = stage.window_frames
  is_all = codes.shape[1] >= needed_frames
  found = unique_codes.collapse(
    codes[:, :total], stage.target_stream.codebook_size
  )
  if not is_all:
    return found[:, : unique_codes.lengths(found).min()]
  spare = total - found.shape[1]
  return np.pad(found, ((0, 0), (0, spare), (0, 0)), constant_values=-1)
