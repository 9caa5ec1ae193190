# SPDX-License-Identifier: Apache-2.0
"""Stage scores: right tokens, right levels, fair baselines."""

import numpy as np
import pytest

from musiclm_jax.core import stages
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.evaluation import stage_scores

_TARGET = stages.Segment("acoustic", 1, 3)


class _Stage:
  """Scores level 0 with 1 nat and level 1 with 3; notes what it saw."""

  def __init__(self, nats=(1.0, 3.0)):
    self.nats, self.sizes = np.array(nats, np.float32), set()

  def score(self, codes):
    shape = codes["acoustic"].shape
    assert codes["mulan"].shape[0] == shape[0]
    self.sizes.add(shape[0])
    return np.broadcast_to(self.nats, (*shape[:2], len(self.nats)))


def _codes(num_clips, seed):
  codes = np.random.default_rng(seed).integers(0, 16, (num_clips, 10, 4))
  codes[..., 2] = codes[..., 1]  # The second target level copies the first.
  return codes.astype(np.int32)


def test_scores_stand_beside_the_baselines_on_the_target_levels():
  heldout = {
    "acoustic": _codes(11, 0),
    "mulan": np.zeros((11, 1, 12), np.int32),
  }
  stage = _Stage()
  scores = stage_scores.stage_scores(
    stage, heldout, list(_codes(80, 1)), _TARGET, 16, batch_size=4
  )
  assert scores["heldout_cross_entropy"] == pytest.approx(2.0)
  assert scores["heldout_per_level"] == [1.0, 3.0]
  assert scores["num_tokens"] == 11 * 10 * 2
  assert scores["num_train_tokens"] == 80 * 10 * 2
  assert scores["unigram_cross_entropy"] == pytest.approx(np.log(16), abs=0.1)
  assert scores["bigram_per_level"][1] < 0.1
  assert scores["bigram_per_level"][0] == pytest.approx(np.log(16), abs=0.1)
  assert scores["bigram_cross_entropy"] == pytest.approx(
    np.mean(scores["bigram_per_level"])
  )
  assert stage.sizes == {4}  # One shape: one compilation.


def test_padding_is_left_out():
  codes = _codes(3, 2)
  codes[:, 5:] = -1
  heldout = {"acoustic": codes, "mulan": np.zeros((3, 1, 12), np.int32)}
  scores = stage_scores.stage_scores(
    _Stage(), heldout, _codes(9, 3), _TARGET, 16
  )
  assert scores["num_tokens"] == 3 * 5 * 2


def test_a_wrong_shape_or_nan_is_refused():
  heldout = {"acoustic": _codes(3, 2), "mulan": np.zeros((3, 1, 12), np.int32)}
  with pytest.raises(ValueError, match="'acoustic'"):
    stage_scores.stage_scores(
      _Stage((1.0,)), heldout, _codes(9, 3), _TARGET, 16
    )
  with pytest.raises(ValueError, match="NaN"):
    stage_scores.stage_scores(
      _Stage((1.0, np.nan)), heldout, _codes(9, 3), _TARGET, 16
    )
  heldout["mulan"] = heldout["mulan"][:2]
  with pytest.raises(ValueError, match="equally many"):
    stage_scores.score_in_batches(_Stage(), heldout)


def test_codes_without_repeats_are_counted_with_the_end_of_each_crop():
  streams = {"semantic": streams_lib.TokenStream("semantic", 8, 1, 5.0)}
  spec = stages.semantic_stage(0, 1.0, unique_consecutive=True)
  layout = stages.StageLayout(spec, streams)
  # Two crops and a rest, which does not end where a crop does.
  clip = np.array([3, 3, 4, 4, 3, 1, 2, 1, 2, 1, 6, 6], np.int32)[:, np.newaxis]
  heldout, train = stage_scores.targets_as_modelled(
    layout, {"semantic": clip[np.newaxis, :5]}, [clip]
  )
  rows = [[3, 4, 3, 8], [1, 2, 1, 2, 1], [6]]
  assert [crop[crop >= 0].tolist() for crop in train] == rows
  kept = heldout["semantic"][0, :, 0]
  assert kept[:4].tolist() == rows[0] and kept[4] < 0
  plain = stages.StageLayout(stages.semantic_stage(0, 1.0), streams)
  _, same = stage_scores.targets_as_modelled(plain, heldout, [clip])
  assert same[0] is clip
