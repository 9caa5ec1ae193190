# SPDX-License-Identifier: Apache-2.0
"""The frozen SoundStorm: greedy passes, kept codes, windows, items."""

import acoustic_models as small
import jax
import numpy as np
import pytest

from musiclm_jax.decoding import masked
from musiclm_jax.systems import acoustic_backends, acoustic_stage

FRAMES, SECS = 16, 2.0  # Three windows of 8 frames, 4 of each known.


@pytest.fixture(scope="module")
def model():
  return small.soundstorm_model()


@pytest.fixture(scope="module")
def stage(model):
  # Not sure of its codes: seeds and known codes then make a difference.
  made = small.system_of(model, small.params_of(model, scale=1.0))
  made.schedule = masked.MaskedSchedule((3, 1, 1))
  return made


def keys(*seeds):
  return jax.vmap(jax.random.key)(np.array(seeds))


def test_one_greedy_pass_per_level_takes_the_best_scored_codes(model):
  stage = small.system_of(model)
  stage.schedule = masked.MaskedSchedule((1, 1, 1))
  codes = small.codes(2)
  made = stage.generate_long(codes, 8, 0.0, keys(0, 1))
  assert made.shape == (2, 8, 3) and made.dtype == np.int32
  assert len(np.unique(made)) > 2
  best = stage.score({**codes, "acoustic": made})
  for shift in range(1, 5):
    for level in range(3):
      other = made.copy()
      other[:, :, level] = (other[:, :, level] + shift) % 5
      worse = stage.score({**codes, "acoustic": other})
      assert (worse[:, :, level] > best[:, :, level]).all()


def test_windows_join_known_codes_stay_and_items_stand_alone(stage):
  codes = small.codes(3, SECS)
  made = stage.generate_long(codes, FRAMES, 1.0, keys(5, 6, 7))
  assert made.shape == (3, 16, 3)
  assert made.min() >= 0 and made.max() < 5
  alone = {name: x[1:2] for name, x in codes.items()}
  np.testing.assert_array_equal(
    stage.generate_long(alone, FRAMES, 1.0, keys(6))[0], made[1]
  )
  assert (stage.generate_long(alone, FRAMES, 1.0, keys(8))[0] != made[1]).any()
  # Given codes stay as they are, and so does what does not see others.
  given = made[:, :8]
  again = stage.generate_long(codes, FRAMES, 1.0, keys(5, 6, 7), given)
  np.testing.assert_array_equal(again, made)
  other = stage.generate_long(
    codes, FRAMES, 1.0, keys(5, 6, 7), (given + 1) % 5
  )
  np.testing.assert_array_equal(other[:, :8], (given + 1) % 5)
  assert (other[:, 8:] != made[:, 8:]).any()


def test_codes_are_drawn_in_the_published_passes(model):
  schedule = small.system_of(model).schedule
  assert schedule == masked.drawn(3)
  assert schedule.passes == masked.published(3).passes
  assert schedule.choice_noise > 0 and not schedule.greedy_single


def test_survives_export_and_load(model, stage, tmp_path):
  kind = acoustic_backends.kind_of(model.config.network)
  acoustic_stage.export(
    tmp_path / "a", kind, small.SPEC, small.STREAMS, model.config.network,
    small.params_of(model, scale=1.0), {"mulan": "ab"},
  )  # fmt: skip
  found = acoustic_backends.load_all({kind: tmp_path / "a"})
  assert list(found) == ["soundstorm"]
  loaded = found["soundstorm"]
  assert loaded.spec == small.SPEC and loaded.tokenizers == {"mulan": "ab"}
  codes = small.codes(2)
  np.testing.assert_allclose(loaded.score(codes), stage.score(codes), rtol=1e-6)
