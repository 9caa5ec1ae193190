# SPDX-License-Identifier: Apache-2.0
"""Several processes on loopback: kills, refusals, and who is to blame.

The same job as `kill_rounds.py`, whose 20 rounds are for people.
"""

import importlib.util
import pathlib
import re

import pytest

_SPEC = importlib.util.spec_from_file_location(
  "kill_rounds", pathlib.Path(__file__).with_name("kill_rounds.py")
)
kill_rounds = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(kill_rounds)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """One folder, so that all jobs share compiled programs."""
  return tmp_path_factory.mktemp("multihost")


def last_words(log):
  return [
    line
    for line in log.read_text(errors="replace").splitlines()
    if line.startswith("musiclm: ")
  ]


def test_killed_run_ends_like_an_unbroken_one(workdir):
  # Seed 1073: SIGKILL of a process in a save, then SIGTERM at one of them.
  result = kill_rounds.run(workdir, rounds=2, seed=1073, total_steps=40)
  text = (workdir / "log.txt").read_text(errors="replace")
  assert result["whole"] == [0, 0], text[-3000:]
  moments = " ".join(what for what, _ in result["rounds"])
  assert "SIGKILL" in moments and "SIGTERM" in moments
  assert result["misfits"] == 0, result
  assert result["unreadable"] == []
  assert result["same"], result
  assert "restart: goes on from step" in text
  # The same checkpoints serve another number of processes.
  log = workdir / "one.txt"
  one = kill_rounds.Job(workdir / "killed", 45, 1, log)
  assert one.wait() == [0]
  assert "going on at step 40 of 45" in log.read_text()
  assert re.search(r"goodput [\d.]+ % of", log.read_text())


def test_another_config_is_refused(workdir):
  log = workdir / "config.txt"
  job = kill_rounds.Job(
    workdir / "config",
    5,
    2,
    log,
    each={0: {"config_fingerprint": "aaaa"}, 1: {"config_fingerprint": "bbbb"}},
  )
  assert job.wait() == [1, 1]
  for line in last_words(log):
    assert "process 1" in line and "aaaa" in line and "bbbb" in line
  assert not (workdir / "config" / "checkpoints").exists()


def test_missing_peers_are_named(workdir):
  logs = [workdir / "missing0.txt", workdir / "missing1.txt"]
  jobs = [
    kill_rounds.Job(
      workdir / "missing", 5, 3, log, only=[index], start_timeout_secs=5
    )
    for index, log in enumerate(logs)
  ]
  assert [job.wait(120) for job in jobs] == [[42], [42]]
  # Each has a port of its own, so neither meets the other.
  assert "processes 1, 2 did not come in time" in last_words(logs[0])[-1]
  assert "process 0, the coordinator" in last_words(logs[1])[-1]


def test_the_others_hear_why_a_process_failed(workdir):
  log = workdir / "failed.txt"
  job = kill_rounds.Job(
    workdir / "failed", 30, 2, log, each={1: {"fail_at_step": 7}}
  )
  assert job.wait(200) == [42, 1]
  words = last_words(log)
  assert "musiclm: clip 7 is broken" in words
  assert "musiclm: process 1 failed: clip 7 is broken" in words
