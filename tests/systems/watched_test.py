# SPDX-License-Identifier: Apache-2.0
"""How far watched work is, how long it takes, and that it stops."""

import pytest

from musiclm_jax.systems import watched

Call = watched.Call


class Clock:
  """Stands still but where it is moved."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture(name="clock")
def _clock():
  return Clock()


def run(watcher, clock, call, secs):
  watcher.begin()
  clock.now += secs
  watcher.end(call)


def test_time_left_is_known_once_each_stage_was_seen(clock):
  speed = watched.Speed()
  first = watched.Watcher(speed, clock)
  assert (first.fraction, first.stage, first.secs_left) == (0.0, "", None)
  calls = [Call("semantic", 100, 1), Call("fine", 50, 2)]
  first.expect(calls)
  assert (first.stage, first.secs_left) == ("semantic", None)
  run(first, clock, calls[0], 10.0)
  assert (first.stage, first.secs_left) == ("fine", None)
  assert first.fraction == pytest.approx(100 / 150)
  run(first, clock, calls[1], 20.0)
  assert (first.fraction, first.stage, first.secs_left) == (1.0, "", 0.0)
  # 0.1 and 0.4 s a step, whoever comes next.
  second = watched.Watcher(speed, clock)
  second.expect([Call("semantic", 200, 1), Call("fine", 50, 4)])
  assert second.secs_left == pytest.approx(20 + 20)
  second.begin()
  clock.now += 5.0
  assert second.secs_left == pytest.approx(35)
  assert second.fraction == pytest.approx(5 / 40)
  # Slower than thought: it does not run past what the call is worth.
  clock.now += 500.0
  assert second.secs_left == pytest.approx(20 + 0.05 * 20)
  assert second.fraction == pytest.approx(0.95 * 20 / 40)


def test_the_last_call_of_a_shape_counts():
  speed, call = watched.Speed(), Call("coarse", 10, 1)
  assert speed.secs(call) is None
  speed.note(call, 100.0)  # It was compiled too.
  speed.note(call, 1.0)
  assert speed.secs(Call("coarse", 20, 1)) == pytest.approx(2.0)
  speed.note(Call("coarse", 10, 8), 3.0)
  assert speed.secs(Call("coarse", 10, 2)) == pytest.approx(1.0)
  assert speed.secs(Call("coarse", 10, 7)) == pytest.approx(3.0)
  assert speed.secs(Call("fine", 10, 1)) is None


@pytest.mark.parametrize("is_late", [False, True])
def test_stops_before_or_after_a_call(clock, is_late):
  watcher = watched.Watcher(watched.Speed(), clock)
  if is_late:
    watcher.begin()
  watcher.is_stopped = True
  with pytest.raises(watched.Stopped):
    if is_late:
      watcher.end(Call("fine", 1, 1))
    else:
      watcher.begin()
