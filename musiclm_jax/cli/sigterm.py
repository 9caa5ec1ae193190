# SPDX-License-Identifier: Apache-2.0
"""SIGTERM as an exception, so that what is held is given back."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from musiclm_jax.core import errors


@contextlib.contextmanager
def raises(message: str) -> Iterator[None]:
  """Within it SIGTERM raises `Preempted`; in the main thread only."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def stop(number, frame):
    del number, frame
    raise errors.Preempted(message)

  before = signal.signal(signal.SIGTERM, stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
