# SPDX-License-Identifier: Apache-2.0
"""The few words that processes say to each other outside of collectives.

They go through the key-value store of JAX's coordination service, so they
need no device and wait for nobody who is not asked. All processes must ask the
same questions in the same order. A job of one process answers itself.
"""

import contextlib
import json
import os
import pathlib
import socket
import uuid
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from musiclm_jax.core import errors
from musiclm_jax.training import distributed

# Longer than anything a healthy host keeps another waiting for; a host that
# dies meanwhile is noticed by its heartbeats.
_WAIT_SECS = 4 * 3600
# Old answers of process 0 are deleted this many questions later.
_KEPT_ANSWERS = 64


_asked: dict[str, int] = {}


def _key(name: str) -> str:
  return f"{distributed.PREFIX}/{name}"


def _number(name: str) -> int:
  """How often `name` was asked; all processes ask in the same order."""
  _asked[name] = _asked.get(name, 0) + 1
  return _asked[name]


def _wait_for(key: str, what: str) -> str:
  try:
    return distributed.client().blocking_key_value_get(key, _WAIT_SECS * 1000)
  except jax.errors.JaxRuntimeError as error:
    raise errors.RetryError(f"{what}: {str(error).splitlines()[0]}") from error


def gather_text(name: str, text: str) -> list[str]:
  """What every process says about `name`, in their order."""
  if not distributed.is_multi_process():
    return [text]
  number = _number(name)
  distributed.client().key_value_set(
    _key(f"{name}/{number}/{jax.process_index()}"), text
  )
  return [
    _wait_for(
      _key(f"{name}/{number}/{index}"),
      f"process {index}, {name}",
    )
    for index in range(jax.process_count())
  ]


def from_main(name: str, text: str) -> str:
  """What process 0 says about `name`."""
  if not distributed.is_multi_process():
    return text
  number = _number(name)
  key = _key(f"{name}/{number}")
  if distributed.is_main():
    distributed.client().key_value_set(key, text)
    if number > _KEPT_ANSWERS:
      distributed.client().key_value_delete(
        _key(f"{name}/{number - _KEPT_ANSWERS}")
      )
    return text
  return _wait_for(key, f"process 0, {name}")


def all_agree(name: str, value: bool) -> bool:
  """Whether `value` is true on every process."""
  if not distributed.is_multi_process():
    return value
  key = f"{name}/{_number(name)}"
  distributed.client().key_value_set(
    _key(f"{key}/{jax.process_index()}"), str(int(value))
  )
  answer = ""
  if distributed.is_main():
    votes = [
      _wait_for(_key(f"{key}/{index}"), f"process {index}, {name}")
      for index in range(jax.process_count())
    ]
    answer = "1" if all(vote == "1" for vote in votes) else "0"
  return from_main(f"{name}/answer", answer) == "1"


def barrier(name: str) -> None:
  """Waits for all processes."""
  if distributed.is_multi_process():
    distributed.client().wait_at_barrier(
      _key(f"{name}/{_number(name)}"), _WAIT_SECS * 1000
    )


def compile_together(function: Any, *args: Any) -> None:
  """Compiles a jitted function for `args`; returns when all processes have.

  A process that compiles longer than the others would keep them waiting in
  their first collective, which has a time limit (30 s on CPU).
  """
  function.lower(*args).compile()
  barrier("compiled")


def to_hosts(tree: Any) -> Any:
  """`tree` with every array whole on every process; a collective."""
  if not distributed.is_multi_process():
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
  if not distributed.is_multi_process():
    return [socket.gethostname()]
  key = f"facts/{_number('facts')}"
  distributed.client().key_value_set(_key(f"{key}/{jax.process_index()}"), mine)
  verdict = ""
  if distributed.is_main():
    said = [
      json.loads(_wait_for(_key(f"{key}/{index}"), f"process {index}"))
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
  if not distributed.is_multi_process():
    return
  name = from_main("shared", f"shared_{uuid.uuid4().hex}")
  path = pathlib.Path(directory) / name
  if distributed.is_main():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  barrier("shared")
  seen = gather_text("shared_seen", str(int(path.exists())))
  if distributed.is_main():
    path.unlink(missing_ok=True)
  blind = [str(index) for index, one in enumerate(seen) if one == "0"]
  if blind:
    distributed.refuse_together()
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


def say(name: str, text: str) -> None:
  """Leaves a word for others to read, without waiting for them."""
  if distributed.client() is not None:
    with contextlib.suppress(Exception):
      distributed.client().key_value_set(
        _key(f"said/{name}/{jax.process_index()}"),
        text,
        allow_overwrite=True,
      )


def said_by_all(name: str) -> dict[int, str]:
  """The words left under `name`, by process."""
  if distributed.client() is None:
    return {}
  try:
    found = distributed.client().key_value_dir_get(_key(f"said/{name}"))
  except jax.errors.JaxRuntimeError:
    return {}
  return {int(key.rsplit("/", 1)[1]): text for key, text in found}
