# SPDX-License-Identifier: Apache-2.0
"""Several processes on loopback: kills, refusals, and who is to blame.

The job is that of `training_job.py`; the 20 rounds of `kill_rounds.py` are for
people.
"""

import re
import shutil

import kill_rounds
import numpy as np
import pytest
import training_job

from musiclm_jax.training import ledger


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
  assert result["same"] and result["same_batches"], result
  assert result["same_best"], result
  assert result["rows"] == 40 * training_job.GLOBAL_BATCH
  # The report of the kill in a save is of what was taken and not kept.
  (first, *_) = [
    line
    for line in ledger.read(workdir / "killed")
    if line["kind"] == "restart"
  ]
  taken = training_job.fed_steps(workdir / "killed")[0][-1] + 1
  assert taken - 10 <= first["last_step"] <= taken
  assert first["steps_lost"] == first["last_step"] - first["step"]
  assert "killed" in first["cause"] or "lost a peer" in first["cause"]
  # The same checkpoints serve another number of processes.
  log = workdir / "one.txt"
  one = training_job.Job(workdir / "killed", 45, 1, log)
  assert one.wait() == [0]
  assert "going on at step 40 of 45" in log.read_text()
  assert re.search(r"goodput [\d.]+ % of", log.read_text())


def test_goes_on_with_another_number_of_processes(workdir):
  # Always 4 devices, as 2 copies of parameters split in 2.
  log, whole, moved = workdir / "moved.txt", workdir / "one", workdir / "many"
  options = {"fsdp": 2, "schedule_steps": 24, "every_steps": 6, "keep": 9}
  job = training_job.Job(whole, 24, 1, log, devices=4, **options)
  assert job.wait() == [0], log.read_text(errors="replace")[-3000:]
  shutil.copytree(whole, moved)
  shutil.rmtree(moved / "rows")
  for step in (12, 18, 24):
    shutil.rmtree(moved / "checkpoints" / str(step))
  for total, count in ((12, 2), (18, 1), (24, 4)):
    job = training_job.Job(
      moved, total, count, log, devices=4 // count, **options
    )
    text = log.read_text(errors="replace")
    assert job.wait() == [0] * count, text[-3000:]
  starts = re.findall(r"going on at step (\d+) of", log.read_text())
  assert starts == ["6"] * 2 + ["12"] + ["18"] * 4
  rows = training_job.fed_rows(whole)
  later = {place: marks for place, marks in rows.items() if place[0] >= 6}
  assert len(later) == 18 * training_job.GLOBAL_BATCH
  assert training_job.fed_rows(moved) == later
  ends = [np.load(folder / "final.npz") for folder in (whole, moved)]
  assert ends[0].files == ends[1].files
  for name in ends[0].files:
    np.testing.assert_allclose(
      ends[1][name], ends[0][name], rtol=1e-4, atol=1e-6
    )


def test_another_config_is_refused(workdir):
  log = workdir / "config.txt"
  job = training_job.Job(
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
    training_job.Job(
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
  job = training_job.Job(
    workdir / "failed", 30, 2, log, each={1: {"fail_at_step": 7}}
  )
  assert job.wait(200) == [42, 1]
  words = last_words(log)
  assert "musiclm: clip 7 is broken" in words
  assert "musiclm: process 1 failed: clip 7 is broken" in words
