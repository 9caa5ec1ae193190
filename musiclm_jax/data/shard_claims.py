# SPDX-License-Identifier: Apache-2.0
"""Which process works on which shard: claims are files, made atomically.

Processes need nothing but a file system they all see; any number may come and
go. A claim keeps two processes from doing the same work twice, no more: shards
are the same whoever writes them and appear by one rename, so a claim that is
lost or taken over by mistake costs time and never rows.
"""

import errno
import json
import os
import pathlib
import socket
import threading
import time
import uuid

from musiclm_jax.core import errors

_BEATS_PER_TIMEOUT = 6
# What a file system without hard links says (mounted buckets).
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


def _read(path: str, default: str = "") -> str:
  try:
    return pathlib.Path(path).read_text().strip()
  except OSError:
    return default


def _machine() -> str:
  """Names what process numbers are counted in: a host, or a container."""
  try:
    space = os.readlink("/proc/self/ns/pid")
  except OSError:
    space = ""
  boot = _read("/proc/sys/kernel/random/boot_id")
  return f"{socket.gethostname()}/{boot}/{space}"


def _start_time(pid: int) -> str:
  """When a process was started; '' where there is none, or no /proc."""
  fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
  # A zombie does no more work.
  return fields[19] if len(fields) > 19 and fields[0] != "Z" else ""


class Claims:
  """Claims of one process on named pieces of work."""

  def __init__(self, directory: str | os.PathLike, stale_secs: float = 120.0):
    """Makes the folder.

    Args:
      directory: of the claim files; the same for all processes.
      stale_secs: without a sign of life for so long, another process takes a
        claim over. Measured by the clock of the one who waits.
    """
    self._directory = pathlib.Path(directory)
    self._directory.mkdir(parents=True, exist_ok=True)
    self._stale_secs = stale_secs
    self._identity = {
      "token": uuid.uuid4().hex,
      "machine": _machine(),
      "pid": os.getpid(),
      "start": _start_time(os.getpid()),
    }
    self._held: set[str] = set()
    self._seen: dict[str, tuple[tuple[str, int], float]] = {}
    self._lock = threading.Lock()
    self._end = threading.Event()
    self._beat = threading.Thread(
      target=self._beat_on, daemon=True, name="claims"
    )
    self._beat.start()

  def __enter__(self) -> "Claims":
    return self

  def __exit__(self, *unused) -> None:
    """Gives back what is held."""
    self._end.set()
    self._beat.join()
    with self._lock:
      held = list(self._held)
    for name in held:
      self.release(name)

  def _path(self, name: str) -> pathlib.Path:
    return self._directory / f"{name}.claim"

  def claim(self, name: str) -> bool:
    """Takes a piece of work unless a living process has it.

    Once the claims are left nothing is taken any more.
    """
    if self._end.is_set():
      return False
    path = self._path(name)
    if path.exists():
      if not self._is_stale(name):
        return False
      # Of those who see it stale, one can rename it.
      aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.stale")
      try:
        path.rename(aside)
      except FileNotFoundError:
        return False
      aside.unlink(missing_ok=True)
      self._seen.pop(name, None)
    try:
      if not self._create(path):
        return False
    except (FileNotFoundError, FileExistsError):
      return False  # the folder was swept away meanwhile; the next one gets it
    with self._lock:
      self._held.add(name)
    if self._end.is_set():
      # A thread that still runs; `__exit__` may not have seen this one.
      self.release(name)
      return False
    return True

  def _create(self, path: pathlib.Path) -> bool:
    # One who was done may have swept the folder away.
    self._directory.mkdir(parents=True, exist_ok=True)
    scratch = self._written(path, 0)
    try:
      # Linked into place with its content: nobody ever reads half a claim.
      os.link(scratch, path)
      return True
    except FileExistsError:
      return False
    except OSError as error:
      if error.errno not in _NO_LINKS:
        raise
    finally:
      scratch.unlink(missing_ok=True)
    try:
      with path.open("x") as file:
        file.write(json.dumps({**self._identity, "beat": 0}))
      return True
    except FileExistsError:
      return False

  def _written(self, path: pathlib.Path, beat: int) -> pathlib.Path:
    """A file beside `path` with our claim."""
    scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}.writing")
    try:
      with errors.naming(path):
        scratch.write_text(json.dumps({**self._identity, "beat": beat}))
    except OSError:
      scratch.unlink(missing_ok=True)
      raise
    return scratch

  def _is_stale(self, name: str) -> bool:
    path = self._path(name)
    try:
      owner = json.loads(path.read_text())
      state = (owner["token"], owner["beat"])
    except FileNotFoundError:
      return False  # given back just now; the next attempt gets it
    except (ValueError, KeyError):
      owner, state = {}, ("", 0)
    if self._has_ended(owner):
      return True
    now = time.monotonic()
    before, since = self._seen.get(name, (None, now))
    if before != state:
      since = now
    self._seen[name] = (state, since)
    return now - since >= self._stale_secs

  def _has_ended(self, owner: dict) -> bool:
    """Whether a process of this machine is known to be gone."""
    if owner.get("machine") != self._identity["machine"] or not owner["start"]:
      return False
    return _start_time(owner["pid"]) != owner["start"]

  def release(self, name: str) -> None:
    """Gives a piece of work back, unless another has taken it over."""
    with self._lock:  # a beat in between would make the claim again
      self._held.discard(name)
      if self._is_mine(name):
        self._path(name).unlink(missing_ok=True)

  def _is_mine(self, name: str) -> bool:
    try:
      owner = json.loads(self._path(name).read_text())
      return owner["token"] == self._identity["token"]
    except (OSError, ValueError, KeyError):
      return False

  def _beat_on(self) -> None:
    """Counts on in all held claims every now and then."""
    beat = 0
    while not self._end.wait(self._stale_secs / _BEATS_PER_TIMEOUT):
      beat += 1
      with self._lock:
        for name in self._held:
          try:
            if self._is_mine(name):
              self._written(self._path(name), beat).replace(self._path(name))
          except OSError:
            continue  # swept, or the file system is away for a moment
