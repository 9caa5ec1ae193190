# SPDX-License-Identifier: Apache-2.0
"""Checks of a cluster before a job is put on it.

Each process looks at its own host; what they found flows to all, and a table
with one line per check (or per group of hosts that differ) flows out.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from musiclm_jax.core import errors
from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.training import agreement, distributed, startup

_GIB = 2**30
_NUM_NAMED_HOSTS = 4
# Schemes that checkpoints are written through with etils; others by fsspec.
_ETILS_SCHEMES = ("gs", "s3", "az")
_PROBE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Limits:
  """What counts as healthy.

  Attributes:
    min_free_gib: free disk space below which a path is a fault.
    max_skew_secs: largest difference of two hosts' clocks.
    num_devices: devices expected in all; 0 for any.
    num_processes: processes expected; 0 for any.
  """

  min_free_gib: float = 10.0
  max_skew_secs: float = 2.0
  num_devices: int = 0
  num_processes: int = 0

  def __post_init__(self):
    for name in dataclasses.asdict(self):
      if getattr(self, name) < 0:
        raise errors.UserError(f"--{name}={getattr(self, name)}: expected >= 0")


@dataclasses.dataclass(frozen=True)
class Finding:
  """What one check found on one host.

  Attributes:
    check: its name.
    text: what was found.
    is_ok: False for a fault.
    is_common: whether all hosts must have found the same text.
    secs: how long it took; hosts are not told apart by it.
  """

  check: str
  text: str
  is_ok: bool = True
  is_common: bool = False
  secs: float = 0.0


def _guarded(check: str, look: Callable[[], list[Finding]]) -> list[Finding]:
  """Findings of `look`; whatever it raises is a fault, and named."""
  try:
    return look()
  except Exception as error:  # the doctor reports, whatever the kind
    lines = str(error).strip().splitlines() or [repr(error)]
    return [Finding(check, f"{type(error).__name__}: {lines[0]}", False)]


def _versions() -> list[Finding]:
  found = [
    Finding(f"version of {name}", text, is_common=True)
    for name, text in startup.versions().items()
  ]
  code = Finding("code", startup.code_fingerprint(), is_common=True)
  return [*found, code]


def _devices() -> list[Finding]:
  """Local devices, each of which has to multiply two matrices."""
  devices = jax.local_devices()
  kinds = sorted({device.device_kind for device in devices})
  text = f"{len(devices)} x {', '.join(kinds)}"
  # A TPU host on which jax found none falls back to its CPU.
  wants_tpu = bool(os.environ.get("TPU_ACCELERATOR_TYPE")) and (
    os.environ.get("JAX_PLATFORMS", "") != "cpu"
  )
  is_ok = not (wants_tpu and devices[0].platform != "tpu")
  found = [Finding("devices of a host", text, is_ok, is_common=True)]
  started = time.monotonic()
  ones = np.ones((256, 256), np.float32)
  for device in devices:
    matrix = jax.device_put(ones, device)
    product = np.asarray(jnp.dot(matrix, matrix))
    if not (product == 256.0).all():
      found.append(Finding("arithmetic", f"{device} computes wrongly", False))
  secs = time.monotonic() - started
  found.append(Finding("arithmetic", "right on all devices", secs=secs))
  return found


def _memory() -> list[Finding]:
  memory = psutil.virtual_memory()
  text = (
    f"{os.cpu_count()} cores, {memory.available / _GIB:.0f} of "
    f"{memory.total / _GIB:.0f} GiB free"
  )
  return [Finding("host", text)]


def _disk(directory: str, limits: Limits) -> list[Finding]:
  path = pathlib.Path(directory).absolute()
  while not path.exists():
    path = path.parent
  free = shutil.disk_usage(path).free / _GIB
  return [
    Finding(
      f"disk under {directory}",
      f"{free:.1f} GiB free",
      free >= limits.min_free_gib,
    )
  ]


class _Storage:
  """Files in one folder of any kind: local, bucket, or other fsspec paths."""

  def __init__(self, folder: str):
    self.folder = folder.rstrip("/")
    scheme = folder.split("://", 1)[0] if "://" in folder else ""
    self.is_local = not scheme
    self._filesystem = None
    if scheme and scheme not in _ETILS_SCHEMES:
      import fsspec

      self._filesystem, _ = fsspec.core.url_to_fs(folder)

  def _path(self, name: str) -> Any:
    from etils import epath

    return epath.Path(self.folder) / name

  def write(self, name: str, content: bytes) -> None:
    if self._filesystem is None:
      self._path(name).parent.mkdir(parents=True, exist_ok=True)
      self._path(name).write_bytes(content)
    else:
      self._filesystem.makedirs(self.folder, exist_ok=True)
      self._filesystem.pipe_file(f"{self.folder}/{name}", content)

  def read(self, name: str) -> bytes:
    if self._filesystem is None:
      return self._path(name).read_bytes()
    return self._filesystem.cat_file(f"{self.folder}/{name}")

  def remove(self, name: str) -> None:
    if self._filesystem is None:
      self._path(name).unlink(missing_ok=True)
    else:
      self._filesystem.rm_file(f"{self.folder}/{name}")

  def modified(self, name: str) -> float | None:
    """Seconds since 1970 by the clock of the storage, if it tells."""
    if self._filesystem is None:
      return float(self._path(name).stat().mtime)
    return None


def _read_write(folder: str, name: str, limits: Limits) -> list[Finding]:
  """Writes a file, reads it back, and compares clocks with the storage."""
  storage, content = _Storage(folder), os.urandom(_PROBE_BYTES)
  started = time.monotonic()
  before = time.time()
  storage.write(name, content)
  after = time.time()
  write_secs = time.monotonic() - started
  same = storage.read(name) == content
  read_secs = time.monotonic() - started - write_secs
  text = "the same" if same else "not what was written"
  found = [
    Finding(f"write {folder}", "1 MiB", secs=write_secs),
    Finding(f"read {folder}", text, same, secs=read_secs),
  ]
  modified = storage.modified(name)
  if modified is not None:
    # Stores may round the time of a file down to a second.
    skew = max(before - 1.0 - modified, modified - after, 0.0)
    found.append(
      Finding(
        f"clock against {folder}",
        f"{skew:.1f} s apart" if skew else "same",
        skew <= limits.max_skew_secs,
      )
    )
  return found


def _shared(folder: str, names: Sequence[str]) -> list[Finding]:
  """Whether the files of all processes are seen here."""
  storage = _Storage(folder)
  blind = []
  for index, name in enumerate(names):
    try:
      storage.read(name)
    except OSError:
      blind.append(str(index))
  text = f"no file of process {', '.join(blind[:8])}" if blind else "yes"
  return [Finding(f"shared {folder}", text, not blind)]


def _clock(limits: Limits) -> list[Finding]:
  """Difference of the hosts' clocks at the moment a barrier opens."""
  skew = 0.0
  if distributed.is_multi_process():
    agreement.barrier("doctor_clock")
    now = time.time()
    said = agreement.gather_text("doctor_clock", repr(now))
    times = [float(text) for text in said]
    skew = max(times) - min(times)
  return [
    Finding(
      "clocks of hosts",
      f"at most {skew:.2f} s apart",
      skew <= limits.max_skew_secs,
      is_common=True,
    )
  ]


def _mesh(config: mesh_lib.MeshConfig | Any) -> list[Finding]:
  """Builds the mesh and adds one number from each of its devices."""
  mesh = mesh_lib.make_mesh(config)
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(mesh.axis_names)
  )
  count = mesh.size
  ones = jax.make_array_from_callback(
    (count,), sharding, lambda index: np.ones(count, np.float32)[index]
  )
  started = time.monotonic()
  replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  total = float(jax.jit(jnp.sum, out_shardings=replicated)(ones))
  secs = time.monotonic() - started
  shape = {name: size for name, size in mesh.shape.items() if size > 1}
  return [
    Finding("mesh", f"{shape or 'one device'}", is_common=True),
    Finding(
      "sum over the mesh",
      f"{total:g} of {count} devices answered",
      total == count,
      secs=secs,
    ),
  ]


def _counts(limits: Limits) -> list[Finding]:
  found = []
  for what, count, expected in (
    ("processes", jax.process_count(), limits.num_processes),
    ("devices", jax.device_count(), limits.num_devices),
  ):
    is_ok = not expected or count == expected
    text = f"{count}" + ("" if is_ok else f", expected {expected}")
    found.append(Finding(what, text, is_ok, is_common=True))
  return found


def _gather(name: str, findings: Sequence[Finding]) -> list[list[Finding]]:
  """What every process found, in their order."""
  mine = json.dumps([dataclasses.asdict(one) for one in findings])
  return [
    [Finding(**one) for one in json.loads(text)]
    for text in agreement.gather_text(name, mine)
  ]


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table: hosts that found the same.

  Attributes:
    check: its name.
    text: what was found.
    is_ok: False for a fault.
    processes: that found it.
    secs: the fastest and the slowest of them.
  """

  check: str
  text: str
  is_ok: bool
  processes: tuple[int, ...]
  secs: tuple[float, float]


def rows(found: Sequence[Sequence[Finding]]) -> list[Row]:
  """Findings of all processes, hosts with the same text in one row.

  A check whose text must be common is a fault for every group but the
  largest (of equal ones, that of the first process).
  """
  by_check: dict[str, dict[tuple[str, bool], list[int]]] = {}
  secs: dict[tuple[str, int], float] = {}
  common = set()
  for process, findings in enumerate(found):
    for one in findings:
      groups = by_check.setdefault(one.check, {})
      groups.setdefault((one.text, one.is_ok), []).append(process)
      secs[one.check, process] = one.secs
      if one.is_common:
        common.add(one.check)
  table = []
  for check, groups in by_check.items():
    largest = max(groups.values(), key=len)
    for (text, is_ok), processes in groups.items():
      differs = check in common and processes is not largest
      took = [secs[check, process] for process in processes]
      table.append(
        Row(
          check,
          text,
          is_ok and not differs,
          tuple(processes),
          (min(took), max(took)),
        )
      )
  return table


def examine(
  folders: Sequence[str], limits: Limits, mesh: Any = None
) -> tuple[list[Row], list[str]]:
  """Runs all checks; every process must call it with the same folders.

  Args:
    folders: that the job reads and writes: local, bucket or fsspec paths.
    limits: what counts as healthy.
    mesh: of the job; by default all devices in data parallel.

  Returns:
    The rows, the same on every process, and the hosts in process order.
  """
  hosts = agreement.gather_text("doctor_host", socket.gethostname())
  mark = agreement.from_main("doctor_mark", uuid.uuid4().hex)
  names = [f".musiclm_doctor_{mark}_{index}" for index in range(len(hosts))]
  mine = names[jax.process_index()]
  local = [*_guarded("versions", _versions), *_counts(limits)]
  local += _guarded("devices of a host", _devices)
  local += _guarded("host", _memory)
  for folder in folders:
    if "://" not in folder:
      local += _guarded(
        f"disk under {folder}", lambda f=folder: _disk(f, limits)
      )
    local += _guarded(
      f"write {folder}", lambda f=folder: _read_write(f, mine, limits)
    )
  found = _gather("doctor_local", local)
  together = _clock(limits)
  for folder in folders if len(hosts) > 1 else ():
    together += _guarded(f"shared {folder}", lambda f=folder: _shared(f, names))
  # Nobody waits in a collective for a host without devices.
  if all(one.is_ok for each in found for one in each if "device" in one.check):
    config = mesh_lib.MeshConfig() if mesh is None else mesh
    together += _guarded("mesh", lambda: _mesh(config))
  both = [a + b for a, b in zip(found, _gather("doctor_together", together))]
  for folder in folders:
    _guarded("cleaning", lambda f=folder: _Storage(f).remove(mine) or [])
  return rows(both), hosts


def describe(table: Sequence[Row], hosts: Sequence[str]) -> str:
  """The table as text, faults marked and with the names of their hosts."""
  lines = []
  width = max(len(row.check) for row in table)
  for row in table:
    where = ""
    if len(row.processes) < len(hosts) or not row.is_ok:
      named = [
        f"{index} ({hosts[index]})"
        for index in row.processes[:_NUM_NAMED_HOSTS]
      ]
      more = len(row.processes) - len(named)
      where = "  [process " + ", ".join(named)
      where += f" and {more} more]" if more else "]"
    state = "ok   " if row.is_ok else "FAULT"
    took = ""
    if row.secs[1]:
      ends = dict.fromkeys(f"{secs:.2f}" for secs in row.secs)
      took = f" in {' to '.join(ends)} s"
    lines.append(f"{state}  {row.check:<{width}}  {row.text}{took}{where}")
  return "\n".join(lines)
