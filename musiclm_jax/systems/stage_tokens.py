# SPDX-License-Identifier: Apache-2.0
"""What a stage is told of windows, as the arrays that its program takes.

Codes by stream flow in, tokens flow out. Knows no network: exported stages,
which run without one, use it too.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from musiclm_jax.core import stages as stages_lib
from musiclm_jax.decoding import sampling as sampling_lib


class Rows(NamedTuple):
  """Arrays of one call, int32.

  Attributes:
    tokens: `[batch, prefix]`; with guidance twice the rows, told ones first.
    first_positions: `[batch]`, see `autoregressive.decode`.
    forced: `[batch, frames, levels]`.
    num_forced: `[batch]`.
  """

  tokens: np.ndarray
  first_positions: np.ndarray
  forced: np.ndarray
  num_forced: np.ndarray


def rows(
  layout: stages_lib.StageLayout,
  conditioning: Mapping[str, np.ndarray],
  prefix: np.ndarray | None,
  num_frames: int,
  sampling: sampling_lib.SamplingConfig,
  batch: int,
  first_frames: np.ndarray | int = 0,
  forced: np.ndarray | None = None,
  negative: Mapping[str, np.ndarray] | None = None,
  num_forced: np.ndarray | int | None = None,
) -> Rows:
  """Arguments are those of `StageLM.generate`.

  Raises:
    ValueError: if frames do not fit, or guidance is asked of a stage without
      dropped streams.
  """
  spec, levels = layout.spec, layout.num_target_levels
  known = 0 if prefix is None else prefix.shape[1]
  if known and layout.end_code is not None:
    raise ValueError(
      f"prefix of {known} frames for stage {spec.name!r}: expected none, known "
      "codes without repeats are given as forced ones"
    )
  tokens = _prefix_tokens(layout, conditioning, prefix, batch)
  if sampling.guidance != 1:
    if set(negative or ()) & set(spec.conditioning_streams):
      told = {**conditioning, **negative}
      other = _prefix_tokens(layout, told, prefix, batch)
    else:
      other = layout.drop(tokens)
    tokens = np.concatenate([tokens, other])
  first = (np.asarray(first_frames) + known) * levels
  return Rows(
    tokens,
    np.broadcast_to(first, (batch,)).astype(np.int32),
    *forced_codes(batch, num_frames, levels, forced, num_forced),
  )


def forced_codes(
  batch: int,
  num_frames: int,
  num_levels: int,
  forced: np.ndarray | None,
  num_forced: np.ndarray | int | None,
) -> tuple[np.ndarray, np.ndarray]:
  """`forced` and `num_forced` of `generate`, in shapes that do not vary.

  Returns:
    int32 `[batch, num_frames, num_levels]` and `[batch]`.
  """
  given = np.zeros((batch, num_frames, num_levels), np.int32)
  if forced is None:
    num_forced = 0
  else:
    given[:, : forced.shape[1]] = forced
    num_forced = forced.shape[1] if num_forced is None else num_forced
  return given, np.broadcast_to(num_forced, (batch,)).astype(np.int32)


def told_tokens(
  layout: stages_lib.StageLayout, conditioning: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
  """Tokens of the conditioning of a window, `[batch, length]` by segment.

  Raises:
    ValueError: if the frames of a stream do not fit the window.
  """
  parts = []
  for index, segment in enumerate(layout.spec.segments[:-1]):
    codes = np.asarray(conditioning[segment.stream])
    if codes.shape[1] != layout.segment_frames(index):
      raise ValueError(
        f"{segment.stream!r} codes have shape {codes.shape}: expected "
        f"{layout.segment_frames(index)} frames for stage {layout.spec.name!r}"
      )
    parts.append(layout.encode_segment(index, codes))
  return parts


def _prefix_tokens(
  layout: stages_lib.StageLayout,
  conditioning: Mapping[str, np.ndarray],
  prefix: np.ndarray | None,
  batch: int,
) -> np.ndarray:
  """BOS, conditioning and known target, int32 `[batch, length]`."""
  parts = [np.full((batch, 1), stages_lib.BOS_ID, np.int32)]
  parts += told_tokens(layout, conditioning)
  if prefix is not None and prefix.shape[1]:
    tokens = np.asarray(prefix) + layout.target_offsets
    parts.append(tokens.reshape(batch, -1))
  return np.concatenate(parts, axis=1).astype(np.int32)
