# SPDX-License-Identifier: Apache-2.0
"""Beam builds the same corpora. Runs where apache-beam is installed."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
import tunes

from musiclm_jax.audio import files
from musiclm_jax.data import corpora

pytest.importorskip("apache_beam")

_RATE_HZ = 16_000


def _tune(seed):
  return tunes.tune(seed, 6.0, _RATE_HZ)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("songs")
  (root / "sub").mkdir()
  for seed in range(9):
    soundfile.write(root / f"sub/{seed}.flac", _tune(seed), _RATE_HZ)
  soundfile.write(root / "copy.ogg", _tune(4), _RATE_HZ)
  samples, _ = soundfile.read(root / "sub/5.flac", dtype="int16")
  soundfile.write(root / "same.wav", samples, _RATE_HZ)
  medleys = [np.concatenate([_tune(20), _tune(seed)]) for seed in (21, 22)]
  for index, waveform in enumerate(medleys):
    soundfile.write(root / f"medley{index}.wav", waveform, _RATE_HZ)
  (root / "broken.mp3").write_text("no")
  return root


def _beam_config():
  from apache_beam.options import pipeline_options
  from apache_beam.runners.portability import fn_api_runner

  return tfds.download.DownloadConfig(
    # The default one tries to download a runner first.
    beam_runner=fn_api_runner.FnApiRunner(),
    beam_options=pipeline_options.PipelineOptions([]),
  )


def _by_beam(corpus, data_dir, **settings):
  module = corpora.load_builder_module(corpus)
  builder = module.Builder(
    config=module.Builder.builder_config_cls(
      name="beam", description="By Beam.", use_beam=True, **settings
    ),
    data_dir=str(data_dir),
  )
  builder.download_and_prepare(download_config=_beam_config())
  return pathlib.Path(builder.data_dir)


def _examples(path):
  builder = tfds.builder_from_directory(path)
  return {
    split: [
      {key: np.asarray(value).tolist() for key, value in example.items()}
      for example in builder.as_data_source(split)
    ]
    for split in builder.info.splits
  }


def test_audio_folder_is_the_same_by_beam(folder, tmp_path):
  settings = {"validation_fraction": 0.3, "segment_secs": 3.0}
  here = corpora.prepare_audio_folder(
    tmp_path / "here", folder, num_processes=1, **settings
  )
  there = _by_beam(
    "audio_folder", tmp_path / "there", source_dir=str(folder), **settings
  )
  examples = _examples(here)
  assert sum(map(len, examples.values())) > 20
  assert _examples(there) == examples
  reports = [
    json.loads((path.parent / "doctor.json").read_text())
    for path in (here, there)
  ]
  assert reports[0] == reports[1]
  assert reports[1]["counts"]["near_duplicate"] == 1
  assert reports[1]["counts"]["duplicate"] == 1
  assert len(reports[1]["groups"]) == 2


def test_failing_plan_fails_the_build(folder, tmp_path):
  with pytest.raises(Exception, match="1 of 14 files.*broken.mp3"):
    _by_beam(
      "audio_folder",
      tmp_path,
      source_dir=str(folder),
      near_duplicates=False,
      max_bad_fraction=0.01,
    )
  text = (tmp_path / "audio_folder/beam/doctor.txt").read_text()
  assert "near duplicates were not looked for" in text


def test_score_corpus_is_the_same_by_beam(tmp_path):
  module = corpora.load_builder_module("score_corpus")
  config = module.ScoreCorpusConfig(
    name="here", description="Here.", size="tiny", share=0.02
  )
  here = corpora._build(
    module.Builder(config=config, data_dir=str(tmp_path), num_processes=1)
  )
  there = _by_beam("score_corpus", tmp_path / "b", size="tiny", share=0.02)
  examples, others = _examples(here), _examples(there)
  assert [len(examples[split]) for split in ("train", "test")] == [4, 3]
  for split, expected in examples.items():
    for one, other in zip(expected, others[split], strict=True):
      # The synthesizer itself differs in a few samples (CARD.md).
      waveforms = [files.decode_audio(x.pop("audio"))[0] for x in (one, other)]
      error = np.sqrt(np.mean(np.square(waveforms[0] - waveforms[1])))
      assert error < 1e-3 < np.sqrt(np.mean(np.square(waveforms[0])))
      assert one == other


def test_share_of_a_size():
  plans = corpora.load_builder_module("score_corpus").plans
  few = plans.get_size("tiny", 0.1)
  assert few.counts["chorale"] == 8 and few.num_train_clips == 20
  assert few.clip_secs == plans.SIZES["tiny"].clip_secs
  assert plans.get_size("tiny") == dataclasses.replace(plans.SIZES["tiny"])
  with pytest.raises(ValueError, match="share=0"):
    plans.get_size("tiny", 0.0)
