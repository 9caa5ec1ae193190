# SPDX-License-Identifier: Apache-2.0
"""AUC-ROC and average precision against their definitions, pair by pair."""

import numpy as np
import pytest

from musiclm_jax.evaluation import tagging


def _auc(scores, labels):
  """Chance that a clip with the tag is above one without, ties half."""
  pairs = [
    1.0 if a > b else 0.5 if a == b else 0.0
    for a in scores[labels]
    for b in scores[~labels]
  ]
  return np.mean(pairs)


def _precision(scores, labels):
  """Precision at each different score, times the recall gained there."""
  total, before = 0.0, 0
  for score in sorted(set(scores), reverse=True):
    kept = scores >= score
    hits = (labels & kept).sum()
    total += (hits - before) / labels.sum() * hits / kept.sum()
    before = hits
  return total


@pytest.mark.parametrize("levels", [3, 1000])
def test_areas_equal_their_definitions(levels):
  generator = np.random.default_rng(levels)
  for _ in range(20):
    scores = generator.integers(0, levels, 30).astype(float)
    labels = generator.random(30) < 0.3
    labels[:2] = True, False
    area, precision = tagging.curve_areas(scores, labels, np.ones((1, 30)))
    np.testing.assert_allclose(area, _auc(scores, labels))
    np.testing.assert_allclose(precision, _precision(scores, labels))


def test_a_hand_made_case():
  # Order: hit, miss, hit, miss. AUC 3 of 4 pairs; precisions 1 and 2/3.
  scores, labels = np.array([4.0, 3, 2, 1]), np.array([1, 0, 1, 0], bool)
  area, precision = tagging.curve_areas(scores, labels, np.ones((1, 4)))
  np.testing.assert_allclose(area, 0.75)
  np.testing.assert_allclose(precision, (1 + 2 / 3) / 2)


def test_weights_are_repeated_clips():
  generator = np.random.default_rng(0)
  scores = generator.integers(0, 6, 25).astype(float)
  labels = generator.random(25) < 0.4
  counts = generator.integers(0, 4, (5, 25))
  found = tagging.curve_areas(scores, labels, counts.astype(np.float32))
  for row, (area, precision) in zip(counts, np.stack(found, 1)):
    again = np.repeat(np.arange(25), row)
    np.testing.assert_allclose(area, _auc(scores[again], labels[again]))
    np.testing.assert_allclose(
      precision, _precision(scores[again], labels[again])
    )
  # A draw without a hit has no value.
  area, precision = tagging.curve_areas(scores, labels, 1.0 * ~labels[None])
  assert np.isnan(area[0]) and np.isnan(precision[0])


def test_table_is_the_mean_over_tags_with_an_interval_over_groups():
  generator = np.random.default_rng(1)
  labels = generator.random((60, 4)) < 0.3
  labels[:, 2] = False  # No clip has it.
  scores = generator.normal(size=(60, 4)) + 1.5 * labels
  groups = [str(index // 3) for index in range(60)]
  tags = ["a", "b", "c", "d"]
  found = tagging.table(scores, labels, tags, groups)
  kept = [0, 1, 3]
  areas = [_auc(scores[:, i], labels[:, i]) for i in kept]
  assert found["auc_roc"]["mean"] == pytest.approx(np.mean(areas))
  assert found["tags"]["d"]["auc_roc"] == pytest.approx(areas[2])
  assert found["left_out"] == ["c"] and set(found["tags"]) == {"a", "b", "d"}
  assert found["chance_map"] == pytest.approx(labels[:, kept].mean())
  assert found["num_groups"] == 20
  interval = found["map"]
  assert interval["low"] < interval["mean"] < interval["high"]
  # Clips of one work are alike: drawn alone they look like more evidence.
  alike = np.repeat(scores[::3], 3, 0), np.repeat(labels[::3], 3, 0)
  width = {}
  for name, of in (("works", groups), ("clips", list(map(str, range(60))))):
    interval = tagging.table(*alike, tags, of)["auc_roc"]
    width[name] = interval["high"] - interval["low"]
  assert width["works"] > 1.3 * width["clips"]


def test_random_scores_are_at_chance_and_perfect_ones_at_one():
  generator = np.random.default_rng(2)
  labels = generator.random((400, 5)) < 0.2
  groups = list(map(str, range(400)))
  tags = list("abcde")
  found = tagging.table(generator.normal(size=(400, 5)), labels, tags, groups)
  assert found["auc_roc"]["low"] < 0.5 < found["auc_roc"]["high"]
  assert found["map"]["mean"] == pytest.approx(found["chance_map"], abs=0.05)
  found = tagging.table(1.0 * labels, labels, tags, groups)
  assert found["auc_roc"] == found["map"] == {"mean": 1, "low": 1, "high": 1}
  # A collapsed model gives all clips one score.
  found = tagging.table(np.ones((400, 5)), labels, tags, groups)
  assert found["auc_roc"]["mean"] == 0.5
  assert found["map"]["mean"] == pytest.approx(found["chance_map"])


def test_bad_tables_are_named():
  labels = np.array([[True], [False]])
  with pytest.raises(ValueError, match=r"scores \(2, 2\)"):
    tagging.table(np.ones((2, 2)), labels, ["a"], ["x", "y"])
  with pytest.raises(ValueError, match="finite"):
    tagging.table(np.full((2, 1), np.nan), labels, ["a"], ["x", "y"])
  with pytest.raises(ValueError, match="'a'"):
    tagging.table(np.ones((2, 1)), labels | True, ["a"], ["x", "y"])
