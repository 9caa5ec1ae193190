# SPDX-License-Identifier: Apache-2.0
"""The doctor of clusters: it finds faults, and names hosts and paths."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from musiclm_jax.cli import cluster_doctor
from musiclm_jax.cli import main as main_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
Finding = cluster_doctor.Finding


def test_a_healthy_machine_has_no_fault(tmp_path, capsys):
  report = tmp_path / "report.json"
  folder = tmp_path / "new" / "runs"
  argv = ["doctor", f"--path={folder}", "--path=memory://doctor/x"]
  argv += ["--min_free_gib=0.001", f"--json={report}"]
  assert main_lib.main(argv) == 0
  out = capsys.readouterr().out
  assert "no fault" in out and "FAULT" not in out
  rows = json.loads(report.read_text())["rows"]
  checks = {row["check"] for row in rows}
  for check in (
    "version of jax",
    "code",
    "devices",
    "sum over the mesh",
    f"disk under {folder}",
    f"read {folder}",
    f"clock against {folder}",
    "read memory://doctor/x",
  ):
    assert check in checks
  assert not list(folder.iterdir())


@pytest.mark.parametrize(
  "options, expected",
  [
    (["--num_devices=999"], "expected 999"),
    (["--path={tmp}", "--min_free_gib=1e9"], "GiB free"),
    (["--path={tmp}/file"], "FAULT  write"),
    (["--path=nosuchscheme://x"], "nosuchscheme"),
  ],
)
def test_faults_are_named_and_exit_1(options, expected, tmp_path, capsys):
  (tmp_path / "file").write_text("in the way")
  argv = [option.format(tmp=tmp_path) for option in options]
  assert main_lib.main(["doctor", *argv]) == 1
  out = capsys.readouterr().out
  (line,) = [line for line in out.splitlines() if line.startswith("FAULT")]
  assert expected in line
  assert "1 faults" in out


def test_hosts_that_differ_are_told_apart():
  same = [Finding("code", "aa", is_common=True), Finding("host", "big")]
  other = [
    Finding("code", "bb", is_common=True),
    Finding("host", "small", secs=2.0),
  ]
  table = cluster_doctor.rows([same, other, same])
  faults = [(row.text, row.processes) for row in table if not row.is_ok]
  assert faults == [("bb", (1,))]
  text = cluster_doctor.describe(table, ["h0", "h1", "h2"])
  assert "FAULT  code  bb  [process 1 (h1)]" in text
  assert "ok     code  aa  [process 0 (h0), 2 (h2)]" in text
  assert "small in 0.00 s" not in text and "small in 2.00 s" in text


def test_negative_limits_are_one_line(capsys):
  assert main_lib.main(["doctor", "--min_free_gib=-1"]) == 1
  assert "--min_free_gib=-1.0" in capsys.readouterr().err


def test_two_processes_find_what_they_do_not_share(tmp_path):
  # A relative folder, and each process starts in another place.
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  (tmp_path / "shared").mkdir()
  processes = []
  for index in range(2):
    folder = tmp_path / f"host{index}"
    folder.mkdir()
    processes.append(
      subprocess.Popen(
        [
          *(sys.executable, "-m", "musiclm_jax.cli.main", "doctor"),
          f"--path={tmp_path / 'shared'}",
          *("--path=own", "--num_devices=2", "--min_free_gib=0.001"),
          *(f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2"),
          f"--process_id={index}",
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
      )
    )
  outs = [process.communicate(timeout=280)[0] for process in processes]
  assert [process.returncode for process in processes] == [1, 1], outs
  faults = [x for x in outs[0].splitlines() if x.startswith("FAULT")]
  assert len(faults) == 2
  assert "shared own" in faults[0] and "no file of process 1" in faults[0]
  assert "no file of process 0" in faults[1]
  assert "2 of 2 devices answered" in outs[0]
  assert "2 processes, 2 faults" in outs[0]
