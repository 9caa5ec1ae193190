# SPDX-License-Identifier: Apache-2.0
"""Melody windows in a token cache: a crop gets those that begin with it."""

import dataclasses
import importlib.util
import itertools
import pathlib

import numpy as np
import pytest

from musiclm_jax.core import errors, stages
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.data import (
  feature_converters,
  loader,
  preprocessors,
  tasks,
  token_cache,
  token_cache_writer,
)

_FIXTURES = importlib.util.spec_from_file_location(
  "data_fixtures", pathlib.Path(__file__).with_name("conftest.py")
)
fixtures = importlib.util.module_from_spec(_FIXTURES)
_FIXTURES.loader.exec_module(fixtures)

MELODY = streams_lib.melody(32, 2)
SPEC = stages.semantic_melody_stage(3, 2)
# 13 s give 4 places for a crop, 9 s have no third window of full length.
SECS = (13, 10, 17, 9, 3)


def config():
  planted = fixtures.make_cache_config()
  return dataclasses.replace(
    planted,
    streams=(*planted.streams, MELODY),
    fingerprints={**planted.fingerprints, "melody": "dd"},
  )


def clip(number, secs):
  """Codes that tell their second; window n begins at second n."""
  planted = fixtures.cached_clip(number, 25 * secs)
  count = max(1, secs - 1)  # those with at least 2 s of audio
  arrays = dict(planted.arrays)
  arrays["semantic"] = np.arange(25 * secs)[:, np.newaxis] // 25
  arrays["melody"] = np.arange(count)[:, np.newaxis] + np.array([[0, 1]])
  return dataclasses.replace(planted, arrays=arrays)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  directory = tmp_path_factory.mktemp("melody_cache")
  writer = token_cache_writer.TokenCacheWriter(
    directory, config(), fixtures.codebooks()
  )
  for shard in writer.pending("train", len(SECS)):
    chosen = range(shard.start, shard.end)
    writer.write_shard(shard, (clip(n, SECS[n]) for n in chosen))
  writer.finish({"train": len(SECS)})
  return str(directory)


def make_cropper():
  layout = stages.StageLayout(SPEC, config().streams_by_name())
  return preprocessors.StageCropper(layout, config(), fixtures.codebooks())


def test_windows_of_a_crop_begin_with_it():
  cropper = make_cropper()
  arrays = clip(0, 13).arrays
  assert cropper.num_starts({"semantic": 13 * 25}) == 4
  for start in range(4):
    crop = cropper.crop(arrays, start)
    np.testing.assert_array_equal(
      crop["melody"][:, 0], [start, start + 3, start + 6]
    )
    assert crop["semantic"].shape == (250, 1)
    np.testing.assert_array_equal(crop["semantic"][::25, 0], start + np.r_[:10])


def test_a_short_clip_has_padding_for_windows_it_lacks():
  cropper = make_cropper()
  assert cropper.num_starts({"semantic": 3 * 25}) == 1
  crop = cropper.crop(clip(0, 3).arrays, 0)
  np.testing.assert_array_equal(crop["melody"][:, 0], [0, -1, -1])
  # Half of the third window is there.
  crop = cropper.crop(clip(0, 9).arrays, 0)
  np.testing.assert_array_equal(crop["melody"][:, 0], [0, 3, 6])


def test_other_stages_crop_as_if_there_were_no_melody():
  spec = stages.coarse_stage(3, 2, 1.0)
  layout = stages.StageLayout(spec, config().streams_by_name())
  cropper = preprocessors.StageCropper(layout, config(), fixtures.codebooks())
  assert cropper.grid_hz == 25.0
  assert cropper.num_starts({"semantic": 60, "acoustic": 120}) == 36
  assert cropper.crop(clip(0, 13).arrays, 7)["acoustic"].shape == (50, 4)


def test_batches_hold_the_melody_before_the_target(cache):
  recipe = tasks.stage_recipe(tasks.StageTaskConfig((cache,), SPEC))
  fast = loader.Loader(recipe, 5, seed=3)
  slow = loader.Loader(dataclasses.replace(recipe, reader=None), 5, seed=3)
  pairs = zip(
    itertools.islice(fast.train_batches(0, 0, 1), 6),
    itertools.islice(slow.train_batches(0, 0, 1), 6),
  )
  layout = stages.StageLayout(SPEC, config().streams_by_name())
  assert layout.shapes == ((1, 3), (3, 2), (250, 1))
  first = stages.NUM_SPECIAL_IDS + 3 * 8  # ids of the first melody level
  for one, two in pairs:
    for name, array in one.items():
      np.testing.assert_array_equal(array, two[name], err_msg=name)
    targets = one["decoder_target_tokens"]
    assert targets.shape == (5, 3 + 6 + 250)
    seconds = layout.decode_target(targets[:, 9:])[:, :, 0]
    windows = targets[:, 3:9:2] - first
    real = targets[:, 3:9:2] != stages.PAD_ID
    assert real[:, 0].all()
    expected = seconds[:, :1] + np.array([[0, 3, 6]])
    np.testing.assert_array_equal(windows[real], expected[real])
    weights = one["decoder_loss_weights"]
    assert not weights[:, :9].any() and weights[:, 9:].any()


def test_packed_rows_have_the_windows_of_their_length():
  layout = stages.StageLayout(SPEC, config().streams_by_name())
  converter = feature_converters.StageConverter(layout, num_packed=2)
  melody = np.arange(3)[:, np.newaxis] + np.array([[0, 1]])
  examples = []
  for secs in (3, 4):
    semantic = np.full((250, 1), -1)
    semantic[: 25 * secs] = 7
    # A crop of 3 or 4 s has one window; others may be stored.
    examples.append((np.zeros((1, 3), int), melody, semantic))
  _, targets, weights, ids = converter.encode_packed(
    np.ones(2, np.float32), *(np.stack(part) for part in zip(*examples))
  )
  assert [int((ids == n).sum()) for n in (1, 2)] == [5 + 75, 5 + 100]
  assert weights.sum() == 175
  assert (targets[ids == 0] == stages.PAD_ID).all()


def test_whole_sequences_have_every_third_window(cache):
  found = token_cache.stage_sequences(cache, "train", SPEC)
  np.testing.assert_array_equal(found["melody"][0][:, 0], [0, 3, 6, 9])


def test_caches_with_and_without_melody_are_not_mixed(cache, small_cache):
  expected = token_cache.read_config(cache)
  plain = token_cache.read_config(small_cache)
  with pytest.raises(errors.UserError, match="expected .*'melody'"):
    token_cache.check_same_tokenizers(small_cache, plain, expected)
  with pytest.raises(ValueError, match="stream 'melody' of stage"):
    tasks.stage_recipe(tasks.StageTaskConfig((small_cache,), SPEC))
