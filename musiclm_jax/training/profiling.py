# SPDX-License-Identifier: Apache-2.0
"""A profile of a window of steps, for TensorBoard's profile page."""

import os
import pathlib

import jax
from absl import logging

from musiclm_jax.core import errors
from musiclm_jax.training import distributed


def parse_window(text: str) -> tuple[int, int]:
  """'10:15' to (10, 15): the steps after 10, up to and including 15.

  Raises:
    UserError: if it is no such window.
  """
  first, _, last = text.partition(":")
  if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
    raise errors.UserError(
      f"--profile_steps={text}: expected FIRST:LAST with FIRST < LAST, such "
      "as 10:15"
    )
  return int(first), int(last)


class Profiler:
  """Traces the steps of a window, in process 0."""

  def __init__(
    self, model_dir: str | os.PathLike, window: tuple[int, int] | None
  ):
    self._directory = pathlib.Path(model_dir) / "tensorboard"
    self._window = window if distributed.is_main() else None
    self._running = False

  def before(self, step: int, state) -> None:
    """To be called with the steps done, before the next one starts."""
    if self._window is None:
      return
    first, last = self._window
    if first <= step < last and not self._running:
      jax.block_until_ready(state)
      jax.profiler.start_trace(str(self._directory))
      self._running = True
    elif step >= last:
      self.stop(state)

  def stop(self, state=None) -> None:
    """Ends the trace if one runs, once `state` is there."""
    if not self._running:
      return
    jax.block_until_ready(state)
    jax.profiler.stop_trace()
    self._running, self._window = False, None
    logging.info("profile written to %s/plugins/profile", self._directory)
