# SPDX-License-Identifier: Apache-2.0
"""Several processes as one job: who is there, and do they agree.

Built on JAX's own runtime: `jax.distributed` starts the coordination service
in process 0, and its key-value store carries the few words that hosts say to
each other outside of collectives. JAX ends a process by SIGABRT when a peer
is lost; `supervisor.py` turns that into a sentence and an exit code.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils

from musiclm_jax.core import errors

_PREFIX = "musiclm"
_FAILED = f"{_PREFIX}/failed"
# Longer than anything a healthy host keeps another waiting for; a host that
# dies meanwhile is noticed by its heartbeats.
_WAIT_SECS = 4 * 3600
# Old answers of process 0 are deleted this many questions later.
_KEPT_ANSWERS = 64


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


def _client():
  from jax._src import distributed

  return distributed.global_state.client


def is_multi_process() -> bool:
  """Whether this job has more than one process."""
  return _client() is not None and jax.process_count() > 1


def is_main() -> bool:
  """Whether this is the process that writes metrics, config and exports."""
  return jax.process_index() == 0


_asked: dict[str, int] = {}


def _number(name: str) -> int:
  """How often `name` was asked; all processes ask in the same order."""
  _asked[name] = _asked.get(name, 0) + 1
  return _asked[name]


def _wait_for(key: str, what: str) -> str:
  try:
    return _client().blocking_key_value_get(key, _WAIT_SECS * 1000)
  except jax.errors.JaxRuntimeError as error:
    raise errors.RetryError(f"{what}: {str(error).splitlines()[0]}") from error


def gather_text(name: str, text: str) -> list[str]:
  """What every process says about `name`, in their order."""
  if not is_multi_process():
    return [text]
  number = _number(name)
  _client().key_value_set(
    f"{_PREFIX}/{name}/{number}/{jax.process_index()}", text
  )
  return [
    _wait_for(f"{_PREFIX}/{name}/{number}/{index}", f"process {index}, {name}")
    for index in range(jax.process_count())
  ]


def from_main(name: str, text: str) -> str:
  """What process 0 says about `name`."""
  if not is_multi_process():
    return text
  number = _number(name)
  key = f"{_PREFIX}/{name}/{number}"
  if is_main():
    _client().key_value_set(key, text)
    if number > _KEPT_ANSWERS:
      _client().key_value_delete(f"{_PREFIX}/{name}/{number - _KEPT_ANSWERS}")
    return text
  return _wait_for(key, f"process 0, {name}")


def all_agree(name: str, value: bool) -> bool:
  """Whether `value` is true on every process."""
  if not is_multi_process():
    return value
  key = f"{name}/{_number(name)}"
  _client().key_value_set(
    f"{_PREFIX}/{key}/{jax.process_index()}", str(int(value))
  )
  answer = ""
  if is_main():
    votes = [
      _wait_for(f"{_PREFIX}/{key}/{index}", f"process {index}, {name}")
      for index in range(jax.process_count())
    ]
    answer = "1" if all(vote == "1" for vote in votes) else "0"
  return from_main(f"{name}/answer", answer) == "1"


def barrier(name: str) -> None:
  """Waits for all processes."""
  if is_multi_process():
    _client().wait_at_barrier(
      f"{_PREFIX}/{name}/{_number(name)}", _WAIT_SECS * 1000
    )


def to_hosts(tree: Any) -> Any:
  """`tree` with every array whole on every process; a collective."""
  if not is_multi_process():
    return tree
  return multihost_utils.process_allgather(tree, tiled=True)


def check_agreement(facts: Mapping[str, str]) -> list[str]:
  """Makes sure that all processes do the same work with the same code.

  Args:
    facts: by name, what must be equal: versions, fingerprints.

  Returns:
    Host names, in process order.

  Raises:
    UserError: on every process, naming those that differ from process 0,
      with both values.
  """
  mine = json.dumps({"host": socket.gethostname(), **facts})
  if not is_multi_process():
    return [socket.gethostname()]
  key = f"facts/{_number('facts')}"
  _client().key_value_set(f"{_PREFIX}/{key}/{jax.process_index()}", mine)
  verdict = ""
  if is_main():
    said = [
      json.loads(_wait_for(f"{_PREFIX}/{key}/{index}", f"process {index}"))
      for index in range(jax.process_count())
    ]
    verdict = json.dumps(
      {"hosts": [one["host"] for one in said], "error": _difference(said)}
    )
  verdict = json.loads(from_main("facts/verdict", verdict))
  if verdict["error"]:
    raise errors.UserError(verdict["error"])
  return verdict["hosts"]


def check_shared(directory: str | os.PathLike) -> None:
  """Makes sure that all processes see the same folder.

  Raises:
    UserError: on every process, naming those that do not.
  """
  if not is_multi_process():
    return
  name = from_main("shared", f"shared_{uuid.uuid4().hex}")
  path = pathlib.Path(directory) / name
  if is_main():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  barrier("shared")
  seen = gather_text("shared_seen", str(int(path.exists())))
  if is_main():
    path.unlink(missing_ok=True)
  blind = [str(index) for index, one in enumerate(seen) if one == "0"]
  if blind:
    refuse_together()
    raise errors.UserError(
      f"model_dir={directory}: process {', '.join(blind)} does not see what "
      "process 0 writes there: use a folder that all hosts share"
    )


def _difference(said: list[Mapping[str, str]]) -> str:
  """Names the processes whose facts differ from those of process 0."""
  found = []
  for index, one in enumerate(said):
    for name in said[0]:
      if name != "host" and one.get(name) != said[0][name]:
        found.append(
          f"process {index} on {one['host']} has {name} {one.get(name)}, "
          f"process 0 on {said[0]['host']} has {said[0][name]}"
        )
  return (
    f"{'; '.join(found[:4])}: start all processes with the same code, "
    "configuration and artefacts"
    if found
    else ""
  )


def report_failure(message: str) -> None:
  """Tells the other processes why this one leaves; the first word stands."""
  if _client() is None:
    return
  text = f"process {jax.process_index()} failed: {message}"
  with contextlib.suppress(Exception):
    _client().key_value_set(_FAILED, text)


def reported_failure() -> str:
  """What a process said before it left, or ''."""
  if _client() is None:
    return ""
  try:
    return _client().key_value_try_get(_FAILED)
  except jax.errors.JaxRuntimeError:
    return ""


def say(name: str, text: str) -> None:
  """Leaves a word for others to read, without waiting for them."""
  if _client() is not None:
    with contextlib.suppress(Exception):
      _client().key_value_set(
        f"{_PREFIX}/said/{name}/{jax.process_index()}",
        text,
        allow_overwrite=True,
      )


def said_by_all(name: str) -> dict[int, str]:
  """The words left under `name`, by process."""
  if _client() is None:
    return {}
  try:
    found = _client().key_value_dir_get(f"{_PREFIX}/said/{name}")
  except jax.errors.JaxRuntimeError:
    return {}
  return {int(key.rsplit("/", 1)[1]): text for key, text in found}


def poll_secs() -> float:
  """How often a process looks for `reported_failure`."""
  return max(1.0, jax.process_count() / 200)


def leave(code: int, message: str, peer_timeout_secs: int) -> None:
  """Takes leave of the other processes; the caller exits right after.

  A process that is done waits for the others. One that failed tells why, and
  process 0, whose end takes the coordination service along, gives the others
  time to read it.
  """
  if _client() is None:
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


def explain_collective_error(error: Exception, peer_timeout_secs: int):
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
