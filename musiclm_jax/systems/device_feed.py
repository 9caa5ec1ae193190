# SPDX-License-Identifier: Apache-2.0
"""Keeps the devices fed with rows of several programs, and times them.

Items with rows flow in; finished rows flow out. Rows of any items make up a
batch of one fixed shape per program and bucket, split over all local devices;
some batches are always on their way, so that devices do not wait for the host
between them.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.systems import window_programs

# On a CPU, more rows at once bring nothing; one row is by itself in any batch.
_ROWS_ON_CPU, _ROWS_ELSEWHERE = 1, 16


@dataclasses.dataclass
class Item:
  """One input on its way through the programs.

  Attributes:
    group: number of the group it belongs to; groups come in ascending order.
    index: place in its group.
    cuts: rows by program; empty where there is nothing to do. `dispatch` lets
      go of the rows.
    payload: whatever the caller wants to find again.
    num_rows: by program.
  """

  group: int
  index: int
  cuts: dict[str, window_programs.Cut]
  payload: Any = None
  num_rows: dict[str, int] = dataclasses.field(init=False)

  def __post_init__(self):
    self.num_rows = {name: len(cut.rows) for name, cut in self.cuts.items()}


class Row(NamedTuple):
  """A finished row: the result of window `window` of an item."""

  item: Item
  program: str
  window: int
  result: np.ndarray


@dataclasses.dataclass
class DeviceTimes:
  """Where the devices' time went, in seconds.

  Attributes:
    compile_secs: until programs were there.
    busy_secs: at least one batch was being sent, computed or fetched.
    idle_secs: no batch was there, though no program was being compiled.
    num_rows: rows computed.
    num_filling: rows of them that only filled a batch.
  """

  compile_secs: float = 0.0
  busy_secs: float = 0.0
  idle_secs: float = 0.0
  num_rows: int = 0
  num_filling: int = 0

  @property
  def busy_fraction(self) -> float:
    """Of the time in which programs were there."""
    return self.busy_secs / max(self.busy_secs + self.idle_secs, 1e-9)


class _Batch(NamedTuple):
  begun: float
  compile_secs: float
  places: list[tuple[Item, str, int]]
  output: jax.Array


def default_rows_per_device() -> int:
  """Rows of a batch that one device gets, where nobody chose."""
  on_cpu = jax.default_backend() == "cpu"
  return _ROWS_ON_CPU if on_cpu else _ROWS_ELSEWHERE


class DeviceFeed:
  """Programs on a mesh over the devices of this process.

  Attributes:
    num_devices: of the mesh.
    rows_per_device: of a batch.
    times: so far.
  """

  def __init__(
    self,
    programs: Sequence[window_programs.Program],
    rows_per_device: int = 0,
  ):
    """Sends the weights to all devices of this process.

    Args:
      programs: with different names.
      rows_per_device: rows of a batch per device; 0 chooses. On a CPU it is
        1 whatever is asked: XLA computes a single row in another order than
        several, and a result must not depend on the batch.
    """
    if jax.default_backend() == "cpu":
      rows_per_device = _ROWS_ON_CPU
    devices = jax.local_devices()
    self._partitioner = partitioner_lib.Partitioner(
      mesh_lib.MeshConfig(), devices
    )
    self._programs = {program.name: program for program in programs}
    self._functions = {
      name: self._partitioner.jit_per_device(program.apply)
      for name, program in self._programs.items()
    }
    self._weights = {
      name: jax.device_put(program.weights, self._partitioner.replicated)
      for name, program in self._programs.items()
    }
    self._compiled: dict[tuple[str, int], Any] = {}
    self.num_devices = len(devices)
    self.rows_per_device = rows_per_device or default_rows_per_device()
    self.times = DeviceTimes()

  @property
  def batch_size(self) -> int:
    """Rows of a batch."""
    return self.rows_per_device * self.num_devices

  def dispatch(self, items: Iterable[Item]) -> Iterator[Item | _Batch]:
    """Starts batches; run it some ahead of `collect`, in a thread.

    Yields:
      Each item as it comes, then batches with its rows, not yet finished.
    """
    waiting: dict[tuple[str, int], list[tuple[Item, int, dict]]] = {}
    group = 0
    for item in items:
      yield item
      if item.group != group:
        # No row waits for company longer than a group.
        for key in [
          k for k, rows in waiting.items() if rows[0][0].group < group
        ]:
          yield self._start(key, waiting.pop(key))
        group = item.group
      for name, cut in list(item.cuts.items()):
        item.cuts[name] = cut._replace(rows=[])
        for window, (bucket, arrays) in enumerate(cut.rows):
          key = (name, bucket)
          rows = waiting.setdefault(key, [])
          rows.append((item, window, arrays))
          if len(rows) == self.batch_size:
            yield self._start(key, waiting.pop(key))
    for key, rows in waiting.items():
      yield self._start(key, rows)

  def _start(
    self, key: tuple[str, int], rows: list[tuple[Item, int, dict]]
  ) -> _Batch:
    name, _ = key
    filling = self.batch_size - len(rows)
    arrays = [arrays for _, _, arrays in rows] + [rows[0][2]] * filling
    batch = {
      field: np.stack([row[field] for row in arrays]) for field in arrays[0]
    }
    compile_secs = 0.0
    if key not in self._compiled:
      began = time.monotonic()
      # Lowered for arrays where they will lie.
      self._compiled[key] = (
        self._functions[name]
        .lower(self._weights[name], self._partitioner.put_batch(batch))
        .compile()
      )
      compile_secs = time.monotonic() - began
      self.times.compile_secs += compile_secs
    begun = time.monotonic()
    output = self._compiled[key](
      self._weights[name], self._partitioner.put_batch(batch)
    )
    self.times.num_rows += self.batch_size
    self.times.num_filling += filling
    return _Batch(
      begun,
      compile_secs,
      [(item, name, place) for item, place, _ in rows],
      output,
    )

  def collect(self, batches: Iterable[Item | _Batch]) -> Iterator[Item | Row]:
    """Waits for batches; run it in a thread of its own, so that it times well.

    Yields:
      What `dispatch` yields, with finished rows in place of batches.
    """
    free = time.monotonic()
    for batch in batches:
      if isinstance(batch, Item):
        yield batch
        continue
      results = np.asarray(jax.device_get(batch.output))
      now = time.monotonic()
      self.times.busy_secs += now - max(batch.begun, free)
      self.times.idle_secs += max(0.0, batch.begun - free - batch.compile_secs)
      free = now
      for (item, name, window), result in zip(batch.places, results):
        yield Row(item, name, window, result)
