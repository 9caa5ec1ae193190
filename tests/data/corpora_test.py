# SPDX-License-Identifier: Apache-2.0
"""Builders end to end: built, read back, built again, refused."""

import dataclasses
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from musiclm_jax.core import errors
from musiclm_jax.data import corpora, worker_pool


def _write(path, hz, secs=2.0, rate=16_000):
  path.parent.mkdir(parents=True, exist_ok=True)
  times = np.arange(round(secs * rate)) / rate
  soundfile.write(path, 0.3 * np.sin(2 * np.pi * hz * times), rate)


@pytest.fixture(scope="module")
def few_works():
  """The builder with a size of a handful of works."""
  module = corpora.load_builder_module("score_corpus")
  module.plans.SIZES["few"] = dataclasses.replace(
    module.plans.SIZES["tiny"],
    counts={"chorale": 3, "fiddle": 3, "folk": 2},
    num_train_clips=6,
    num_test_works=2,
    num_validation_works=1,
    num_test_arrangements=2,
    clip_secs=1.0,
  )
  yield module
  del module.plans.SIZES["few"]


def _build_few(module, data_dir, num_processes):
  config = module.ScoreCorpusConfig(name="few", description="Few works.")
  return corpora._build(
    module.Builder(
      config=config, data_dir=str(data_dir), num_processes=num_processes
    )
  )


def test_score_corpus_builds_the_same_with_any_number_of_processes(
  few_works, tmp_path
):
  one = _build_few(few_works, tmp_path / "one", 1)
  two = _build_few(few_works, tmp_path / "two", 2)
  assert one == tmp_path / "one/score_corpus/few/1.1.0"
  sources = [tfds.builder_from_directory(path) for path in (one, two)]
  num_examples = {
    name: split.num_examples for name, split in sources[0].info.splits.items()
  }
  assert num_examples == {"train": 6, "validation": 1, "test": 4}
  works = {}
  for split in num_examples:
    left, right = (source.as_data_source(split) for source in sources)
    assert [dict(x) for x in left] == [dict(x) for x in right]
    works[split] = {example["work_id"] for example in left}
  assert not works["train"] & works["test"]
  assert not works["train"] & works["validation"]
  example = sources[0].as_data_source("test")[3]
  waveform, rate = soundfile.read(io.BytesIO(example["audio"]))
  assert (len(waveform), rate) == (24_000, example["sample_rate_hz"])
  assert example["num_samples"] == 24_000
  assert len(example["captions"]) == 5 and len(example["aspects"]) >= 10


def test_killed_build_starts_over_and_a_built_one_is_kept(few_works, tmp_path):
  leftover = tmp_path / "score_corpus/few/incomplete.ABC123_1.1.0"
  leftover.mkdir(parents=True)
  (leftover / "score_corpus-train.array_record-00000-of-00001").touch()
  path = _build_few(few_works, tmp_path, 1)
  assert not leftover.exists()
  before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
  assert _build_few(few_works, tmp_path, 1) == path
  assert before == {file: file.stat().st_mtime_ns for file in path.iterdir()}


def test_audio_folder_with_captions(tmp_path):
  source = tmp_path / "My Songs"
  for i in range(6):
    _write(source / f"album{i % 2}/{i}.wav", 200 + 50 * i)
  (source / "broken.flac").write_text("no")
  captions = tmp_path / "captions.csv"
  captions.write_text("file,caption\nalbum0/0.wav,a low tone\nnone.wav,x\n")
  path = corpora.prepare_audio_folder(
    tmp_path / "out",
    source,
    captions=captions,
    segment_secs=1.0,
    num_processes=2,
    max_bad_fraction=0.2,
  )
  assert path.parent.name.startswith("my_songs_")
  builder = tfds.builder_from_directory(path)
  assert set(builder.info.splits) == {"train", "validation", "test"}
  examples = [x for s in builder.info.splits for x in builder.as_data_source(s)]
  assert len(examples) == 12
  by_id = {example["id"].decode(): example for example in examples}
  assert by_id["album0/0.wav#1"]["captions"] == [b"a low tone"]
  assert by_id["album1/1.wav#0"]["captions"] == []
  assert by_id["album1/1.wav#0"]["num_samples"] == 24_000
  text = (path.parent / "doctor.txt").read_text()
  assert "broken.flac" in text and "1 of 7 files have captions" in text
  assert "'none.wav'" in text
  again = corpora.prepare_audio_folder(
    tmp_path / "out",
    source,
    captions=captions,
    segment_secs=1.0,
    max_bad_fraction=0.2,
  )
  assert again == path


def test_a_folder_of_links_changes_with_their_targets(tmp_path):
  source, target = tmp_path / "songs", tmp_path / "elsewhere.wav"
  _write(target, 300)
  source.mkdir()
  (source / "a.wav").symlink_to(target)
  (source / "broken.wav").symlink_to(tmp_path / "none.wav")
  (source / "loop.wav").symlink_to(source / "loop.wav")
  settings = {"captions": ""}
  before = corpora._folder_name(source, settings)
  assert corpora._folder_name(source, settings) == before
  _write(target, 300, secs=3.0)
  assert corpora._folder_name(source, settings) != before


def test_audio_folder_keeps_a_parent_work_in_one_split(tmp_path):
  source = tmp_path / "songs"
  for i in range(8):
    _write(source / f"work{i // 2}/{i}.wav", 200 + 50 * i)
  path = corpora.prepare_audio_folder(
    tmp_path / "out", source, num_processes=1, work_from="folder"
  )
  builder = tfds.builder_from_directory(path)
  seen = {}
  for split in builder.info.splits:
    for example in builder.as_data_source(split):
      seen.setdefault(example["work_id"], []).append(split)
  assert sorted(seen) == [b"work0", b"work1", b"work2", b"work3"]
  assert all(len(set(splits)) == 1 for splits in seen.values())
  assert all(len(splits) == 2 for splits in seen.values())


def test_audio_folder_with_too_many_bad_files_fails_with_a_report(tmp_path):
  source = tmp_path / "songs"
  _write(source / "good.wav", 300)
  (source / "bad.wav").write_text("no")
  with pytest.raises(errors.UserError, match="1 of 2 files.*bad.wav"):
    corpora.prepare_audio_folder(tmp_path / "out", source, num_processes=1)
  reports = list((tmp_path / "out").rglob("doctor.txt"))
  assert len(reports) == 1 and str(source) in reports[0].read_text()
  assert not list((tmp_path / "out").rglob("dataset_info.json"))


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda d: corpora.prepare_score_corpus(d, "tinny"), "did you mean 'tiny'"),
    (lambda d: corpora.load_builder_module("score_corps"), "score_corpus"),
    (lambda d: corpora.find_builder_dir(d), "no corpus builders"),
    (lambda d: corpora.prepare_audio_folder(d, d / "x"), "no folder"),
  ],
)
def test_user_errors_are_named(tmp_path, call, message):
  with pytest.raises(errors.UserError, match=message):
    call(tmp_path)


def test_audio_folder_options_are_checked(tmp_path):
  _write(tmp_path / "s/a.wav", 300)
  for options, message in (
    ({"work_form": "folder"}, "did you mean 'work_from'"),
    ({"work_from": "file"}, "work_from='file'"),
    ({"test_fraction": 1.5}, "test_fraction=1.5"),
    ({"captions": tmp_path / "none.csv"}, "no captions file"),
  ):
    with pytest.raises(errors.UserError, match=message):
      corpora.prepare_audio_folder(tmp_path, tmp_path / "s", **options)


def test_pool_names_the_job_that_failed():
  results = dict(worker_pool.run(os.path.basename, ["a/b", "c/d"], 2))
  assert results == {0: "b", 1: "d"}
  with pytest.raises(RuntimeError, match="job 1 of basename"):
    list(worker_pool.run(os.path.basename, ["a/b", 5, "c"], 2))
  with pytest.raises(RuntimeError, match="died"):
    list(worker_pool.run(os._exit, [3, 3], 2))


def test_workers_do_not_import_tensorflow():
  code = (
    "import sys, importlib\n"
    "from musiclm_jax.data import corpora, worker_pool\n"
    "worker_pool.register_package('b', [str(corpora.find_builder_dir())])\n"
    "importlib.import_module('b.score_corpus.jobs')\n"
    "importlib.import_module('b.audio_folder.segments')\n"
    "sys.exit('tensorflow' in sys.modules or 'seqio' in sys.modules)\n"
  )
  environment = {**os.environ, "PYTHONPATH": os.getcwd()}
  subprocess.run([sys.executable, "-c", code], check=True, env=environment)
