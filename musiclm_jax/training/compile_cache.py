# SPDX-License-Identifier: Apache-2.0
"""The persistent cache of compiled programs, and a log line on hit or miss."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator

import jax
from absl import logging

_HIT = "/jax/compilation_cache/cache_hits"
_MISS = "/jax/compilation_cache/cache_misses"
_counts = {_HIT: 0, _MISS: 0}
_listening = False


def _count(event: str, **unused) -> None:
  if event in _counts:
    _counts[event] += 1


def enable(directory: str | os.PathLike) -> None:
  """Keeps compiled programs in `directory` and takes them from there."""
  global _listening
  path = pathlib.Path(directory).absolute()
  path.mkdir(parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(path))
  if not _listening:
    _listening = True
    jax.monitoring.register_event_listener(_count)


@contextlib.contextmanager
def logged(what: str) -> Iterator[None]:
  """Logs how long compiling `what` took, and whether the cache had it."""
  before, began = dict(_counts), time.monotonic()
  yield
  secs = time.monotonic() - began
  if _counts[_HIT] > before[_HIT]:
    outcome = "compile cache hit"
  elif _counts[_MISS] > before[_MISS]:
    outcome = "compile cache miss, compiled and kept"
  else:
    outcome = "compiled"
  logging.info("%s: %s, %.1f s", what, outcome, secs)
