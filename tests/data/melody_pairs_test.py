# SPDX-License-Identifier: Apache-2.0
"""Melodies side by side: order, crops, resume, and errors."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from musiclm_jax.audio import perturb
from musiclm_jax.core import errors
from musiclm_jax.data import loader, melody_order, melody_pairs

COUNTS = [melody_order.MelodyCounts(7, 5), melody_order.MelodyCounts(3, 4)]


def test_groups_hold_different_versions_of_one_melody():
  order = melody_order.MelodyOrder(COUNTS, 1, group_size=4)
  seen = []
  for group in range(10):
    keys = range(4 * group, 4 * group + 4)
    positions = [order.position(k) for k in keys]
    melodies = {order.melody(position) for position in positions}
    assert len(melodies) == 1 and len(set(positions)) == 4
    assert len({order.group_seed(k) for k in keys}) == 1
    seen += melodies
  assert sorted(seen) == list(range(10))  # each once before any again
  again = melody_order.MelodyOrder(COUNTS, 1, group_size=4)
  assert again.position(37) == order.position(37)
  other = melody_order.MelodyOrder(COUNTS, 2, group_size=4)
  assert [other.position(k) for k in range(40)] != [
    order.position(k) for k in range(40)
  ]
  assert order.group_seed(0) != other.group_seed(0)


def test_larger_groups_see_all_versions_before_one_again():
  order = melody_order.MelodyOrder(COUNTS[1:], 1, group_size=8)
  rows = [order.position(k) % 4 for k in range(8)]
  assert sorted(rows[:4]) == sorted(rows[4:]) == [0, 1, 2, 3]


def test_without_shuffling_rows_come_in_order():
  order = melody_order.MelodyOrder(COUNTS, 1, group_size=4, shuffle=False)
  assert order.num_examples == 47
  assert [order.position(k) for k in range(47)] == list(range(47))
  melodies = [order.melody(k) for k in range(47)]
  assert melodies == [*np.repeat(range(7), 5), *np.repeat(range(7, 10), 4)]
  assert [order.corpus_of(p) for p in (34, 35)] == [(0, 34), (1, 0)]


def _config(corpus, **changes):
  values = {"sample_rate_hz": 8000, "crop_secs": 0.5, "num_versions": 3}
  return melody_pairs.MelodyTaskConfig(corpus, **{**values, **changes})


def test_clips_without_versions_are_paired_with_themselves(small_corpus):
  data = loader.Loader(
    melody_pairs.melody_recipe(_config(small_corpus)), 6, seed=4
  )
  batches = [batch for batch, _ in zip(data.train_batches(), range(5))]
  for batch in batches:
    assert batch["waveform"].shape == (6, 4000)
    assert batch["melody_ids"].dtype == np.int32
    first, second = batch["melody_ids"].reshape(2, 3)
    assert len(set(first)) == len(set(second)) == 1
    # Changed copies: of one clip, but not equal.
    assert np.abs(batch["waveform"][0] - batch["waveform"][1]).max() > 0
  resumed = next(data.train_batches(start_step=3))
  for name, array in batches[3].items():
    np.testing.assert_array_equal(array, resumed[name])
  halves = [
    next(data.train_batches(start_step=3, host_index=i, num_hosts=2))
    for i in range(2)
  ]
  assert loader.batch_hash(halves) == loader.batch_hash([resumed])
  heldout = list(data.eval_batches())
  ids = np.concatenate([batch["melody_ids"] for batch in heldout])
  weights = np.concatenate([batch["example_weights"] for batch in heldout])
  np.testing.assert_array_equal(ids[weights > 0], np.repeat(range(5), 3))
  assert "clip" in data.describe(batches[0]["example_ids"][:1])[0]


def test_unchanged_crops_of_a_melody_are_the_same_sound(small_corpus):
  config = _config(small_corpus, augment=None, group_semitones=0.0)
  data = loader.Loader(melody_pairs.melody_recipe(config), 6)
  waveform = next(data.train_batches())["waveform"].reshape(2, 3, -1)
  np.testing.assert_array_equal(waveform[:, 0], waveform[:, 1])
  assert np.abs(waveform[0, 0] - waveform[1, 0]).max() > 0.01
  steps = np.diff(waveform[0, 0])
  assert steps.min() >= 0 and steps.max() == 1 / 32768  # part of the ramp


@pytest.fixture(scope="module")
def versions_corpus(small_corpus, tmp_path_factory):
  """The small corpus, read as if it had 5 versions of one melody."""
  path = tmp_path_factory.mktemp("versions") / "1.0.0"
  shutil.copytree(small_corpus, path)
  (path / "metadata.json").write_text(
    json.dumps(
      {
        "versions_per_melody": {"train": 13, "validation": 5},
        "versions_in_key": {"train": 13, "validation": 3},
        "max_tempo_ratio": 1.0,
      }
    )
  )
  return str(path)


def test_versions_in_other_keys_are_read_only_if_asked_for(versions_corpus):
  for invariant, expected in ((False, 3), (True, 5)):
    config = _config(versions_corpus, key_invariant=invariant)
    source = melody_pairs.MelodySource(config)
    rows = source.records("validation")[0]
    assert (rows.num_melodies, len(rows)) == (1, expected)
    assert [rows.record(row) for row in range(len(rows))] == list(
      range(expected)
    )


def test_bad_metadata_is_a_clear_error(versions_corpus, tmp_path):
  path = tmp_path / "1.0.0"
  shutil.copytree(versions_corpus, path)
  text = (path / "metadata.json").read_text()
  (path / "metadata.json").write_text(text.replace('"train": 13', '"train": 4'))
  with pytest.raises(errors.UserError, match="13 clips.*multiple of its 4"):
    melody_pairs.MelodySource(_config(str(path))).records("train")
  (path / "metadata.json").write_text('{"versions_per_melody": {}}')
  with pytest.raises(errors.UserError, match="damaged .*metadata.json"):
    melody_pairs.read_versions(path, "train")
  assert melody_pairs.read_versions(tmp_path, "x") == melody_pairs.Versions()


def test_crops_of_versions_are_around_the_same_point_of_the_score():
  rate = 1000
  config = _config("x", sample_rate_hz=rate, crop_secs=2.0, augment=None)
  config = dataclasses.replace(config, group_semitones=2.0)
  for seed in range(5):
    centres = []
    for ratio in (0.8, 1.0, 1.25):
      # A ramp that tells the second of the score.
      ramp = np.arange(round(10 / ratio * rate)) * ratio / rate / 16
      crop = melody_pairs.crop_version(
        ramp.astype(np.float32), ratio, 1.25, seed, (1, 2), config
      )
      assert crop.shape == (2000,) and crop.min() >= 0
      assert np.all(np.diff(crop) > 0)
      centres.append(16 * crop[1000])
    np.testing.assert_allclose(centres, centres[0], atol=0.02)


def test_short_clips_are_filled_with_silence():
  config = _config("x", sample_rate_hz=1000, crop_secs=2.0, augment=None)
  ones = np.ones(500, np.float32)
  crop = melody_pairs.crop_version(ones, 1.0, 1.0, 3, (1, 2), config)
  assert crop.shape == (2000,)
  assert 350 < crop.sum() < 650 and crop[-1000:].max() == 0


def test_bad_config_names_field():
  with pytest.raises(ValueError, match="num_versions=1"):
    _config("x", num_versions=1)
  with pytest.raises(ValueError, match="group_semitones=7"):
    _config("x", group_semitones=7)
  with pytest.raises(ValueError, match="noise_probability=2"):
    perturb.PerturbConfig(noise_probability=2)
  assert _config("x").corpus_dirs == ("x",)
  assert pathlib.Path(_config(pathlib.Path("y")).corpus_dirs[0]).name == "y"
