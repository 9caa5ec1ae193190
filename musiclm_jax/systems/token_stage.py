# SPDX-License-Identifier: Apache-2.0
"""A stage that is sampled token after token: one window of it.

What `StageLM` and `ExportedStage` share: codes of the conditioning of a window
flow in, tokens go to the program of either, target codes flow out.
"""

import abc
from collections.abc import Mapping

import jax
import numpy as np

from musiclm_jax.core import stages as stages_lib
from musiclm_jax.decoding import sampling as sampling_lib
from musiclm_jax.systems import stage_tokens, stage_windows


class TokenStage(stage_windows.StageWindows):
  """Windows of a stage whose program takes tokens."""

  def generate(
    self,
    conditioning: Mapping[str, np.ndarray],
    prefix: np.ndarray | None,
    num_frames: int,
    sampling: sampling_lib.SamplingConfig | float,
    keys: jax.Array,
    first_frames: np.ndarray | int = 0,
    forced: np.ndarray | None = None,
    negative: Mapping[str, np.ndarray] | None = None,
    num_forced: np.ndarray | int | None = None,
  ) -> np.ndarray:
    """Samples one window.

    Args:
      conditioning: codes by stream over the whole window (prefix included),
        int32 `[batch, frames, codebooks]`.
      prefix: known leading target codes `[batch, frames, levels]`, or None.
      num_frames: frames after the prefix.
      sampling: how codes are drawn; a number is the temperature.
      keys: typed keys `[batch]`.
      first_frames: frame of the item at which the window starts, one for all
        or `[batch]`; only randomness depends on it.
      forced: given codes of the first frames after the prefix, `[batch,
        frames, levels]`: part of the result, and not compiled in as the
        length of `prefix` is.
      negative: with guidance, codes that take the place of others in the rows
        it moves away from, of streams without frames; without any that the
        stage is told, those rows lack its dropped streams.
      num_forced: frames of `forced` that are taken, one number for all items
        or `[batch]`; all of them by default.

    Returns:
      int32 `[batch, num_frames, levels]`, without the prefix; of codes without
      repeats -1 behind their end.

    Raises:
      UserError: for a window that the stage was not exported for.
      ValueError: if frames do not fit, or guidance is asked of a stage without
        dropped streams.
    """
    sampling = sampling_lib.as_config(sampling)
    num_known = 0 if prefix is None else prefix.shape[1]
    self._check_window(num_known, num_frames)
    layout = self._layout(num_known + num_frames)
    rows = stage_tokens.rows(
      layout,
      conditioning,
      prefix,
      num_frames,
      sampling,
      keys.shape[0],
      first_frames,
      forced,
      negative,
      num_forced,
    )
    return np.asarray(
      self._sample(layout, rows, keys, num_known, num_frames, sampling)
    )

  def _check_window(self, num_known: int, num_frames: int) -> None:
    """Raises UserError unless there can be a program for such a window."""

  @abc.abstractmethod
  def _sample(
    self,
    layout: stages_lib.StageLayout,
    rows: stage_tokens.Rows,
    keys: jax.Array,
    num_known: int,
    num_frames: int,
    sampling: sampling_lib.SamplingConfig,
  ) -> jax.Array:
    """Runs the program of one window.

    Args:
      layout: of the window.
      rows: what it is told.
      keys: typed keys `[batch]`.
      num_known: frames of the prefix.
      num_frames: frames after it.
      sampling: how codes are drawn.

    Returns:
      int32 `[batch, num_frames, levels]`.
    """
