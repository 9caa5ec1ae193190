# SPDX-License-Identifier: Apache-2.0
"""The whole path with a few optimizer steps per part, killed on the way.

Numbers mean nothing at this length; that every part fits the next, survives
SIGKILL and leaves what it promises does.
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import soundfile

from musiclm_jax.cli import main as main_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _environment():
  return {**os.environ, "JAX_PLATFORMS": "cpu"}


def _start(workdir, log):
  return subprocess.Popen(
    [
      sys.executable,
      *("-m", "musiclm_jax.cli.main", "quickstart"),
      *(f"--workdir={workdir}", "--step_scale=0.004", "--num_prompts=3"),
      "--corpus_share=0.2",
    ],
    stdout=log,
    stderr=subprocess.STDOUT,
    cwd=ROOT,
    env=_environment(),
  )


def _pids_below(workdir):
  """Processes whose command line names the working directory."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
      text = path.read_bytes().decode(errors="replace")
    except OSError:
      continue
    if str(workdir) in text:
      found.append(int(path.parent.name))
  return found


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A quickstart killed twice at random moments, then run to its end."""
  root = tmp_path_factory.mktemp("quickstart")
  rng = random.Random(0)
  with (root / "out.txt").open("w") as log:
    for _ in range(2):
      process = _start(root, log)
      time.sleep(rng.uniform(25, 60))
      process.send_signal(signal.SIGKILL)
      process.wait()
      time.sleep(2)
      assert _pids_below(root) == [], "steps outlived the killed run"
    process = _start(root, log)
    assert process.wait(timeout=1500) == 0, (root / "out.txt").read_text()
  return root


def test_leaves_what_it_promises(workdir):
  summary = json.loads((workdir / "summary.json").read_text())
  assert [step["name"] for step in summary["steps"]][-1] == "report"
  assert summary["peak_memory_bytes"] < 8e9
  assert list(summary["codec"]["log_mel_distance"]) == [
    "1",
    "2",
    "4",
    "8",
    "12",
  ]
  assert len(summary["codec"]["codebook_usage"]) == 12
  for direction in ("text_to_audio", "audio_to_text"):
    keys = {"recall_at_1", "recall_at_10", "chance_at_10", "num_items"}
    assert keys <= set(summary["mulan"][direction])
  for stage in ("semantic", "coarse", "fine"):
    for model in ("heldout", "unigram", "bigram"):
      assert summary["stages"][stage][f"{model}_cross_entropy"] > 0
  for kind in ("matched", "shuffled"):
    assert {"mean", "low", "high"} <= set(summary["mcc"][kind])
  assert {"soundstream", "semantic", "mulan"} <= set(summary["fingerprints"])
  for sample in summary["samples"]:
    info = soundfile.info(workdir / sample["file"])
    assert (info.samplerate, info.channels) == (24000, 1)
    assert info.frames == round(sample["seconds"] * 24000)
  assert sorted(s["seconds"] for s in summary["samples"]) == [10, 10, 10, 30]


def test_page_needs_no_network(workdir):
  page = (workdir / "report" / "index.html").read_text()
  assert not re.search(r"""(?:src|href)=["']https?:""", page)
  for source in re.findall(r"""<audio[^>]*src=["']([^"']+)""", page):
    assert (workdir / "report" / source).is_file()


def test_second_run_redoes_nothing(workdir):
  before = {
    path: path.stat().st_mtime_ns
    for path in workdir.rglob("*.wav")
    if "samples" in path.parts
  }
  with (workdir / "again.txt").open("w") as log:
    start = time.monotonic()
    assert _start(workdir, log).wait(timeout=120) == 0
    assert time.monotonic() - start < 60
  assert "starting" not in (workdir / "again.txt").read_text()
  assert {path: path.stat().st_mtime_ns for path in before} == before


def test_same_seed_gives_the_same_file(workdir, tmp_path):
  summary = json.loads((workdir / "summary.json").read_text())
  sample = next(s for s in summary["samples"] if s["seconds"] == 10)
  argv = [
    *("generate", f"--bundle={workdir / 'bundle'}", "--seconds=10"),
    *(f"--prompt={sample['prompt']}", f"--seed={sample['seed']}"),
    f"--output={tmp_path / 'a.wav'}",
  ]
  command = [sys.executable, "-m", "musiclm_jax.cli.main", *argv]
  subprocess.run(command, cwd=ROOT, env=_environment(), check=True)
  again, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
  first, _ = soundfile.read(workdir / sample["file"], dtype="int16")
  assert (again == first).mean() > 0.999


def test_swapped_artefact_is_refused(workdir, tmp_path, capsys):
  bundle = tmp_path / "bundle"
  shutil.copytree(workdir / "bundle", bundle)
  weights = bundle / "soundstream" / "weights.safetensors"
  content = bytearray(weights.read_bytes())
  content[-1] ^= 1
  weights.write_bytes(content)
  argv = [
    *("generate", f"--bundle={bundle}", "--prompt=a flute"),
    f"--output={tmp_path / 'b.wav'}",
  ]
  assert main_lib.main(argv) == 1
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert len(set(re.findall(r"\b[0-9a-f]{16}\b", error))) == 2
  assert not (tmp_path / "b.wav").exists()


def test_bad_audio_folder_is_one_line(tmp_path, capsys):
  source = tmp_path / "music"
  source.mkdir()
  (source / "note.wav").write_text("this is not audio")
  (source / "empty.wav").write_bytes(b"")
  code = main_lib.main(
    [
      *("prepare", "audio_folder", f"--source_dir={source}"),
      f"--data_dir={tmp_path / 'data'}",
    ]
  )
  assert code == 1
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("musiclm: ") and "bad" in error
