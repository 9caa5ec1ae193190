# SPDX-License-Identifier: Apache-2.0
"""Evaluation by prompts from the command line: made, scored, gone on with."""

import argparse
import csv
import json
import shutil

import numpy as np
import pytest
import small_bundle

from musiclm_jax.audio import files
from musiclm_jax.cli import (
  ablation,
  evaluation_inputs,
  evaluation_jobs,
  gin_config,
  jobs,
  prompt_files,
)
from musiclm_jax.cli import main as main_lib
from musiclm_jax.core import errors
from musiclm_jax.evaluation import (
  clip_files,
  metric_card,
  musiccaps,
  run_comparison,
)

IDS = [f"id{index:09d}" for index in range(6)]
CAPTIONS = ["drums", "a flute", "slow piano", "a choir", "brass", "a harp"]
SECS = 0.5


def table(path, rows):
  with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(musiccaps.COLUMNS)
    for ytid, caption in rows:
      labels, aspects = "/m/04rlf", "['slow', 'sad']"
      writer.writerow([ytid, 30, 40, labels, aspects, caption, 4, True, True])
  return path


@pytest.fixture(name="world", scope="module")
def _world(tmp_path_factory):
  """A bundle, a table of six clips and audio of four of them."""
  root = tmp_path_factory.mktemp("world")
  small_bundle.write(root)
  table(root / "musiccaps.csv", zip(IDS, CAPTIONS))
  rng = np.random.default_rng(0)
  for index, ytid in enumerate(IDS[:4]):
    time = np.arange(8000) / 8000
    tone = np.sin(2 * np.pi * 220 * (index + 1) * time)
    waveform = 0.2 * tone + 0.02 * rng.standard_normal(8000)
    files.write_wav(root / "audio" / f"{ytid}.wav", waveform, 8000)
  return root


def flags(world, folder, verb="evaluate"):
  return [
    verb,
    f"--bundle={world}/bundle",
    f"--prompts={world}/musiccaps.csv",
    f"--reference={world}/audio",
    f"--output_dir={folder}",
    f"--seconds={SECS}",
    "--max_prompts=5",
    "--shard_size=2",
    "--batch_size=4",
  ]


@pytest.fixture(name="done", scope="module")
def _done(world, tmp_path_factory):
  folder = tmp_path_factory.mktemp("done")
  assert main_lib.main(flags(world, folder)) == 0
  return folder


def read(folder):
  return json.loads((folder / "prompt_evaluation.json").read_text())


def test_cards_tables_and_manifest(done):
  report = read(done)
  cards = {
    card["metric"]: metric_card.MetricCard.from_dict(card)
    for card in report["cards"]
  }
  assert {"FAD (mulan)", "KAD (mulan)", "MCC"} <= set(cards)
  # 5 of the 6 prompts were used, of a table that should have 5,521 rows.
  assert cards["MCC"].coverage == "5 of 5,521"
  assert cards["FAD (mulan)"].num_reference == 4
  assert any(
    "4 of 5,521 reference clips" in text
    for text in cards["FAD (mulan)"].warnings
  )
  assert report["num_items"] == 5 and report["num_expected"] == 5521
  assert [item["prompt"] for item in report["items"]] == CAPTIONS[:5]
  # The others are not made, but files are named as if they were.
  assert len((done / "prompts.jsonl").read_text().splitlines()) == 6
  pairs = [item["reference"] for item in report["items"]]
  assert pairs == [*(f"{ytid}.wav" for ytid in IDS[:4]), None]
  manifest = json.loads((done / "musiccaps.json").read_text())
  assert manifest["num_available"] == 4 and manifest["missing"] == IDS[4:]
  with open(done / "metrics.csv", newline="") as file:
    rows = {row["metric"]: row for row in csv.DictReader(file)}
  assert float(rows["MCC"]["value"]) == cards["MCC"].value
  with open(done / "items.csv", newline="") as file:
    assert len(list(csv.DictReader(file))) == 5
  assert all(one["secs"] >= 0 for one in report["timing"])
  rates = [one["clips_per_sec"] for one in report["timing"]]
  assert any(rate and rate > 0 for rate in rates)
  page = (done / "index.html").read_text()
  assert page.count("<audio") == 5 and "5 of 5,521" in page
  assert "http://" not in page and "<script" not in page


def test_what_is_missing_is_made_again(world, done, tmp_path, capsys):
  folder = tmp_path / "again"
  shutil.copytree(done, folder)
  before = read(folder)
  sample = folder / "samples" / before["items"][1]["file"]
  sample.unlink()
  shards = sorted(folder.glob("embeddings/*/*.npz"))
  assert len(shards) > 2
  shards[-1].unlink()
  (folder / "prompt_evaluation.json").unlink()
  assert main_lib.main(flags(world, folder)) == 0
  after = read(folder)
  assert after["items"] == before["items"] and sample.is_file()
  numbers = [(card["metric"], card["value"]) for card in after["cards"]]
  assert numbers == [(c["metric"], c["value"]) for c in before["cards"]]
  heard = [one for one in after["timing"] if one["what"].startswith("embed")]
  assert 0 < sum(one["num_clips"] for one in heard) < 9
  assert "MCC" in capsys.readouterr().out


def test_runs_are_compared(world, done, tmp_path, capsys):
  other, made = tmp_path / "other", tmp_path / "made"
  shutil.copytree(done / "samples", made)
  first, second = sorted(made.glob("*.wav"))[:2]
  first.write_bytes(second.read_bytes())
  arguments = [one for one in flags(world, other) if "bundle" not in one]
  arguments += [f"--samples_dir={made}", f"--embedder=mulan:{world}/bundle"]
  assert main_lib.main(arguments) == 0
  both = tmp_path / "both"
  runs = [f"--run={done}", f"--run={other}"]
  assert main_lib.main(["evaluate", *runs, f"--output_dir={both}"]) == 0
  table = json.loads((both / "comparison.json").read_text())
  assert table["runs"] == [done.name, "other"]
  (row,) = [row for row in table["metrics"] if row["name"] == "MCC"]
  assert [cell["differs"] for cell in row["cells"]] == [[], []]
  (paired,) = [one for one in table["paired"] if one["metric"] == "MCC"]
  means = [cell["value"] for cell in row["cells"]]
  assert means[1] != means[0]
  assert paired["mean"] == pytest.approx(means[1] - means[0])
  assert (both / "index.html").read_text().count("<audio") == 10
  assert (both / "comparison.csv").is_file()

  # Cards that mean something else are not put beside each other.
  report = read(other)
  for card in report["cards"]:
    card["embedder_fingerprint"] = "0" * 16
  (other / "prompt_evaluation.json").write_text(json.dumps(report))
  assert main_lib.main(["evaluate", *runs, f"--output_dir={both}"]) == 0
  table = json.loads((both / "comparison.json").read_text())
  assert not table["paired"]
  assert all(
    row["cells"][1]["differs"] == ["embedder_fingerprint"]
    for row in table["metrics"]
  )
  assert "differs in embedder_fingerprint" in capsys.readouterr().out


def test_how_clips_were_batched_keeps_nothing_from_being_compared(
  world, done, tmp_path
):
  other = tmp_path / "other"
  arguments = [one for one in flags(world, other) if "bundle" not in one]
  arguments += [f"--samples_dir={done / 'samples'}", "--embed_batch_size=1"]
  arguments += [f"--embedder=mulan:{world}/bundle"]
  assert main_lib.main(arguments) == 0
  first, second = (
    [metric_card.MetricCard.from_dict(card) for card in read(one)["cards"]]
    for one in (done, other)
  )
  assert [card.metric for card in first] == [card.metric for card in second]
  for one, again in zip(first, second):
    assert metric_card.differing_fields(one, again) == (), one.metric


def test_linked_samples_are_played(world, done, tmp_path):
  stored, linked = tmp_path / "stored", tmp_path / "linked"
  linked.mkdir()
  stored.mkdir()
  for path in (done / "samples").iterdir():
    if path.suffix == ".wav":
      shutil.copy(path, stored / f"blob_{path.stem[:3]}")
      (linked / path.name).symlink_to(stored / f"blob_{path.stem[:3]}")
    elif path.is_file():
      shutil.copy(path, linked)
  arguments = [one for one in flags(world, tmp_path) if "bundle" not in one]
  arguments += [f"--samples_dir={linked}", f"--embedder=mulan:{world}/bundle"]
  assert main_lib.main(arguments) == 0
  page = (tmp_path / "index.html").read_text()
  assert page.count("<audio") == 5 and "not there any more" not in page


def test_samples_of_other_prompts_are_refused(world, done, tmp_path, capsys):
  texts = tmp_path / "other.txt"
  texts.write_text("a banjo\na cello\n")
  arguments = ["evaluate", f"--samples_dir={done / 'samples'}"]
  arguments += [f"--prompts={texts}", f"--embedder=mulan:{world}/bundle"]
  assert main_lib.main([*arguments, f"--output_dir={tmp_path / 'out'}"]) == 1
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert "was made for 'drums', which is not in" in line


def test_names_of_reference_files_that_are_not_unique_find_none(tmp_path):
  names = ["one/01.wav", "two/01.wav", "two/02.wav", "two/02.mp3", "03.wav"]
  clips = [clip_files.of_path(tmp_path / name, name) for name in names]
  reference = evaluation_inputs.of_clips(clips)

  def found(clip_id):
    pair = reference.pair({"clip_id": clip_id})
    return pair and pair.name

  assert found("01") is None and found("02") is None
  assert found("one/01") == "one/01.wav" and found("two/01") == "two/01.wav"
  assert found("two/02") is None and found("two/02.mp3") == "two/02.mp3"
  assert found("03") == "03.wav"


def test_sources_in_sidecars_are_read_as_those_of_prompts(tmp_path):
  (tmp_path / "deep").mkdir()
  for name, source in (("a", "x1"), ("deep/a", {"ytid": ["a"]})):
    (tmp_path / f"{name}.wav").touch()
    about = {"prompt": "flute", "source": source}
    (tmp_path / f"{name}.json").write_text(json.dumps(about))
  nothing = evaluation_inputs.Prompts((), 0)
  with pytest.raises(errors.UserError, match="deep/a.wav: source=.*expected"):
    evaluation_inputs.read_samples([tmp_path], nothing)
  (tmp_path / "deep" / "a.json").write_text('{"prompt": "drums"}')
  samples = evaluation_inputs.read_samples([tmp_path], nothing)
  assert {one.clip.name: one.source for one in samples} == {
    "a.wav": {"clip_id": "x1"},
    "deep/a.wav": {},
  }


def test_prompts_may_hold_any_character_but_line_feeds(tmp_path):
  path = tmp_path / "prompts.jsonl"
  path.write_text('{"prompt": "slow\u2028piano"}\r\n{"prompt": "a\u0085b"}\n')
  prompts = [row.prompt for row in prompt_files.read_rows(path)]
  assert prompts == ["slow\u2028piano", "a\u0085b"]


def test_arms_change_what_they_say(world, tmp_path):
  arguments = flags(world, tmp_path, "ablate")
  arguments += ["--arm=audio tokens: condition=audio", "--max_prompts=2"]
  # Its coarse stage is not told semantic tokens.
  bundle = small_bundle.write(tmp_path / "other", num_semantic_codebooks=0)
  arguments += [f"--arm=no semantic: bundle={bundle} num_codebooks=1"]
  arguments += ["--metrics=text,diversity"]
  assert main_lib.main(arguments) == 0
  table = json.loads((tmp_path / "comparison.json").read_text())
  assert table["runs"] == ["base", "audio tokens", "no semantic"]
  arms = tmp_path / "arms"
  names = sorted(path.name for path in arms.iterdir())
  assert names == ["audio_tokens", "base", "no_semantic"]
  base, audio, one = (
    read(arms / name) for name in ("base", "audio_tokens", "no_semantic")
  )
  # The texts are the same, so that all arms are scored against them.
  texts = [[i["prompt"] for i in run["items"]] for run in (base, audio, one)]
  assert texts == [CAPTIONS[:2]] * 3
  keys = [[i["key"] for i in run["items"]] for run in (base, audio, one)]
  assert len({key for some in keys for key in some}) == 6
  (sidecar,) = (arms / "audio_tokens" / "samples").glob("000*.json")
  about = json.loads(sidecar.read_text())
  assert about["prompt_parts"][0]["audio"] == f"{IDS[0]}.wav"
  (sidecar,) = (arms / "no_semantic" / "samples").glob("000*.json")
  assert json.loads(sidecar.read_text())["num_codebooks"] == 1
  marks = [run["fingerprints"] for run in (base, one)]
  changed = [name for name in marks[0] if marks[0][name] != marks[1][name]]
  assert changed == ["stage_coarse"]


@pytest.mark.parametrize(
  "changes, message",
  [
    (["--prompts=hrd"], "sets by name: hard, ideas"),
    (["--reference=nowhere"], "no folder of audio at nowhere"),
    (["--embedder=vgg"], "expected KIND:PATH"),
    (["--embedder=mulan:nowhere"], "nowhere"),
    (["--metrics=fda"], "metric 'fda'"),
    (["--condition=sound"], "condition='sound': expected text or audio"),
    (["--subset=half"], "subset='half'"),
    (["--num_codebooks=99"], "num_codebooks=99: expected 1 to 3"),
    (["--samples_dir=x"], "expected one of --bundle and --samples_dir"),
    (["--run=x"], "expected two or more finished evaluations"),
    (["--memorization=none.json"], "no summary at none.json"),
    (["--corpus_dir=x"], "--corpus_dir belongs to the evaluation of"),
  ],
)
def test_bad_jobs_are_one_line(world, tmp_path, capsys, changes, message):
  folder = tmp_path / "out"
  assert main_lib.main([*flags(world, folder), *changes]) == 1
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert message in line
  assert not (folder / "samples").exists()


def _of_manifest(folder, prompts, missing=()):
  """Samples of a folder with a file for each prompt, some of them missing."""
  folder.mkdir()
  names = [f"{index}.wav" for index in range(len(prompts))]
  records = [
    json.dumps({"file": name, "prompt": prompt}) + "\n"
    for name, prompt in zip(names, prompts)
  ]
  (folder / "manifest.jsonl").write_text("".join(records))
  for name in set(names) - set(missing):
    (folder / name).touch()
  nothing = evaluation_inputs.Prompts((), 0)
  return evaluation_inputs.read_samples([folder], nothing)


def test_clips_keep_their_pairs_when_one_is_missing(tmp_path):
  prompts = ["flute", "flute", "drums", "flute"]
  whole = _of_manifest(tmp_path / "whole", prompts)
  less = _of_manifest(tmp_path / "less", prompts, ["1.wav"])
  assert [one.take for one in whole] == [0, 1, 0, 2]
  assert [one.take for one in less] == [0, 0, 2]
  keys = [
    run_comparison.item_keys(
      [{"prompt": one.text, "take": one.take} for one in samples]
    )
    for samples in (whole, less)
  ]
  assert keys[1] == [("flute", 0), ("drums", 0), ("flute", 2)]
  assert set(keys[1]) < set(keys[0])


@pytest.mark.parametrize("line", ['{"prompt": "flute"}', "[1]", "{", '{"file"'])
def test_bad_lines_of_a_manifest_are_named(tmp_path, line):
  _of_manifest(tmp_path / "made", ["flute"])
  with open(tmp_path / "made" / "manifest.jsonl", "a") as file:
    file.write(line + "\n")
  nothing = evaluation_inputs.Prompts((), 0)
  with pytest.raises(errors.UserError, match='jsonl:2: .* text "file"'):
    evaluation_inputs.read_samples([tmp_path / "made"], nothing)


def test_samples_of_unknown_clips_are_refused(world, tmp_path, capsys):
  made = tmp_path / "made"
  shutil.copytree(world / "audio", made)
  arguments = [
    "evaluate",
    f"--samples_dir={made}",
    f"--prompts={world}/musiccaps.csv",
    f"--embedder=mulan:{world}/bundle",
    f"--output_dir={tmp_path / 'out'}",
  ]
  # Files of another system, named by ytid.
  assert main_lib.main(arguments) == 0
  assert read(tmp_path / "out")["num_items"] == 4
  about = {"prompt": "x", "source": {"ytid": "unknown_id1"}}
  (made / f"{IDS[0]}.json").write_text(json.dumps(about))
  capsys.readouterr()
  assert main_lib.main(arguments) == 1
  assert "ytid='unknown_id1', which is not in the" in capsys.readouterr().err


@pytest.mark.parametrize(
  "arm, message",
  [
    ("--arm=x", "expected 'NAME: FIELD=VALUE"),
    ("--arm=x: seconds=long", "expected a number"),
    ("--arm=x: reference=y", "expected FIELD=VALUE with a field of bundle"),
    ("--arm=base: seed=1", "expected a name of its own"),
    ("--sweep=seed", "expected 'FIELD=VALUE;VALUE'"),
    ("--sweep=topk=1", "did you mean 'top_k'"),
  ],
)
def test_bad_arms_are_user_errors(arm, message):
  name, _, value = arm[2:].partition("=")
  job = evaluation_jobs.AblateJob(
    "out", bundle="b", prompts="p", **{name: (value,)}
  )
  with pytest.raises(errors.UserError, match=message):
    ablation.arms(job)


@pytest.mark.parametrize("verb", ["evaluate_prompts", "ablate"])
def test_flags_and_run_files_say_the_same(verb):
  name = jobs.ROOTS[verb].rpartition(".")[2]
  job = getattr(evaluation_jobs, name)

  def build(*argv):
    parser = argparse.ArgumentParser()
    jobs.add_arguments(parser, job)
    args = parser.parse_args(argv)
    args.gin_overrides = []
    return jobs.build(job, args)

  argv = ["--output_dir=o", "--bundle=b", "--prompts=p", "--reference=r"]
  by_gin = build(f"--gin_file=runs/{verb}.gin", *argv)
  assert by_gin == build(*argv)
  assert gin_config.binds([f"runs/{verb}.gin"], [], jobs.ROOTS[verb])
  assert not gin_config.binds(["runs/evaluate.gin"], [], jobs.ROOTS[verb])


def test_shipped_sets_can_be_read():
  for name in ("hard", "ideas", "score_corpus_test"):
    rows = prompt_files.read_rows(name)
    assert len({row.prompt for row in rows}) == len(rows) > 40
  kinds = {row.source["kind"] for row in prompt_files.read_rows("hard")}
  assert {"negation", "temporal_order", "many_instruments"} <= kinds
