# SPDX-License-Identifier: Apache-2.0
"""What all benches share: how long to run, medians, and the machine."""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from musiclm_jax.core import errors

TOKENS = "decoder_target_tokens"


@dataclasses.dataclass(frozen=True)
class Timing:
  """How a bench runs.

  Attributes:
    num_runs: medians are taken over so many runs.
    run_secs: a run goes on until so many seconds have passed.
    host_index: whose rows of the global batch are read.
    num_hosts: hosts that share a global batch.
  """

  num_runs: int = 5
  run_secs: float = 2.0
  host_index: int = 0
  num_hosts: int = 1

  def __post_init__(self):
    if self.num_runs < 1:
      raise errors.UserError(f"--num_runs={self.num_runs}: expected >= 1")
    if not self.run_secs > 0:
      raise errors.UserError(f"--run_secs={self.run_secs}: expected > 0")
    if not 0 <= self.host_index < self.num_hosts:
      raise errors.UserError(
        f"--host_index={self.host_index}: expected in [0, --num_hosts="
        f"{self.num_hosts})"
      )


def rates(work: Callable[[], Any], timing: Timing) -> dict[str, Any]:
  """Calls of `work` per second of wall and of processor time.

  Args:
    work: one piece; it must not return before the piece is done.
    timing: number and length of runs.

  Returns:
    `calls_per_second` (median), `calls_per_second_runs`,
    `calls_per_cpu_second` (median; the processor time of all threads of this
    process) and `num_calls`.
  """
  wall, cpu, total = [], [], 0
  for _ in range(timing.num_runs):
    started, used, count = time.perf_counter(), time.process_time(), 0
    while True:
      work()
      count += 1
      elapsed = time.perf_counter() - started
      if elapsed >= timing.run_secs:
        break
    wall.append(count / elapsed)
    cpu.append(count / max(time.process_time() - used, 1e-9))
    total += count
  return {
    "calls_per_second": statistics.median(wall),
    "calls_per_second_runs": wall,
    "calls_per_cpu_second": statistics.median(cpu),
    "num_calls": total,
  }


def per_batch(
  found: Mapping[str, Any], batch: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Rates of calls that take one batch each, as rates of what is in it."""
  num_rows = len(next(iter(batch.values())))
  contents = {
    "examples": num_rows,
    "bytes": sum(array.nbytes for array in batch.values()),
  }
  if TOKENS in batch:
    contents["tokens"] = batch[TOKENS].size
  if "waveform" in batch:
    contents["samples"] = batch["waveform"].size
  out = {"batch_shape": {k: list(v.shape) for k, v in sorted(batch.items())}}
  for name, count in contents.items():
    out[f"{name}_per_second"] = found["calls_per_second"] * count
    out[f"{name}_per_cpu_second"] = found["calls_per_cpu_second"] * count
  return {**out, **found}


def machine() -> dict[str, Any]:
  """Where it ran: cores this process may use, devices, versions."""
  return {
    "num_cores": len(os.sched_getaffinity(0)),
    "load_average": os.getloadavg()[0],
    "platform": jax.default_backend(),
    "device_kind": jax.devices()[0].device_kind,
    "num_devices": jax.device_count(),
    "jax_version": jax.__version__,
    "python_version": platform.python_version(),
  }
