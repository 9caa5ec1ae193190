# SPDX-License-Identifier: Apache-2.0
"""`musiclm memorization`: planted clips are found, kills lose nothing."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import planted_clips
import pytest
import small_bundle
import tokenizer_artifacts as small

from musiclm_jax.audio import files
from musiclm_jax.cli import main as main_lib
from musiclm_jax.cli import memorization_audit, memorization_search
from musiclm_jax.core import errors
from musiclm_jax.data import token_cache, token_cache_writer
from musiclm_jax.systems import bundle

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_PLANTED = 8
# The crop of the small stage has 50 tokens, fewer than the paper's 125.
PROMPTS = "--prompt_tokens=0,250"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Folder with a cache of planted clips and a bundle that knows them."""
  root = tmp_path_factory.mktemp("memorization")
  small_bundle.write(root)
  planted_clips.write_cache(
    root / "tokens", root / "bundle", {"train": NUM_PLANTED, "test": 6}
  )
  stage = root / "artifacts" / "stage_semantic"
  # The first token is a guess: clips share their MuLan codes here.
  assert planted_clips.train(root / "tokens", stage) > 0.98
  parts = {name: root / "artifacts" / name for name in bundle.PARTS}
  bundle.write_bundle(root / "bundle", parts)
  return root


def _arguments(made, output, *more):
  return [
    "memorization",
    f"--bundle={made / 'bundle'}",
    f"--cache_dir={made / 'tokens'}",
    f"--output_dir={output}",
    PROMPTS,
    "--num_shown=2",
    *more,
  ]


def test_planted_clips_are_found_and_unseen_ones_are_not(
  made, tmp_path, capsys
):
  gate = "--max_exact=0.002"
  assert main_lib.main(_arguments(made, tmp_path / "train", gate)) == 1
  report = json.loads((tmp_path / "train" / "memorization.json").read_text())
  rows = {row["prompt_tokens"]: row for row in report["curve"]}
  assert list(rows) == [0, 25]
  assert rows[25]["num_exact"] == rows[25]["num_examples"] == NUM_PLANTED
  assert report["protocol"]["continuation_tokens"] == 25
  assert "prompts of 250 tokens are cut to 25" in report["protocol"]["notes"][1]
  matches = (tmp_path / "train" / "matches.jsonl").read_text().splitlines()
  found = [json.loads(line) for line in matches]
  assert {one["clip_id"] for one in found} == {
    f"train/{index}" for index in range(NUM_PLANTED)
  }
  assert found[0]["generated"] == found[0]["target"]
  error = capsys.readouterr().err.strip().splitlines()
  assert len(error) == 1 and "exact matches (8 of 8" in error[0]
  page = (tmp_path / "train" / "index.html").read_text()
  assert [one["clip_id"] in page for one in found[:3]] == [True, True, False]
  assert "http" not in page

  # 8 clips make too few pairs to show 0.01 %: said, and the check counts.
  calibration = report["calibration"]
  assert calibration["num_pairs_needed"] == 29_958
  assert "permuted pairs set the threshold" in calibration["warnings"][0]

  assert (
    main_lib.main(_arguments(made, tmp_path / "test", "--split=test", gate))
    == 0
  )
  unseen = json.loads((tmp_path / "test" / "memorization.json").read_text())
  assert all(row["num_exact"] == 0 for row in unseen["curve"])


def test_killed_audit_ends_as_an_unbroken_one_on_one_device(made, tmp_path):
  # The last one counts: one length, one program.
  more = ("--part_size=1", "--prompt_tokens=25", "--num_control_pairs=100")
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  assert main_lib.main(_arguments(made, whole, *more)) == 0
  process = subprocess.Popen(
    [sys.executable, "-m", "musiclm_jax.cli.main"]
    + _arguments(made, killed, *more),
    env=os.environ
    | {
      "PYTHONPATH": str(ROOT),
      # Two devices: what comes out of a row must not depend on them.
      "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    },
  )
  try:
    while len(list((killed / "parts").glob("part-*"))) < 2:
      assert process.poll() is None
      time.sleep(0.01)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  done = {path.name for path in (killed / "parts").glob("part-*")}
  assert 2 <= len(done) < NUM_PLANTED
  before = {name: (killed / "parts" / name).stat().st_mtime_ns for name in done}
  assert main_lib.main(_arguments(made, killed, *more)) == 0
  for name, time_ns in before.items():
    assert (killed / "parts" / name).stat().st_mtime_ns == time_ns
  reports = [
    json.loads((folder / "memorization.json").read_text())
    for folder in (whole, killed)
  ]
  for key in ("curve", "matches"):
    np.testing.assert_equal(*(_rounded(report[key]) for report in reports))
  clips = [
    np.load(path)["clip_ids"].tolist()
    for path in sorted((killed / "parts").glob("part-*.npz"))
  ]
  assert sorted(sum(clips, [])) == sorted(
    f"train/{index}" for index in range(NUM_PLANTED)
  )

  # Parts of other settings are not mixed with these.
  with pytest.raises(errors.UserError, match="holds an audit with seed=0"):
    main_lib.run(_arguments(made, killed, *more, "--seed=1"))
  next((killed / "parts").glob("part-*")).write_bytes(b"not numpy")
  with pytest.raises(errors.UserError, match="damaged part"):
    main_lib.run(_arguments(made, killed, *more))


def _rounded(value):
  """Costs are computed in batches; the last digits are theirs."""
  if isinstance(value, dict):
    return {name: _rounded(one) for name, one in value.items()}
  if isinstance(value, list):
    return [_rounded(one) for one in value]
  return round(value, 3) if isinstance(value, float) else value


def test_lengths_are_those_a_stage_was_trained_on():
  fit = memorization_audit.fit_lengths
  assert fit("0,250,100", 125, 750) == ([0, 100, 250], 125, [])
  lengths, frames, notes = fit("0,50,150,250", 125, 250)
  assert (lengths, frames) == ([0, 50, 125], 125)
  assert "150, 250 tokens are cut to 125" in notes[0]
  lengths, frames, notes = fit("0,250", 125, 75)
  assert (lengths, frames) == ([0, 38], 37)
  assert "continuations have 37 tokens, not 125" in notes[0]
  for text in ("", "1,x", "-5"):
    with pytest.raises(errors.UserError, match="--prompt_tokens"):
      fit(text, 125, 250)


def test_bad_calls_are_one_line(made, tmp_path):
  for more, message in (
    (["--part_size=0"], "--part_size=0"),
    (["--max_exact=-1"], "--max_exact"),
    (["--split=nothing"], "split 'nothing'"),
    (["search"], "--generated"),
  ):
    with pytest.raises(errors.UserError, match=message):
      main_lib.run(_arguments(made, tmp_path / "out", *more))
  other = tmp_path / "other"
  shutil.copytree(made / "tokens", other)
  header = json.loads((other / "cache.json").read_text())
  header["config"]["fingerprints"]["semantic"] = "0" * 16
  (other / "cache.json").write_text(json.dumps(header))
  with pytest.raises(errors.UserError, match="semantic behind the token cache"):
    main_lib.run(_arguments(made, tmp_path / "out", f"--cache_dir={other}"))


def test_copies_of_training_audio_are_flagged(made, tmp_path, capsys):
  # Training clips are tokenized audio here; one comes back as a result.
  sounds = tmp_path / "generated"
  sounds.mkdir()
  for number in range(3):
    files.write_wav(
      sounds / f"{number}.wav", small.music(2.0, number), small.RATE_HZ
    )
  (sounds / "broken.wav").write_text("no audio")
  opened = bundle.open_bundle(made / "bundle")
  config = token_cache.read_config(made / "tokens")
  paths = sorted(sounds.glob("?.wav"))
  queries, skipped = memorization_search.embed_files(opened, config, paths)
  assert not skipped and [len(q.tokens) for q in queries] == [50] * 3

  cache = tmp_path / "tokens"
  reader = token_cache.TokenCacheReader(made / "tokens")
  writer = token_cache_writer.TokenCacheWriter(
    cache, config, reader.mulan_codebooks
  )
  copied = token_cache.CachedClip(
    "copied",
    {
      "semantic": queries[1].tokens[:, None],
      token_cache.EMBEDDINGS: queries[1].embeddings,
    },
  )
  clips = {"train": [*list(reader["train"]), copied], "test": []}
  clips["test"] = [
    dataclasses.replace(copied, clip_id="held", arrays=_of(queries[2]))
  ]
  for split, found in clips.items():
    for shard in writer.pending(split, len(found)):
      writer.write_shard(shard, found[shard.start : shard.end])
  writer.finish({split: len(found) for split, found in clips.items()})

  code = main_lib.main(
    [
      *("memorization", "search", f"--bundle={made / 'bundle'}"),
      *(f"--cache_dir={cache}", f"--output_dir={tmp_path / 'report'}"),
      *(f"--generated={sounds}", "--ngram=8"),
    ]
  )
  assert code == 1  # one file is no audio; the others are done
  report = json.loads(
    (tmp_path / "report" / "memorization_search.json").read_text()
  )
  assert [pathlib.Path(one["path"]).name for one in report["skipped"]] == [
    "broken.wav"
  ]
  worst = report["files"][0]
  assert pathlib.Path(worst["file"]).name == "1.wav"
  assert worst["flagged"] == ["mulan", "tokens"]
  run, near = worst["tokens"][0], worst["mulan"][0]
  assert (run["clip_id"], run["run_tokens"]) == ("copied", 50)
  assert run["containment"] == 1.0 and run["start_secs"] == 0.0
  assert near["clip_id"] == "copied" and near["cosine"] > 0.9999
  assert report["num_flagged"] < len(report["files"])
  page = (tmp_path / "report" / "index.html").read_text()
  assert "copied" in page and "../generated/1.wav" in page
  assert "1.wav: run 50 tokens of copied" in capsys.readouterr().out


def _of(query):
  return {
    "semantic": query.tokens[:, None],
    token_cache.EMBEDDINGS: query.embeddings,
  }


@pytest.mark.parametrize("most", [1, 40, 1 << 24])
def test_products_of_windows_are_those_of_each_query(most, monkeypatch):
  monkeypatch.setattr(memorization_search, "_MAX_COSINES", most)
  rng = np.random.default_rng(0)
  windows = rng.normal(size=(8, 4)).astype(np.float32)
  queries = [
    memorization_search.Query(
      str(number), np.zeros(0, np.int64), rng.normal(size=(count, 4))
    )
    for number, count in enumerate((2, 0, 3, 9, 1))
  ]
  found = dict(memorization_search._cosines(queries, windows))
  assert list(found) == [0, 2, 3, 4]
  for number, cosines in found.items():
    np.testing.assert_allclose(
      cosines, queries[number].embeddings @ windows.T, rtol=1e-6
    )


def test_search_keeps_the_highest_and_the_first_of_equal_ones():
  best = memorization_search._Best(1, 2)
  for clip, score in enumerate((1.0, 3.0, 3.0, 2.0)):
    best.add(0, score, clip, (clip, 0))
  assert best.scores.tolist() == [[3.0, 3.0]]
  assert best.clips.tolist() == [[1, 2]]
  assert best.places[0, :, 0].tolist() == [1, 2]
