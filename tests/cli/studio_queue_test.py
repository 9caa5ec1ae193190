# SPDX-License-Identifier: Apache-2.0
"""The studio's worker: order, stops, failures, and whose result is whose."""

import threading

import pytest

from musiclm_jax.cli import studio_queue
from musiclm_jax.core import errors

SECS = 10.0


@pytest.fixture
def queue():
  made = studio_queue.Queue(max_waiting=2)
  yield made
  made.close()


class Held:
  """Work that goes on until it is told to end, or is stopped."""

  def __init__(self, result="held"):
    self.result, self.begun = result, threading.Event()
    self.may_end = threading.Event()

  def __call__(self, watcher):
    self.begun.set()
    while not self.may_end.wait(0.01):
      watcher.begin()
    return self.result


def test_results_go_to_who_asked(queue):
  held = Held("first")
  first = queue.submit("ann", held)
  held.begun.wait(SECS)
  others = [
    queue.submit(name, lambda _, name=name: f"for {name}")
    for name in ("bob", "eve")
  ]
  assert [queue.num_ahead(task) for task in (first, *others)] == [0, 1, 2]
  with pytest.raises(errors.UserError, match="2 visitors are waiting"):
    queue.submit("dan", held)
  with pytest.raises(errors.UserError, match="made for you already"):
    queue.submit("ann", held)
  held.may_end.set()
  assert all(queue.wait(task, SECS) for task in (first, *others))
  results = [task.result for task in (first, *others)]
  assert results == ["first", "for bob", "for eve"]
  # Done, so ann may ask again.
  again = queue.submit("ann", lambda _: "again")
  assert queue.wait(again, SECS) and again.result == "again"


def test_a_visitor_stops_their_own_task(queue):
  held = Held()
  running = queue.submit("ann", held)
  held.begun.wait(SECS)
  waiting = queue.submit("bob", lambda _: "never")
  assert not queue.stop("eve")
  assert queue.stop("bob") and waiting.state == studio_queue.STOPPED
  assert not running.is_over
  assert queue.stop("ann") and queue.wait(running, SECS)
  assert running.state == studio_queue.STOPPED and running.result is None
  after = queue.submit("ann", lambda _: "after")
  assert queue.wait(after, SECS) and after.result == "after"
  assert waiting.result is None


def test_failures_are_one_line_and_the_worker_lives(queue, capsys):
  def bad(_):
    raise errors.UserError("say what to make")

  def broken(_):
    raise RuntimeError("/secret/path")

  first = queue.submit("ann", bad)
  assert queue.wait(first, SECS)
  assert (first.state, first.error) == (studio_queue.FAILED, "say what to make")
  second = queue.submit("ann", broken)
  assert queue.wait(second, SECS)
  assert "RuntimeError" in second.error and "secret" not in second.error
  assert "/secret/path" in capsys.readouterr().err
  third = queue.submit("ann", lambda _: 3)
  assert queue.wait(third, SECS) and third.result == 3


def test_close_ends_all():
  queue, held = studio_queue.Queue(), Held()
  running = queue.submit("ann", held)
  held.begun.wait(SECS)
  waiting = queue.submit("bob", held)
  queue.close()
  assert running.state == waiting.state == studio_queue.STOPPED


def test_room_is_positive():
  with pytest.raises(ValueError, match="max_waiting=0: expected >= 1"):
    studio_queue.Queue(0)
