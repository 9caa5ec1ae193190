# SPDX-License-Identifier: Apache-2.0
"""Bulk generation: tables of captions, devices, kills, several processes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import small_bundle

from musiclm_jax.cli import jobs, prompt_files, prompt_flags
from musiclm_jax.cli import main as main_lib
from musiclm_jax.core import errors

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADER = (
  "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,"
  "is_balanced_subset,is_audioset_eval\n"
)
ROWS = [
  ("-abc", "slow piano, a ballad"),
  ("x_1", 'a ""loud"" brass band\nin the park'),
  ("y2", "drums"),
  ("z3", "a flute"),
  ("w4", "a choir of women"),
]


def table(rows=ROWS):
  lines = [
    f'{ytid},30,40,"/m/1,/m/2","[\'a\', \'b\']","{caption}",4,False,True\n'
    for ytid, caption in rows
  ]
  return HEADER + "".join(lines)


def arguments(bundle, prompts, folder, *flags):
  return [
    "generate",
    f"--bundle={bundle}",
    f"--prompts={prompts}",
    f"--output_dir={folder}",
    "--seconds=0.5",
    "--seed=3",
    "--num_samples=2",
    *flags,
  ]


def start(arguments, **environment):
  """The same in a process of its own."""
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    # As conftest.py has it here: other code has other last digits.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "PYTHONPATH": str(ROOT),
    **environment,
  }
  command = [sys.executable, "-m", "musiclm_jax.cli.main", *arguments]
  return subprocess.Popen(
    command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  )


def content(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(name="bundle", scope="module")
def _bundle(tmp_path_factory):
  return small_bundle.write(tmp_path_factory.mktemp("bundle"), ("mulan",))


@pytest.fixture(name="captions", scope="module")
def _captions(tmp_path_factory):
  path = tmp_path_factory.mktemp("captions") / "musiccaps.csv"
  path.write_text(table())
  return path


@pytest.fixture(name="unbroken", scope="module")
def _unbroken(bundle, captions, tmp_path_factory):
  folder = tmp_path_factory.mktemp("unbroken")
  flags = arguments(bundle, captions, folder, "--batch_size=4")
  assert main_lib.main(flags) == 0
  return folder


def test_every_row_of_a_table_is_made_and_listed(unbroken):
  lines = (unbroken / "manifest.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == 10
  assert len({record["file"] for record in records}) == 10
  first = records[0]
  assert first["file"] == "000_0_0.5s_slow_piano_a_ballad.wav"
  assert first["source"] == {"ytid": "-abc", "start_s": "30", "end_s": "40"}
  assert records[2]["prompt"] == 'a "loud" brass band in the park'
  # The first sample of a prompt has the seed it would have alone.
  assert [record["seed"] for record in records[::2]] == [3, 4, 5, 6, 7]
  assert len({record["seed"] for record in records}) == 10
  for record in records:
    sidecar = json.loads(
      (unbroken / record["file"]).with_suffix(".json").read_text()
    )
    assert -1 <= record["score"] <= 1
    assert record["score"] == sidecar["candidate"]["mulan_score"]
    assert record["weights"] == "float32"
    for name in ("sampling", "bundle_fingerprint", "versions", "seconds"):
      assert record[name] == sidecar[name]
  names = {path.name for path in unbroken.iterdir()}
  assert len(names) == 21 and "manifest.jsonl" in names


def test_kills_processes_devices_and_batches_change_nothing(
  bundle, captions, unbroken, tmp_path, capsys
):
  folder = tmp_path / "d"
  killed = start(arguments(bundle, captions, folder, "--batch_size=4"))
  until = time.monotonic() + 600
  while len(list(folder.glob("*.json"))) < 2:
    assert killed.poll() is None and time.monotonic() < until
    time.sleep(0.01)
  killed.send_signal(signal.SIGKILL)
  killed.communicate()
  assert not (folder / "manifest.jsonl").exists()
  finished = sorted(folder.glob("*.json"))
  # Half a sidecar, as of a disk that was pulled out.
  victim = finished.pop(0)
  victim.write_text("{")
  before = {path: path.stat().st_mtime_ns for path in finished}
  # What SIGKILL leaves of a file goes when it is surely nobody's any more.
  abandoned = folder / ".001_0_0.5s_a.wav.abcdefgh.writing"
  abandoned.write_bytes(b"RIFF")
  os.utime(abandoned, (0, 0))

  # Two go on: eight rows on eight devices, and one row at a time.
  devices = (
    f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
  )
  flags = arguments(bundle, captions, folder, "--batch_size=8")
  process = start(flags, XLA_FLAGS=devices)
  flags = arguments(bundle, captions, folder, "--batch_size=1")
  assert main_lib.main(flags) == 0
  assert len(capsys.readouterr().out.split(".wav\n")) == 11
  _, error = process.communicate(timeout=600)
  assert process.returncode == 0, error.decode()
  assert not abandoned.exists()
  for young in folder.glob(".*.writing"):
    young.unlink()
  assert content(folder) == content(unbroken)
  for path, when in before.items():
    assert path.stat().st_mtime_ns == when


def test_rows_may_have_lengths_and_seeds(tmp_path):
  path = tmp_path / "prompts.jsonl"
  rows = [
    {"prompt": "drums", "seconds": 2.5},
    {"prompt": "a flute", "seed": 11},
    {"prompt": "a choir", "seconds": 1, "seed": 0},
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  job = jobs.GenerateJob("b", prompts=str(path), prompt=("first",))
  asked = prompt_flags.asked(job)
  assert [one.prompt.text for one in asked[:2]] == ["first", "drums"]
  assert [one.seconds for one in asked] == [None, 2.5, None, 1]
  assert [one.seed for one in asked] == [None, None, 11, 0]


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "holds no prompts"),
    (HEADER, "holds no prompts"),
    ("ytid,text\na,b\n", "expected a header with the column 'caption'"),
    ("caption,caption\na,b\n", "has 'caption' twice"),
    (HEADER + "a,1,2,3\n", "line 2: 4 fields, expected the 9 of the header"),
    (table([("a", "  ")]), "line 2: the caption is empty"),
    (HEADER + 'a,1,2,l,"x,caption,4,F,F\n', "line 2: not a CSV file"),
    ("caption\n" + "x" * 200_000 + "\n", "not a CSV file: field larger"),
    (b"caption\n\xff\xfe\n", "is not UTF-8 text"),
    ("caption\na\0b\n", "it holds a NUL character"),
  ],
)
def test_bad_tables_are_one_line(bundle, tmp_path, capsys, text, message):
  path = tmp_path / "bad.csv"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  folder = tmp_path / "d"
  assert main_lib.main(arguments(bundle, path, folder)) == 1
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert message in line and str(path) in line
  assert not folder.exists()


@pytest.mark.parametrize(
  "row, message",
  [
    ('{"prompt": 5}', "prompt=5: expected a non-empty text"),
    ('{"prompt": "a", "seconds": 0}', "seconds=0: expected a positive"),
    ('{"prompt": "a", "seconds": "1"}', "seconds='1'"),
    ('{"prompt": "a", "seconds": NaN}', "seconds=nan"),
    ('{"prompt": "a", "seed": 1.5}', "seed=1.5: expected a whole number"),
    ('["a"]', "expected a JSON object"),
  ],
)
def test_bad_rows_are_user_errors(tmp_path, row, message):
  path = tmp_path / "bad.jsonl"
  path.write_text('{"prompt": "ok"}\n' + row + "\n")
  with pytest.raises(errors.UserError, match="bad.jsonl:2") as found:
    prompt_files.read_rows(path)
  assert message in str(found.value)
