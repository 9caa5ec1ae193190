# SPDX-License-Identifier: Apache-2.0
"""Simulated raters with known preferences are scored as they prefer."""

import json

import listening_sets
import numpy as np
import pytest

from musiclm_jax.core import errors
from musiclm_jax.evaluation import (
  listening_design,
  listening_page,
  listening_scores,
)

SHAPE = listening_design.Shape(3, 20, 6, 60, 3)
SETTINGS = listening_scores.Settings(num_resamples=300)
TRUTH, CODEC, MODEL = listening_sets.SYSTEMS


def score(prefer, passes=lambda rater: True, shape=SHAPE):
  test, key = listening_sets.without_audio(shape, num_checks=6)
  log = listening_sets.simulate(test, key, prefer, passes)
  expected = shape.num_raters * shape.comparisons_per_rater
  return listening_scores.score(key, log, expected, SETTINGS)


def by_rank(rater, prompt, first, second):
  """Prefers strongly, by the order of the systems, whatever the position."""
  order = listening_sets.SYSTEMS
  return -2 if order.index(first) < order.index(second) else 2


def test_a_clear_order_is_found():
  scores = score(by_rank)
  wins = {one["system"]: one for one in scores["systems"]}
  assert {name: one["wins"] for name, one in wins.items()} == {
    TRUTH: 240,
    CODEC: 120,
    MODEL: 0,
  }
  assert all(one["num_comparisons"] == 240 for one in wins.values())
  assert wins[MODEL]["win_share"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
  for pair in scores["pairs"]:
    assert pair["counts"] == [120, 0, 0, 0, 0] and pair["wins"] == [120, 0]
    assert pair["wilcoxon"]["is_significant"]
    assert pair["wilcoxon_by_text"]["num_nonzero"] == 20
    assert pair["mean_preference"]["mean"] == 2.0
  position = scores["position"]
  assert position["first"] == position["second"] == 180
  assert scores["agreement"]["krippendorff_alpha"] is None  # No value differs.
  assert scores["agreement"]["same_side_share"] == 1.0
  assert scores["agreement"]["num_shared_comparisons"] == 60
  notes = " ".join(scores["warnings"])
  assert "All shared comparisons have one answer" in notes
  assert "No comparison has two raters" not in notes


def test_shares_are_those_that_raters_were_given():
  # Each rater prefers the truth to the model for 15 of 20 texts.
  def prefer(rater, prompt, first, second):
    if {first, second} != {TRUTH, MODEL}:
      return 0
    likes_truth = int(prompt.split()[1]) < 15
    return -1 if (first == TRUTH) == likes_truth else 1

  scores = score(prefer)
  pair = scores["pairs"][1]
  assert pair["systems"] == [TRUTH, MODEL]
  assert pair["counts"] == [0, 90, 0, 30, 0]
  share = pair["win_share"][0]
  assert share["mean"] == 0.75 and 0.4 < share["low"] < 0.7 < share["high"] < 1
  # All raters agree, so texts alone decide: 20 of them, not 120.
  single = np.sqrt(0.75 * 0.25 / 20)
  width = (share["high"] - share["low"]) / 3.92
  assert 0.8 * single < width < 1.3 * single
  # Sum of ranks of 5 of 20 equal values.
  assert pair["wilcoxon_by_text"]["statistic"] == 5 * 10.5
  assert scores["pairs"][0]["ties"] == 120
  assert scores["pairs"][0]["wilcoxon"]["p"] == 1.0
  texts = [one["mean_preference"] for one in pair["texts"]]
  assert texts == [1.0] * 15 + [-1.0] * 5
  np.testing.assert_allclose(scores["agreement"]["krippendorff_alpha"], 1.0)


def test_wilcoxon_is_corrected_for_the_number_of_pairs():
  # 10 differences; the ranks of the three below 0 are 1, 4 and 5.
  differences = np.array([22, -5, 11, 18, -7, 2, 19, -1, 3, 24])
  found = listening_scores.signed_rank(np.append(differences, 0))
  assert found["statistic"] == 4 + 5 + 1 and found["num_nonzero"] == 10
  np.testing.assert_allclose(found["p"], 2 * 43 / 1024, atol=1e-9)
  scores = score(by_rank)
  one = scores["pairs"][0]["wilcoxon"]
  np.testing.assert_allclose(one["p_bonferroni"], 3 * one["p"])


def test_raters_who_fail_checks_do_not_count():
  def prefer(rater, prompt, first, second):
    value = by_rank(rater, prompt, first, second)
    return -value if rater == 2 else value

  scores = score(prefer, passes=lambda rater: rater != 2)
  assert scores["pairs"][0]["wins"] == [100, 0]
  assert scores["answers"] == {
    "expected": 360,
    "given": 360,
    "counted": 300,
    "excluded": 60,
  }
  states = {one["rater"]: one["status"] for one in scores["raters"]}
  assert states["rater 2"] == listening_scores.FAILED
  assert list(states.values()).count(listening_scores.COUNTED) == 5
  assert any("1 of 6 raters failed" in note for note in scores["warnings"])
  with pytest.raises(errors.UserError, match="6 failed attention"):
    score(prefer, passes=lambda rater: False)


def test_one_slip_in_six_checks_is_forgiven():
  test, key = listening_sets.without_audio(SHAPE, num_checks=6)
  log = listening_sets.simulate(test, key, by_rank)
  for slips, status in ((1, "counted"), (2, "failed checks")):
    name = ("rater 0", f"r0c{slips}")
    answer = log.answers[name]
    # A tie is a failure too: noise is no music.
    log.answers[name] = type(answer)(*answer_fields(answer, preference=0))
    people = listening_scores.raters(key, log, 0.2)
    assert people[0]["status"] == status
    assert people[0]["failed_checks"] == slips


def answer_fields(answer, **changes):
  return {**vars(answer), **changes}.values()


def test_a_rater_without_checks_does_not_count():
  test, key = listening_sets.without_audio(SHAPE, num_checks=6)
  log = listening_sets.simulate(test, key, by_rank)
  for rater, item in list(log.answers):
    if rater == "rater 1" and key.items[item].is_check:
      del log.answers[rater, item]
  scores = listening_scores.score(key, log, 360, SETTINGS)
  assert scores["raters"][1]["status"] == listening_scores.UNCHECKED
  assert scores["answers"]["counted"] == 300


def test_position_bias_is_seen_and_does_not_shift_wins():
  scores = score(lambda rater, prompt, first, second: -1)
  share = scores["position"]["share_first"]
  assert share == {"mean": 1.0, "low": 1.0, "high": 1.0}
  for pair in scores["pairs"]:
    assert pair["wins"] == [60, 60] and pair["wilcoxon"]["p"] > 0.9
  assert any("Clip A was preferred" in note for note in scores["warnings"])


def test_raters_who_answer_by_chance_hardly_agree():
  generator = np.random.default_rng(0)
  scores = score(lambda *_: int(generator.integers(-2, 3)))
  assert abs(scores["agreement"]["krippendorff_alpha"]) < 0.15
  assert not any(one["wilcoxon"]["is_significant"] for one in scores["pairs"])
  low, high = (scores["pairs"][0]["win_share"][0][k] for k in ("low", "high"))
  assert low < 0.4 < high


def test_page_and_table_say_it():
  scores = json.loads(json.dumps(score(by_rank)))
  text = listening_page.table(scores)
  assert f"| {TRUTH} | 240 | 240 | 0 | 0 | 100.0 %" in text
  assert f"| {TRUTH} / {MODEL} | 120 | 120 | 0 | 0 |" in text
  page = listening_page.page(scores, "A <b>test</b>", "Which & why?")
  assert "A &lt;b&gt;test&lt;/b&gt;" in page and "Which &amp; why?" in page
  assert page.count("<rect") == 3 * 5 and "<script" not in page
