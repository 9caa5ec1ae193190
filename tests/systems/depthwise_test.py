# SPDX-License-Identifier: Apache-2.0
"""The frozen depth-wise back end: what it decodes is what it scores."""

import acoustic_models as small
import jax
import numpy as np
import pytest

from musiclm_jax.core import errors
from musiclm_jax.systems import acoustic_stage, depthwise

FRAMES, SECS = 16, 2.0  # Three windows of 8 frames, 4 of each known.


@pytest.fixture(scope="module")
def model():
  return small.depthwise_model(num_layers=2)


@pytest.fixture(scope="module")
def stage(model):
  return small.system_of(model)


def keys(*seeds):
  return jax.vmap(jax.random.key)(np.array(seeds))


def test_greedy_codes_have_the_best_teacher_forced_scores(stage):
  codes = small.codes(2)
  made = stage.generate_long(codes, 8, (0.0, 0.0), keys(0, 1))
  assert made.shape == (2, 8, 3) and made.dtype == np.int32
  assert len(np.unique(made)) > 2
  best = stage.score({**codes, "acoustic": made})
  for level in range(3):
    for shift in range(1, 5):
      other = made.copy()
      other[:, 5, level] = (other[:, 5, level] + shift) % 5
      worse = stage.score({**codes, "acoustic": other})
      assert (worse[:, 5, level] > best[:, 5, level]).all()
  # Known frames, cached at once or forced one by one, change nothing.
  for num_known in (2, 4, 6):
    again = stage.generate_long(
      codes, 8, (0.0, 0.0), keys(0, 1), made[:, :num_known]
    )
    np.testing.assert_array_equal(again, made)


def test_sampled_codes_follow_the_scored_probabilities(model):
  # One frame, many items: frequencies against exp(-nats).
  stage = small.system_of(model, small.params_of(model, scale=1.0))
  num_items = 2000
  one = small.codes(1, 0.125)
  many = {n: np.repeat(x, num_items, 0) for n, x in one.items()}
  made = stage.generate_long(many, 1, 1.0, keys(*range(num_items)))[:, 0]
  found, counts = np.unique(made, axis=0, return_counts=True)
  few = {n: np.repeat(x, len(found), 0) for n, x in one.items()}
  nats = stage.score({**few, "acoustic": found[:, None]})[:, 0].sum(-1)
  expected = num_items * np.exp(-nats)
  common = expected > 20
  assert common.sum() >= 5
  deviations = (counts - expected)[common] / np.sqrt(expected[common])
  assert np.abs(deviations).max() < 4


def test_windows_join_and_items_depend_on_themselves_only(stage):
  codes = small.codes(3, SECS)
  assert len(stage.plan(codes, FRAMES)) == 3
  made = stage.generate_long(
    codes, FRAMES, acoustic_stage.TEMPERATURES, keys(5, 6, 7)
  )
  assert made.shape == (3, 16, 3)
  assert made.min() >= 0 and made.max() < 5
  alone = {name: x[1:2] for name, x in codes.items()}
  np.testing.assert_array_equal(
    stage.generate_long(alone, FRAMES, acoustic_stage.TEMPERATURES, keys(6))[0],
    made[1],
  )
  assert (
    stage.generate_long(alone, FRAMES, acoustic_stage.TEMPERATURES, keys(8))[0]
    != made[1]
  ).any()
  # A continuation keeps its prefix, and goes on as if never interrupted.
  again = stage.generate_long(
    codes, FRAMES, acoustic_stage.TEMPERATURES, keys(5, 6, 7), made[:, :8]
  )
  np.testing.assert_array_equal(again, made)


def test_the_fine_levels_have_a_temperature_of_their_own():
  found = acoustic_stage.level_sampling((0.9, 0.4), 6)
  assert [one.temperature for one in found] == [0.9, 0.9, 0.9, 0.9, 0.4, 0.4]


def test_survives_export_and_load(model, stage, tmp_path):
  acoustic_stage.export(
    tmp_path / "a", "acoustic_depthwise", small.SPEC, small.STREAMS,
    model.config.network, small.params_of(model), {"mulan": "ab"},
  )  # fmt: skip
  loaded = depthwise.DepthwiseStage.load(tmp_path / "a")
  assert loaded.spec == small.SPEC and loaded.tokenizers == {"mulan": "ab"}
  codes = small.codes(1)
  np.testing.assert_allclose(loaded.score(codes), stage.score(codes), rtol=1e-6)
  with pytest.raises(errors.UserError, match="nowhere"):
    depthwise.DepthwiseStage.load(tmp_path / "nowhere")
