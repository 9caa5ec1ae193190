# SPDX-License-Identifier: Apache-2.0
"""Crops of audio and codes."""

import importlib.util
import pathlib

import numpy as np
import tensorflow as tf

from musiclm_jax.core import stages
from musiclm_jax.data import preprocessors, token_cache

_SPEC = importlib.util.spec_from_file_location(
  "data_fixtures", pathlib.Path(__file__).with_name("conftest.py")
)
fixtures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fixtures)


def _examples(waveform: np.ndarray, count: int) -> tf.data.Dataset:
  def add(number):
    seed = tf.stack([tf.cast(number, tf.int32), 7])
    return {"waveform": tf.constant(waveform), "crop_seed": seed}

  return tf.data.Dataset.range(count).map(add)


def _run(dataset: tf.data.Dataset) -> list:
  return list(dataset.as_numpy_iterator())


def test_crops_are_contiguous_and_reach_both_ends():
  waveform = np.arange(12, dtype=np.float32)
  rows = _run(preprocessors.crop_waveform(_examples(waveform, 60), 9))
  starts = {int(row["waveform"][0]) for row in rows}
  assert starts == {0, 1, 2, 3}
  for row in rows:
    np.testing.assert_array_equal(np.diff(row["waveform"]), 1.0)
    assert row["num_samples"] == 9


def test_short_clips_are_padded_at_the_end():
  waveform = np.ones(5, np.float32)
  row = _run(preprocessors.crop_waveform(_examples(waveform, 1), 8))[0]
  np.testing.assert_array_equal(row["waveform"], [1] * 5 + [0] * 3)
  assert row["num_samples"] == 5


def test_peak_and_gain():
  waveform = np.array([0.1, -0.2, 0.05], np.float32)
  rows = _run(preprocessors.normalize_peak(_examples(waveform, 1), 0.8))
  np.testing.assert_allclose(rows[0]["waveform"], waveform * 4, rtol=1e-6)
  silent = np.zeros(3, np.float32)
  rows = _run(preprocessors.normalize_peak(_examples(silent, 1), 0.8))
  np.testing.assert_array_equal(rows[0]["waveform"], silent)
  rows = _run(preprocessors.random_gain(_examples(waveform, 50), -6.0, 6.0))
  gains = [20 * np.log10(row["waveform"][0] / 0.1) for row in rows]
  assert -6.01 < min(gains) < -3 < 3 < max(gains) < 6.01


def _cropper(spec: stages.StageSpec):
  config = fixtures.make_cache_config()
  layout = stages.StageLayout(spec, config.streams_by_name())
  return preprocessors.StageCropper(layout, config, fixtures.codebooks())


def test_streams_of_a_crop_stay_aligned():
  cropper = _cropper(stages.coarse_stage(3, 2, 1.0))
  arrays = fixtures.cached_clip(0, num_semantic_frames=60).arrays
  frames = {"semantic": 60, "acoustic": 120}
  assert cropper.num_starts(frames) == 36
  for start in (0, 17, 35):
    crop = cropper.crop(arrays, start)
    semantic = crop["semantic"][:, 0]
    np.testing.assert_array_equal(semantic, np.arange(start, start + 25))
    pairs = crop["acoustic"][:, 0].reshape(25, 2)
    np.testing.assert_array_equal(pairs[:, 0], 2 * semantic)
    np.testing.assert_array_equal(pairs[:, 1], 2 * semantic + 1)
    expected = token_cache.mulan_codes(
      arrays["mulan_embeddings"],
      fixtures.codebooks(),
      start / 25,
      start / 25 + 1.0,
      fixtures.make_cache_config(),
    )
    np.testing.assert_array_equal(crop["mulan"], expected)


def test_short_clip_gives_padding_codes():
  cropper = _cropper(stages.coarse_stage(3, 2, 1.0))
  arrays = fixtures.cached_clip(0, num_semantic_frames=20).arrays
  assert cropper.num_starts({"semantic": 20, "acoustic": 40}) == 1
  crop = cropper.crop(arrays, 0)
  assert crop["semantic"].shape == (25, 1)
  assert crop["acoustic"].shape == (50, 4)
  assert (crop["semantic"][20:] == -1).all()
  assert (crop["acoustic"][40:] == -1).all()
  assert crop["semantic"][:20].min() >= 0
  # A stream that ends early ends the crop of all of them.
  arrays = {**arrays, "acoustic": arrays["acoustic"][:31]}
  crop = cropper.crop(arrays, 0)
  assert (crop["semantic"][15:] == -1).all()
  assert (crop["acoustic"][30:] == -1).all()
  assert crop["acoustic"][29, 0] == 29
