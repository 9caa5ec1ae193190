# SPDX-License-Identifier: Apache-2.0
"""Several processes as one job: who is there, and do they agree.

Built on JAX's own runtime: `jax.distributed` starts the coordination service
in process 0. JAX ends a process by SIGABRT when a peer is lost;
`supervisor.py` turns that into a sentence and an exit code. What processes
tell each other is in `agreement.py`.
"""

import contextlib
import dataclasses
import functools
import os
import re
import time
from typing import Any

import jax
from absl import logging

from musiclm_jax.core import errors

PREFIX = "musiclm"
_FAILED = f"{PREFIX}/failed"


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
  """Where a process stands in its job.

  Attributes:
    coordinator_address: host:port of process 0; None asks the environment.
    num_processes: processes in all; None asks the environment.
    process_id: of this one, from 0; None asks the environment.
    start_timeout_secs: how long all processes may take to come together.
    peer_timeout_secs: silence after which a peer counts as lost.
  """

  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  start_timeout_secs: int = 300
  peer_timeout_secs: int = 100

  def __post_init__(self):
    for name in ("start_timeout_secs", "peer_timeout_secs"):
      if getattr(self, name) < 1:
        raise errors.UserError(f"{name}={getattr(self, name)}: expected >= 1")


def _from_environment(name: str) -> int | None:
  text = os.environ.get(name)
  if text is None:
    return None
  if not text.isdigit():
    raise errors.UserError(f"{name}={text!r}: expected a whole number")
  return int(text)


def _detected() -> tuple[str, int, int] | None:
  """Coordinator, processes and own number, if JAX knows this cluster."""
  from jax._src import clusters

  for kind in clusters.ClusterEnv._cluster_types:
    if kind.opt_in_only_method or not kind.is_env_present():
      continue
    count = kind.get_process_count()
    if count is None or count < 2:
      return None
    return kind.get_coordinator_address(60), count, kind.get_process_id()
  return None


def find_cluster(config: ClusterConfig) -> ClusterConfig | None:
  """Completes `config` from JAX_* variables and the cluster JAX detects.

  Returns:
    The complete configuration, or None for a job of one process.

  Raises:
    UserError: if only part of it is known, or the numbers do not fit.
  """
  address = config.coordinator_address or os.environ.get(
    "JAX_COORDINATOR_ADDRESS"
  )
  count, index = config.num_processes, config.process_id
  if count is None:
    count = _from_environment("JAX_NUM_PROCESSES")
  if index is None:
    index = _from_environment("JAX_PROCESS_ID")
  if count == 1:
    return None
  if None in (address, count, index):
    found = _detected()
    if found is None:
      if address is None and count is None and index is None:
        return None
      raise errors.UserError(
        f"coordinator_address={address}, num_processes={count}, process_id="
        f"{index}: expected all three, as no cluster was detected"
      )
    address = found[0] if address is None else address
    count = found[1] if count is None else count
    index = found[2] if index is None else index
  if ":" not in address or not address.rsplit(":", 1)[1].isdigit():
    raise errors.UserError(
      f"coordinator_address={address!r}: expected host:port"
    )
  if count < 1 or not 0 <= index < count:
    raise errors.UserError(
      f"process_id={index}, num_processes={count}: expected a process_id in "
      f"[0, {count})"
    )
  return dataclasses.replace(
    config, coordinator_address=address, num_processes=count, process_id=index
  )


def initialize(config: ClusterConfig) -> None:
  """Brings all processes together; before anything else touches JAX.

  A process that does not come in time is named by `supervisor.explain`.
  """
  from jax._src.lib import _jax

  # JAX leaves the service's own limit at an hour, and a host that gives up
  # first is not told who is missing.
  make_service = getattr(_jax, "get_distributed_runtime_service", None)
  if make_service is not None:
    _jax.get_distributed_runtime_service = functools.partial(
      make_service, cluster_register_timeout=config.start_timeout_secs
    )
  try:
    jax.distributed.initialize(
      config.coordinator_address,
      config.num_processes,
      config.process_id,
      initialization_timeout=config.start_timeout_secs + 15,
      heartbeat_timeout_seconds=config.peer_timeout_secs,
      shutdown_timeout_seconds=config.peer_timeout_secs,
    )
  finally:
    if make_service is not None:
      _jax.get_distributed_runtime_service = make_service


def client() -> Any:
  """JAX's client of the coordination service; None without several."""
  from jax._src import distributed

  return distributed.global_state.client


def is_multi_process() -> bool:
  """Whether this job has more than one process."""
  return client() is not None and jax.process_count() > 1


def is_main() -> bool:
  """Whether this is the process that writes metrics, config and exports."""
  return jax.process_index() == 0


def report_failure(message: str) -> None:
  """Tells the other processes why this one leaves; the first word stands."""
  if client() is None:
    return
  text = f"process {jax.process_index()} failed: {message}"
  with contextlib.suppress(Exception):
    client().key_value_set(_FAILED, text)


def reported_failure() -> str:
  """What a process said before it left, or ''."""
  if client() is None:
    return ""
  try:
    return client().key_value_try_get(_FAILED)
  except jax.errors.JaxRuntimeError:
    return ""


def poll_secs() -> float:
  """How often a process looks for `reported_failure`."""
  return max(1.0, jax.process_count() / 200)


def leave(code: int, message: str, peer_timeout_secs: int) -> None:
  """Takes leave of the other processes; the caller exits right after.

  A process that is done waits for the others. One that failed tells why, and
  process 0, whose end takes the coordination service along, gives the others
  time to read it.
  """
  if client() is None:
    return
  if code in (0, errors.Preempted.exit_code) or _agreed.get("refused"):
    with contextlib.suppress(Exception):
      jax.distributed.shutdown()
    return
  report_failure(message)
  if is_main():
    time.sleep(min(3 * poll_secs(), peer_timeout_secs))


# Whether all processes leave for the same reason.
_agreed: dict[str, bool] = {}


def refuse_together() -> None:
  """Notes that every process ends with the error that comes now."""
  _agreed["refused"] = True


# Status codes of the runtime that say "not your fault"; XLA raises them as
# more than one Python type.
_INFRASTRUCTURE = re.compile(
  r"^(UNAVAILABLE|ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED)\b"
  r"|Gloo|halted|[Hh]eartbeat|coordination service|Barrier"
)


def is_infrastructure(error: BaseException) -> bool:
  """Whether the runtime lost a peer, the network or a device."""
  if not isinstance(error, (RuntimeError, ValueError)):
    return False
  return not hasattr(error, "exit_code") and bool(
    _INFRASTRUCTURE.search(str(error))
  )


def explain_collective_error(
  error: Exception, peer_timeout_secs: int
) -> errors.RetryError:
  """The error to raise for a failed collective: it names the lost peer.

  Waits for the word of a peer that failed. One that died says nothing: then
  JAX's health check ends this process and the supervisor names the peer.
  """
  first = str(error).strip().splitlines()[0] if str(error) else repr(error)
  logging.warning(
    "process %d: %s; waiting to hear which peer is lost",
    jax.process_index(),
    first[:300],
  )
  deadline = time.monotonic() + 2 * peer_timeout_secs
  while time.monotonic() < deadline:
    said = reported_failure()
    if said:
      return errors.RetryError(said)
    time.sleep(0.5)
  return errors.RetryError(f"a collective failed: {first[:300]}")
