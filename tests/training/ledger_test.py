# SPDX-License-Identifier: Apache-2.0
"""The ledger: every second in one part, what a kill cost, goodput."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from musiclm_jax.core import errors, protocols
from musiclm_jax.training import goodput, ledger, metrics


def write(tmp_path, *lines):
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (tmp_path / ledger.FILE_NAME).write_text(text)


def test_parts_add_up_to_the_wall_time(tmp_path):
  began = time.time()
  books = ledger.Ledger(tmp_path, started=began - 2.0)
  time.sleep(0.05)
  books.open_attempt(0)
  books.enter("step")
  with books.part("evaluation"):
    time.sleep(0.1)
    with books.part("data_wait"):
      time.sleep(0.15)
  time.sleep(0.2)
  books.flush(3)
  with books.part("checkpoint"):
    time.sleep(0.1)
  books.close("done", 4)
  wall = time.time() - began + 2.0
  secs = goodput.summary(tmp_path)
  assert secs["wall"] == pytest.approx(wall, rel=0.01)
  parts = sum(secs[name] for name in ledger.PARTS)
  assert parts == pytest.approx(wall, rel=0.01)
  # A part within another one is counted once.
  assert 0.1 <= secs["evaluation"] < 0.14
  assert 0.15 <= secs["data_wait"] < 0.3
  assert 2.05 <= secs["init"] < 2.3


KILLED = (
  {"kind": "start", "time": 110, "started": 100, "step": 0},
  {
    "kind": "parts",
    "time": 120,
    "from_step": 0,
    "step": 10,
    "secs": {"init": 10, "step": 10},
  },
  # Steps 10 to 20 took 12 s; the checkpoint is of step 15.
  {
    "kind": "parts",
    "time": 132,
    "from_step": 10,
    "step": 20,
    "secs": {"step": 10, "data_wait": 2},
  },
)


def test_restart_report_counts_from_the_checkpoint(tmp_path):
  write(tmp_path, *KILLED)
  # It went on for 5 s and 4 steps after its last line, then was killed.
  (tmp_path / "ledger.progress").write_text(f"{24:12d} {137.0:20.6f}\n")
  report = goodput.restart_report(tmp_path, 15, 150.0)
  assert report.steps_lost == 9
  assert report.secs_lost == pytest.approx(6 + 5)
  assert report.secs_down == pytest.approx(13)
  assert "killed" in report.cause
  books = ledger.Ledger(tmp_path)
  books.open_attempt(24)
  books.close(ledger.cause_of(errors.Preempted("x")), 30, "saved step 30")
  assert "preempted" in goodput.restart_report(tmp_path, 30, time.time()).cause
  books.open_attempt(30)
  books.close("done", 40)
  assert goodput.restart_report(tmp_path, 40, time.time()) is None


def test_a_restart_does_not_lose_what_a_rollback_gave_up(tmp_path):
  write(
    tmp_path,
    *KILLED,
    {"kind": "rollback", "time": 132, "step": 15},
    {
      "kind": "parts",
      "time": 142,
      "from_step": 15,
      "step": 17,
      "secs": {"step": 10},
    },
  )
  # Not the 20 steps of before, nor their seconds.
  report = goodput.restart_report(tmp_path, 15, 150.0)
  assert (report.last_step, report.steps_lost) == (17, 2)
  assert report.secs_lost == pytest.approx(10)


def test_steps_count_when_the_device_has_finished_them():
  pending = metrics.Pending()
  slow = jax.jit(
    lambda x: jax.lax.fori_loop(0, 400, lambda _, y: y @ y / 300, x).sum()
  )
  x = jnp.ones((300, 300))
  slow(x).block_until_ready()
  for step in (1, 2):
    pending.add(step, (), {"finite": protocols.Mean(slow(x), jnp.ones(()))})
  assert pending.num_running() == 2
  pending.wait(1)
  assert pending.num_running() <= 1
  pending.wait(0)
  assert pending.num_running() == 0


def test_work_done_again_is_lost(tmp_path):
  write(
    tmp_path,
    *KILLED,
    {"kind": "start", "time": 160, "started": 150, "step": 15},
    {"kind": "restart", "time": 160, "last_step": 24, "last_time": 137.0},
    {
      "kind": "parts",
      "time": 180,
      "from_step": 15,
      "step": 35,
      "secs": {"init": 10, "step": 20},
    },
    {"kind": "rollback", "time": 180, "step": 30},
    {
      "kind": "parts",
      "time": 190,
      "from_step": 30,
      "step": 40,
      "secs": {"step": 10},
    },
    {"kind": "end", "time": 190, "step": 40, "cause": "done", "message": ""},
  )
  secs = goodput.summary(tmp_path)
  # Half of steps 10-20, 5 s unbooked, and a quarter of steps 15-35.
  assert secs["lost"] == pytest.approx(6 + 5 + 5)
  assert secs["down"] == pytest.approx(13)
  assert secs["step"] == pytest.approx(10 + 5 + 15 + 10)
  assert secs["wall"] == pytest.approx(90)
  assert goodput.describe(secs).startswith("goodput 44.4 % of 90.0 s")


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
  write(tmp_path, *KILLED)
  with (tmp_path / ledger.FILE_NAME).open("a") as file:
    file.write('{"kind": "parts", "ti')
  assert len(ledger.read(tmp_path)) == 3
