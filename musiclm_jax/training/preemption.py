# SPDX-License-Identifier: Apache-2.0
"""Stopping in time: SIGTERM and maintenance notices, agreed on by all.

A notice to any process reaches all of them, and they agree on the step after
which they save and stop. The agreement is JAX's; it needs no collective.
"""

import contextlib
import os
import pathlib
import signal
import threading
import urllib.error
import urllib.request

from absl import logging
from jax.experimental import multihost_utils

from musiclm_jax.training import distributed

# The metadata server's page, or a file, that says something else than NONE
# when this machine is about to go. Set by operators and tests.
NOTICE_VARIABLE = "MUSICLM_MAINTENANCE_NOTICE"
_METADATA_URL = (
  "http://metadata.google.internal/computeMetadata/v1/instance/"
  "maintenance-event"
)
_PRODUCT_NAME = pathlib.Path("/sys/class/dmi/id/product_name")
_POLL_SECS = 5.0


class Preemption:
  """Says after which step to stop; use as a context around the loop."""

  def __init__(self):
    self._raised = False
    self._previous = None
    self._multi = distributed.is_multi_process()
    self._stop = threading.Event()

  def __enter__(self) -> "Preemption":
    # JAX's own handler takes SIGTERM where there are several processes.
    if not self._multi:
      # Not in the main thread of a test: no handler.
      with contextlib.suppress(ValueError):
        self._previous = signal.signal(signal.SIGTERM, self._note)
    source = _notice_source()
    if source:
      threading.Thread(target=self._watch, args=(source,), daemon=True).start()
    return self

  def _note(self, *unused) -> None:
    self._raised = True

  def _watch(self, source: str) -> None:
    while not self._stop.wait(_POLL_SECS):
      text = _read_notice(source)
      if text and text != "NONE":
        logging.warning("maintenance notice %r: saving and stopping", text)
        os.kill(os.getpid(), signal.SIGTERM)
        return

  def reached(self, step: int) -> bool:
    """Whether all processes stop after `step`; each must ask at each step."""
    if self._multi:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._raised

  def __exit__(self, *unused) -> None:
    self._stop.set()
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)


def _notice_source() -> str:
  """Where maintenance is announced, or '' where nobody announces it."""
  given = os.environ.get(NOTICE_VARIABLE)
  if given is not None:
    return given
  with contextlib.suppress(OSError):
    if "Google Compute Engine" in _PRODUCT_NAME.read_text():
      return _METADATA_URL
  return ""


def _read_notice(source: str) -> str:
  """What `source` says; '' where it cannot be read."""
  if "://" not in source:
    with contextlib.suppress(OSError):
      return pathlib.Path(source).read_text().strip()
    return ""
  request = urllib.request.Request(
    source, headers={"Metadata-Flavor": "Google"}
  )
  try:
    with urllib.request.urlopen(request, timeout=5) as reply:
      return reply.read().decode(errors="replace").strip()
  except (OSError, urllib.error.URLError):
    return ""
