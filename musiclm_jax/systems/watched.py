# SPDX-License-Identifier: Apache-2.0
"""A system whose work is watched: how far it is, how long it takes, and a stop.

A system flows in, one of the same parts flows out whose stages tell a watcher
of every window that they make. Codes are the same.
"""

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from musiclm_jax.core import streams as streams_lib
from musiclm_jax.systems import cascade, stage_windows

# What comes after the stages: codec and scores.
AUDIO = "audio"


class Stopped(RuntimeError):
  """Somebody no longer wants what is being made."""


@dataclasses.dataclass(frozen=True)
class Call:
  """One call of a stage.

  Attributes:
    stage: its name.
    steps: positions sampled one after the other.
    rows: sampled side by side.
  """

  stage: str
  steps: int
  rows: int


class Speed:
  """Seconds per step of calls like those seen before."""

  def __init__(self):
    self._secs: dict[tuple[str, int], float] = {}

  def note(self, call: Call, secs: float) -> None:
    """Remembers the last one: the first of its shape was compiled too."""
    self._secs[call.stage, call.rows] = secs / max(1, call.steps)

  def secs(self, call: Call) -> float | None:
    """How long a call will take; None while no call of the stage was seen.

    Of a call with another number of rows, the nearest is taken as it is:
    decoding reads all weights at each step, for one row or for several.
    """
    rates = {
      r: s for (stage, r), s in self._secs.items() if stage == call.stage
    }
    if not rates:
      return None
    nearest = min(rates, key=lambda rows: abs(rows - call.rows))
    return rates[nearest] * call.steps


class Watcher:
  """How far one piece of work is.

  Attributes:
    is_stopped: set it, from any thread, to stop at the next window.
  """

  def __init__(self, speed: Speed, clock: Callable[[], float] = time.monotonic):
    """Knows no work yet; see `expect`."""
    self.is_stopped = False
    self._speed, self._clock = speed, clock
    self._calls: list[Call] = []
    self._next, self._began = 0, clock()
    self._most = 0.0

  def expect(self, calls: list[Call]) -> None:
    """Sets all work there is."""
    self._calls, self._next = list(calls), 0

  def begin(self) -> None:
    """A call begins.

    Raises:
      Stopped: if nobody wants it.
    """
    if self.is_stopped:
      raise Stopped("stopped")
    self._began = self._clock()

  def end(self, call: Call) -> None:
    """The call that began last is done; raises as `begin`."""
    self._speed.note(call, self._clock() - self._began)
    self._next = min(self._next + 1, len(self._calls))
    self.begin()

  @property
  def stage(self) -> str:
    """Of the call under way; '' before and after."""
    calls, index = self._calls, self._next
    return calls[index].stage if index < len(calls) else ""

  def _weights(self) -> list[float]:
    secs = [self._speed.secs(call) for call in self._calls]
    known = [(s, c.steps) for s, c in zip(secs, self._calls) if s is not None]
    total = sum(steps for _, steps in known)
    rate = sum(s for s, _ in known) / total if total else 1.0
    return [
      rate * call.steps if s is None else s
      for s, call in zip(secs, self._calls)
    ]

  def _elapsed(self, weight: float) -> float:
    """Of the call under way, at most nearly all that it should take."""
    return min(self._clock() - self._began, 0.95 * weight)

  @property
  def fraction(self) -> float:
    """Done so far, in [0, 1]; what was said before is not taken back."""
    weights, index = self._weights(), self._next
    if not weights:
      return 0.0
    done = sum(weights[:index])
    if index < len(weights) and self.secs_left is not None:
      done += self._elapsed(weights[index])
    self._most = max(self._most, done / sum(weights))
    return self._most

  @property
  def secs_left(self) -> float | None:
    """Estimate; None until every stage to come has been seen at work."""
    calls, index = self._calls[self._next :], self._next
    if not self._calls:
      return None
    if any(self._speed.secs(call) is None for call in calls):
      return None
    weights = self._weights()[index:]
    if not weights:
      return 0.0
    return sum(weights) - self._elapsed(weights[0])


class WatchedStage(stage_windows.StageWindows):
  """A stage that tells of its windows."""

  def __init__(self, name: str, stage: Any, watcher: Watcher):
    self._name, self._stage, self._watcher = name, stage, watcher
    self.spec = stage.spec
    self.streams: Mapping[str, streams_lib.TokenStream] = stage.streams

  def num_rows(self, keys, sampling) -> int:
    """As the stage counts them."""
    return self._stage.num_rows(keys, sampling)

  def generate(
    self, conditioning, prefix, num_frames, sampling, keys, *rest, **options
  ) -> np.ndarray:
    """Samples one window; see `stage_lm.StageLM.generate`."""
    self._watcher.begin()
    codes = self._stage.generate(
      conditioning, prefix, num_frames, sampling, keys, *rest, **options
    )
    levels = codes.shape[-1]
    call = Call(self._name, num_frames * levels, keys.shape[0])
    self._watcher.end(call)
    return codes


def watch(system: cascade.Cascade, watcher: Watcher) -> cascade.Cascade:
  """The same system, watched; the one given is left as it is."""
  made = copy.copy(system)
  made.stages = {
    name: _watched(name, stage, watcher) for name, stage in made.stages.items()
  }
  made.acoustic = {
    choice: _watched(stage.KIND, stage, watcher)
    for choice, stage in made.acoustic.items()
  }
  if made.melody_stage is not None:
    made.melody_stage = _watched("semantic", made.melody_stage, watcher)
  return made


def _watched(name: str, stage: Any, watcher: Watcher) -> Any:
  """Stages that do not work in windows are not watched."""
  if not isinstance(stage, stage_windows.StageWindows):
    return stage
  return WatchedStage(name, stage, watcher)


def calls(system: cascade.Cascade, request: cascade.Request) -> list[Call]:
  """The calls that `system.run(request)` will make of watched stages.

  Args:
    system: watched or not.
    request: what will be run.

  Returns:
    In order; the last stands for codec and scores, with as many steps as
    frames are heard.
  """
  found, batch = [], len(request.seeds)
  for name, stage, sampling in system.steps(request):
    if not isinstance(stage, stage_windows.StageWindows):
      continue
    levels = stage.spec.target.end_level - stage.spec.target.first_level
    plan = cascade.plan_of(name, stage, request, request.conditioning)
    if cascade.is_parallel(name):
      per_call = stage.windows_per_call(request.stage_keys(name), sampling)
      for start in range(0, len(plan), per_call):
        count = per_call if start else min(per_call, len(plan))
        steps = plan[start].num_frames * levels
        found.append(Call(name, steps, count * batch))
      continue
    prefix = stage.prefix_frames
    for window in plan:
      known = prefix if window.num_known >= prefix else 0
      steps = (window.num_frames - known) * levels
      found.append(Call(name, steps, batch))
  frames = cascade.needed_frames(
    request.seconds, system.codec.stream.frame_rate_hz
  )
  return [*found, Call(AUDIO, frames, batch)]
