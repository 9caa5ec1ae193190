# SPDX-License-Identifier: Apache-2.0
"""Batches: the same on any number of hosts and after any restart."""

import importlib.util
import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import seqio
import tensorflow as tf

from musiclm_jax.core import errors, stages, vocabularies
from musiclm_jax.data import loader, tasks, text_vocabulary

_SPEC = importlib.util.spec_from_file_location(
  "data_fixtures", pathlib.Path(__file__).with_name("conftest.py")
)
fixtures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fixtures)

_COARSE = stages.coarse_stage(3, 2, 1.0)


@pytest.fixture(name="recipe")
def _recipe(small_corpus) -> tasks.Recipe:
  return tasks.waveform_recipe(
    tasks.WaveformTaskConfig(
      (small_corpus,), 8000, 0.5, peak=0.9, min_gain_db=-6.0
    )
  )


@pytest.fixture(name="stage_recipe")
def _stage_recipe(small_cache) -> tasks.Recipe:
  return tasks.stage_recipe(tasks.StageTaskConfig((small_cache,), _COARSE))


def _take(batches, count):
  return list(itertools.islice(batches, count))


def _hashes(data, start, count, num_hosts):
  hosts = [
    _take(data.train_batches(start, host, num_hosts), count)
    for host in range(num_hosts)
  ]
  return [loader.batch_hash(rows) for rows in zip(*hosts, strict=True)]


@pytest.mark.parametrize("kind", ["recipe", "stage_recipe"])
def test_batches_are_equal_on_all_host_counts_and_after_restart(kind, request):
  recipe = request.getfixturevalue(kind)
  data = loader.Loader(recipe, 8, seed=3)
  whole = _hashes(data, 0, 5, 1)
  assert len(set(whole)) == 5
  assert _hashes(data, 0, 5, 2) == whole
  again = loader.Loader(recipe, 8, seed=3)
  assert _hashes(again, 1, 4, 4) == whole[1:]
  assert _hashes(again, 3, 2, 1) == whole[3:]
  assert _hashes(loader.Loader(recipe, 8, seed=4), 0, 1, 1)[0] not in whole
  # Far into training a batch costs no replay.
  assert len(_hashes(data, 10**9, 1, 1)) == 1


def test_an_epoch_has_every_clip_once_with_new_crops(recipe):
  data = loader.Loader(recipe, 1, seed=0)
  rows = _take(data.train_batches(), 26)
  ids = [int(row["example_ids"][0]) for row in rows]
  assert sorted(ids[:13]) == sorted(ids[13:]) == list(range(13))
  assert ids[:13] != ids[13:]
  by_id = dict(zip(ids[:13], rows[:13], strict=True))
  differ = [
    not np.array_equal(by_id[i]["waveform"], row["waveform"])
    for i, row in zip(ids[13:], rows[13:], strict=True)
  ]
  assert sum(differ) >= 11


def test_waveform_batches_tell_their_real_length(recipe):
  data = loader.Loader(recipe, 13)
  batch = next(data.train_batches())
  assert set(batch) == {"waveform", "num_samples", "example_ids"}
  assert batch["waveform"].shape == (13, 4000)
  assert batch["waveform"].dtype == np.float32
  names = data.describe(batch["example_ids"])
  (short,) = np.flatnonzero(batch["num_samples"] < 4000)
  assert "'clip3'" in names[short]
  assert batch["num_samples"][short] == 2000
  assert not batch["waveform"][short, 2000:].any()
  peaks = np.abs(batch["waveform"]).max(axis=1)
  assert (peaks <= 0.9001).all()
  assert (peaks > 0.45).all()


def test_evaluation_is_one_pass_padded_with_weight_zero(stage_recipe):
  data = loader.Loader(stage_recipe, 8)
  for num_hosts in (1, 4):
    hosts = [
      list(data.eval_batches("train", host, num_hosts))
      for host in range(num_hosts)
    ]
    assert {len(batches) for batches in hosts} == {2}
    flat = [b for rows in zip(*hosts, strict=True) for b in rows]
    weights = np.concatenate([b["example_weights"] for b in flat])
    np.testing.assert_array_equal(weights, [1] * 11 + [0] * 5)
    ids = np.concatenate([b["example_ids"] for b in flat])
    np.testing.assert_array_equal(ids[:11], np.arange(11))
    loss = np.concatenate([b["decoder_loss_weights"] for b in flat])
    assert not loss[11:].any()
    # 50 frames of 2 levels; clip 4 has 40 frames.
    expected = [100] * 4 + [80] + [100] * 6
    np.testing.assert_array_equal(loss[:11].sum(axis=1), expected)
  other = loader.Loader(stage_recipe, 8, seed=9)
  one, two = next(data.eval_batches()), next(other.eval_batches())
  assert loader.batch_hash([one]) == loader.batch_hash([two])
  assert len(list(data.eval_batches("train", max_batches=1))) == 1


def test_stage_batches_hold_aligned_crops(stage_recipe, small_cache):
  data = loader.Loader(stage_recipe, 11)
  batch = next(data.train_batches())
  layout = stages.StageLayout(
    _COARSE, fixtures.make_cache_config().streams_by_name()
  )
  targets = batch["decoder_target_tokens"]
  np.testing.assert_array_equal(
    batch["decoder_input_tokens"][:, 1:], targets[:, :-1]
  )
  assert (batch["decoder_input_tokens"][:, 0] == stages.BOS_ID).all()
  semantic = targets[:, 3:28] - (2 + 3 * 8)
  acoustic = layout.decode_target(targets[:, layout.target_start :])
  full = batch["example_ids"] != 4
  # Modulo the size of the semantic codebook, see the planted codes.
  np.testing.assert_array_equal(
    acoustic[full, ::2, 0] % 64, 2 * semantic[full] % 64
  )
  starts = (semantic[full, 0] - batch["example_ids"][full]) % 64
  assert len(set(starts.tolist())) > 3


def test_captions_are_tokenized_like_plain_sentencepiece(
  small_corpus, tmp_path
):
  captions = ["calm piano number 0123456789", "a slow song"]
  path = text_vocabulary.train(captions, tmp_path, 64)
  audio = tasks.WaveformTaskConfig((small_corpus,), 8000, 0.5)
  config = tasks.CaptionTaskConfig(audio, str(path), 12)
  recipe = tasks.caption_recipe(config)
  data = loader.Loader(recipe, 13, seed=2)
  batches = _take(data.train_batches(), 2)
  vocabulary = vocabularies.load(path)
  song = vocabulary.encode("A slow Song", 12)
  num_songs = 0
  for batch in batches:
    assert batch["text_tokens"].shape == (13, 12)
    assert batch["text_tokens"].dtype == np.int32
    names = data.describe(batch["example_ids"])
    for tokens, name in zip(batch["text_tokens"], names, strict=True):
      number = name.split("'")[1].removeprefix("clip")
      piano = vocabulary.encode(f"Calm piano number {number}", 12)
      is_song = np.array_equal(tokens, song)
      num_songs += is_song
      assert is_song or np.array_equal(tokens, piano)
  assert 4 < num_songs < 22


def test_captions_are_tokenized_by_word_piece(small_corpus, tmp_path):
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "slow", "song", "calm"]
  (tmp_path / "vocab.txt").write_text("\n".join(words))
  audio = tasks.WaveformTaskConfig((small_corpus,), 8000, 0.5)
  config = tasks.CaptionTaskConfig(audio, str(tmp_path), 5)
  data = loader.Loader(tasks.caption_recipe(config), 13, seed=2)
  (batch,) = _take(data.train_batches(), 1)
  found = {tuple(row) for row in batch["text_tokens"].tolist()}
  assert found == {(2, 4, 5, 6, 3), (2, 7, 1, 1, 3)}


def test_mixture_of_corpora_is_deterministic(small_corpus, small_cache):
  config = tasks.WaveformTaskConfig(
    (small_corpus, small_corpus), 8000, 0.25, weights=(3.0, 1.0)
  )
  data = loader.Loader(tasks.waveform_recipe(config), 8, seed=1)
  assert _hashes(data, 2, 3, 4) == _hashes(data, 0, 5, 1)[2:]
  ids = np.concatenate(
    [batch["example_ids"] for batch in _take(data.train_batches(), 50)]
  )
  assert 0.65 < (ids < 13).mean() < 0.85


def test_task_names_state_the_recipe_and_register_once(small_corpus, recipe):
  assert recipe.task.name in seqio.TaskRegistry.names()
  for part in ("small_corpus", "8000hz", "0p5secs", "peak0p9", "gainm6to0"):
    assert part in recipe.task.name
  config = tasks.WaveformTaskConfig((small_corpus,), 8000, 0.5)
  one, two = (tasks.waveform_recipe(config) for _ in range(2))
  assert one.task is two.task
  assert one.task is not recipe.task


def test_errors_reach_the_user_in_one_line(tmp_path, recipe, small_corpus):
  with pytest.raises(errors.UserError, match="multiple of the 3 hosts"):
    next(loader.Loader(recipe, 8).train_batches(0, 0, 3))
  with pytest.raises(errors.UserError, match="expected one of"):
    next(loader.Loader(recipe, 8, train_split="absent").train_batches())
  row = {
    "id": "broken",
    "audio": b"not audio",
    "sample_rate_hz": 8000,
    "num_samples": 1,
    "work_id": "w",
    "arrangement": "",
    "captions": [],
    "aspects": [],
  }
  corpus = fixtures.build_corpus(tmp_path, {"train": [row]})
  config = tasks.WaveformTaskConfig((corpus,), 8000, 0.5)
  data = loader.Loader(tasks.waveform_recipe(config), 2)
  with pytest.raises(errors.UserError, match="'broken'") as caught:
    next(data.train_batches())
  assert "\n" not in str(caught.value)


def test_no_autotuner_holds_up_the_end_of_a_training(recipe, monkeypatch):
  # Ends of trainings were seen to wait up to 56 s for its sleeping thread.
  read = []
  original = tf.data.Dataset.as_numpy_iterator

  def as_numpy_iterator(dataset):
    read.append(dataset.options().autotune.enabled)
    return original(dataset)

  monkeypatch.setattr(tf.data.Dataset, "as_numpy_iterator", as_numpy_iterator)
  data = loader.Loader(recipe, 2, seed=0)
  _take(data.train_batches(0), 1)
  next(data.eval_batches())
  assert read == [False, False]


def test_process_ends_while_batches_are_read_ahead(small_corpus):
  # Reader threads that outlive the interpreter would hang it for ever.
  code = f"""
from musiclm_jax.data import loader, tasks
config = tasks.WaveformTaskConfig(({small_corpus!r},), 8000, 0.5)
batches = loader.Loader(tasks.waveform_recipe(config), 64).train_batches()
next(batches)
"""
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
