# SPDX-License-Identifier: Apache-2.0
"""Items of any length side by side: windows of all of them share batches.

Requests of one item each flow in; finished items flow out, in the order in
which they get done. What is computed at once is a window of a stage, of as many
items as a batch has rows; an item that is done, or goes on to another stage,
leaves its row to the next. So short items do not wait for long ones. Codes are
those of `Cascade.sample`: a row depends on its own item only.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.decoding import continuation
from musiclm_jax.decoding import sampling as sampling_lib
from musiclm_jax.systems import cascade, stage_windows

# Items at work, in batches: more would only hold memory, and claims.
_BATCHES_AT_WORK = 4
# A row goes first, though it has no company, after so many calls without.
_PATIENCE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class _Row:
  """A window that can be made now."""

  item: "_Item"
  stage: stage_windows.StageWindows
  name: str
  window: continuation.Window
  told: stage_windows.WindowInput
  key: jax.Array
  sampling: sampling_lib.SamplingConfig

  @property
  def shape(self) -> tuple:
    """Rows of one shape go through one program."""
    prefix = 0 if self.told.prefix is None else self.told.prefix.shape[1]
    told = tuple(sorted(self.item.request.negative))
    return (id(self.stage), prefix, self.told.num_frames, self.sampling, told)


class _Item:
  """One item on its way through the stages.

  Attributes:
    payload: whatever the caller wants to find again.
    request: of the item alone.
    waiting: rows that can be made now.
    num_waited: calls since one of its rows was made.
  """

  def __init__(
    self, system: cascade.Cascade, payload: Any, request: cascade.Request
  ):
    """Plans the first stage."""
    self.payload, self.request = payload, request
    self.num_waited = 0
    self.waiting: list[_Row] = []
    self._codes: dict[str, Any] = dict(request.conditioning)
    self._steps = system.steps(request)
    self._begin_stage()

  @property
  def is_done(self) -> bool:
    return not self._steps

  @property
  def num_steps_left(self) -> int:
    return len(self._steps)

  def codes(self, system: cascade.Cascade) -> dict[str, np.ndarray]:
    """As `Cascade.sample` gives them."""
    return system.result_codes(self.request, self._codes)

  def _begin_stage(self) -> None:
    """Plans the next stage that has something to make."""
    while self._steps:
      name, stage, _ = self._steps[0]
      self._given = self.request.given_codes(stage)
      self._is_parallel = cascade.is_parallel(name)
      self._plan = cascade.plan_of(name, stage, self.request, self._codes)
      self._parts: dict[int, np.ndarray] = {}
      self._made = self._given
      if self._plan:
        count = len(self._plan) if self._is_parallel else 1
        self.waiting = [self._row(window) for window in self._plan[:count]]
        return
      self._end_stage()

  def _row(self, window: continuation.Window) -> _Row:
    name, stage, sampling = self._steps[0]
    # Windows side by side know of each other nothing, also where the last one
    # was moved left over frames of the one before: only what is given.
    source = self._given if self._is_parallel else self._made
    known = None
    if window.num_known and source is not None:
      known = source[:, window.start : window.new_start]
      known = known if known.shape[1] else None
    prefix_frames = None if self._is_parallel else stage.prefix_frames
    told = stage.window_input(self._codes, window, known, prefix_frames)
    key = self.request.stage_keys(name)
    return _Row(self, stage, name, window, told, key, sampling)

  def take(self, row: _Row, codes: np.ndarray) -> None:
    """Takes the codes `[1, frames, levels]` that were made of a row."""
    self.waiting.remove(row)
    # What is compiled in as a prefix is not among the codes.
    num_old = row.told.num_forced
    if self._is_parallel:
      num_old = row.window.num_known
    new = codes[:, num_old:][:, : row.window.num_new]
    if self._is_parallel:
      self._parts[row.window.start] = new
      if len(self._parts) < len(self._plan):
        return
      parts = [self._parts[window.start] for window in self._plan]
    else:
      parts = [new]
    known = [] if self._made is None else [self._made]
    self._made = np.concatenate(known + parts, axis=1)
    index = self._plan.index(row.window) + 1
    if not self._is_parallel and index < len(self._plan):
      self.waiting = [self._row(self._plan[index])]
      return
    self._end_stage()
    self._begin_stage()

  def _end_stage(self) -> None:
    _, stage, _ = self._steps.pop(0)
    name, made = stage.target_stream.name, self._made
    if stage.spec.target.first_level:
      made = np.concatenate([self._codes[name], made], axis=-1)
    self._codes[name] = made


@dataclasses.dataclass
class Counts:
  """What went through the programs.

  Attributes:
    num_calls: of programs.
    num_rows: windows made.
    num_filling: rows that only filled a batch.
  """

  num_calls: int = 0
  num_rows: int = 0
  num_filling: int = 0


class Batcher:
  """Makes items in batches of fixed shapes.

  Attributes:
    counts: so far.
  """

  def __init__(
    self,
    system: cascade.Cascade,
    batch_size: int,
    parallel_batch_size: int | None = None,
  ):
    """Makes nothing yet.

    Args:
      system: MusicLM or AudioLM; its stages may be spread over devices.
      batch_size: rows of a window; batches are filled up to it, so that what
        an item is does not depend on how many are left.
      parallel_batch_size: of a stage whose windows are independent; None: the
        same.

    Raises:
      ValueError: if a number is not positive.
    """
    self._parallel_batch_size = parallel_batch_size or batch_size
    for size in (batch_size, self._parallel_batch_size):
      if size < 1:
        raise ValueError(f"batch_size={size}: expected >= 1")
    self._system, self._batch_size = system, batch_size
    self.counts = Counts()

  def _size(self, row: _Row) -> int:
    is_parallel = cascade.is_parallel(row.name)
    return self._parallel_batch_size if is_parallel else self._batch_size

  def run(
    self, requests: Iterable[tuple[Any, Callable[[], cascade.Request]]]
  ) -> Iterator[tuple[Any, cascade.Generation]]:
    """Makes items; takes the next ones until a batch is full.

    Args:
      requests: a payload, and a function that gives a request of one item.

    Yields:
      The payload and what was made, as soon as it is done.
    """
    source = iter(requests)
    items: list[_Item] = []
    is_exhausted = False
    most = _BATCHES_AT_WORK * self._batch_size
    while True:
      rows = self._chosen(items)
      while rows is None and len(items) < most and not is_exhausted:
        found = next(source, None)
        if found is None:
          is_exhausted = True
          break
        payload, make = found
        items.append(_Item(self._system, payload, make()))
        rows = self._chosen(items)
      rows = rows or self._most(items)
      if rows:
        self._call(rows)
      served = {row.item for row in rows}
      for item in items:
        item.num_waited = 0 if item in served else item.num_waited + 1
      for item in [item for item in items if item.is_done]:
        items.remove(item)
        yield item.payload, self._finish(item)
      if not items and is_exhausted:
        return

  def _finish(self, item: _Item) -> cascade.Generation:
    codes = item.codes(self._system)
    waveform = self._system.decode(codes["acoustic"], item.request.seconds)
    rate_hz = self._system.codec.sample_rate_hz
    return cascade.Generation(waveform, rate_hz, codes, item.request.seeds)

  def _by_shape(self, items: Sequence[_Item]) -> list[list[_Row]]:
    """Rows that can share a call, those of the oldest items first."""
    found: dict[tuple, list[_Row]] = {}
    for row in itertools.chain.from_iterable(item.waiting for item in items):
      found.setdefault(row.shape, []).append(row)
    return list(found.values())

  def _chosen(self, items: Sequence[_Item]) -> list[_Row] | None:
    """Rows of a full batch, or of one that waits for long; None: neither."""
    groups = self._by_shape(items)
    for rows in groups:
      if max(row.item.num_waited for row in rows) >= _PATIENCE:
        rows = sorted(rows, key=lambda row: -row.item.num_waited)
        return rows[: self._size(rows[0])]
    full = [rows for rows in groups if len(rows) >= self._size(rows[0])]
    # The furthest first: what is nearly done makes room.
    full.sort(key=lambda rows: rows[0].item.num_steps_left)
    return full[0][: self._size(full[0][0])] if full else None

  def _most(self, items: Sequence[_Item]) -> list[_Row]:
    """The fullest batch there is, of equals that of the shortest item."""
    rows = max(
      self._by_shape(items),
      key=lambda rows: (len(rows), -rows[0].item.request.seconds),
      default=[],
    )
    return rows[: self._size(rows[0])] if rows else []

  def _call(self, rows: Sequence[_Row]) -> None:
    """Makes windows of one shape."""
    size = self._size(rows[0])
    filled = [*rows, *([rows[-1]] * (size - len(rows)))]
    self.counts.num_calls += 1
    self.counts.num_rows += len(rows)
    self.counts.num_filling += size - len(rows)
    stage, told = rows[0].stage, rows[0].told

    def joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
      return np.concatenate(list(arrays))

    levels = stage.spec.target.num_levels
    forced = np.zeros((size, told.num_frames, levels), np.int32)
    for index, row in enumerate(filled):
      if row.told.num_forced:
        forced[index, : row.told.num_forced] = row.told.forced[0]
    prefix = None
    if told.prefix is not None:
      prefix = joined(row.told.prefix for row in filled)
    codes = stage.generate(
      {
        name: joined(row.told.conditioning[name] for row in filled)
        for name in told.conditioning
      },
      prefix,
      told.num_frames,
      rows[0].sampling,
      jnp.concatenate([row.key for row in filled]),
      np.array([row.window.start for row in filled]),
      forced,
      {
        name: joined(row.item.request.negative[name] for row in filled)
        for name in rows[0].item.request.negative
      },
      num_forced=np.array([row.told.num_forced for row in filled]),
    )
    for index, row in enumerate(rows):
      row.item.take(row, codes[index : index + 1])
