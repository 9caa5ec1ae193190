# SPDX-License-Identifier: Apache-2.0
"""A parent for each process of a multi-process job.

JAX's runtime ends a process by SIGABRT when a peer is lost or does not come,
wherever its Python code is. The parent outlives that: it reads what the
runtime said, names the peer in one line and gives the exit code that a
launcher understands. Imports no JAX.
"""

import collections
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from musiclm_jax.core import errors

SUPERVISED_VARIABLE = "MUSICLM_SUPERVISED"
_PR_SET_PDEATHSIG = 1
_KEPT_LINES = 400

# What the coordination service of jaxlib says (seen with 0.10.2).
_MISSING = re.compile(r"timed out task names:\s*\n((?:\S*\d+\s*\n)+)")
_SILENT = re.compile(r"stopped sending heartbeats\):\s*\n((?:\S*\d+\s*\n)+)")
_TASK_DIED = re.compile(r"Task (\S*\d+) heartbeat timeout")


def _numbers(text: str) -> list[int]:
  return sorted({int(re.search(r"(\d+)$", n)[1]) for n in text.split()})


def _named(numbers: Sequence[int]) -> str:
  """'process 1' or 'processes 1, 3', with host names where known."""
  hosts = [
    h for h in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if h
  ]
  names = [
    f"{number} ({hosts[number]})" if number < len(hosts) else str(number)
    for number in numbers
  ]
  return ("process " if len(names) == 1 else "processes ") + ", ".join(names)


def explain(text: str, index: int, address: str, signal_name: str) -> str:
  """One sentence on why the runtime ended a process.

  Args:
    text: the last lines of its standard error.
    index: its number.
    address: of the coordinator.
    signal_name: the signal that ended it.
  """
  missing, silent = _MISSING.search(text), _SILENT.search(text)
  died = _TASK_DIED.search(text)
  if missing:
    return f"{_named(_numbers(missing[1]))} did not come in time to start"
  if silent:
    return f"lost {_named(_numbers(silent[1]))}: no sign of life any more"
  if died:
    return f"lost {_named(_numbers(died[1]))}: no sign of life any more"
  if "RegisterTask" in text and index:
    return (
      f"{_named([0])}, the coordinator at {address}, did not answer in time "
      "to start"
    )
  if "Polled an error" in text and index:
    return f"lost {_named([0])}, the coordinator at {address}"
  return f"process {index} was ended by {signal_name}"


def _exit_code(returncode: int) -> int:
  """Our exit codes from a child's: what a signal ended may be tried again."""
  if returncode == -signal.SIGTERM:
    return errors.Preempted.exit_code
  if returncode < 0 or returncode == 128 + signal.SIGABRT:
    return errors.RetryError.exit_code
  return returncode


def _die_with_parent() -> None:
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run(command: Sequence[str], index: int, address: str) -> int:
  """Runs `command`, this program again, as a child and waits for it.

  SIGTERM is passed on. If this process is killed, so is the child (Linux).

  Args:
    command: program and arguments.
    index: number of this process in its job.
    address: of the coordinator.

  Returns:
    The exit code: the child's own, or 42 where a signal ended it.
  """
  child = subprocess.Popen(
    list(command),
    env={**os.environ, SUPERVISED_VARIABLE: "1"},
    stderr=subprocess.PIPE,
    preexec_fn=_die_with_parent,
  )
  lines: collections.deque[bytes] = collections.deque(maxlen=_KEPT_LINES)

  def forward():
    for line in child.stderr:
      lines.append(line)
      with contextlib.suppress(OSError):
        sys.stderr.buffer.write(line)
        sys.stderr.flush()

  reader = threading.Thread(target=forward, daemon=True)
  reader.start()
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: child.send_signal(number))
  returncode = child.wait()
  reader.join(timeout=5)
  code = _exit_code(returncode)
  if code == errors.RetryError.exit_code and code != returncode:
    text = b"".join(lines).decode(errors="replace")
    name = signal.Signals(-returncode).name if returncode < 0 else "SIGABRT"
    print(
      f"musiclm: {explain(text, index, address, name)}",
      file=sys.stderr,
      flush=True,
    )
  return code
