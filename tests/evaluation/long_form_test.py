# SPDX-License-Identifier: Apache-2.0
"""Long-form figures: stories, drift and repetition that were planted."""

import numpy as np
import pytest

from musiclm_jax.evaluation import long_form, long_form_figures, repetition

RATE_HZ = 100


def test_windows_across_a_change_have_no_prompt():
  found = long_form.active_prompts(8, 3.0, 1.0, [0, 5])
  #  begins 0 1 2 | 3 4 reach beyond 5 | 5 6 7
  np.testing.assert_array_equal(found, [0, 0, 0, -1, -1, 1, 1, 1])
  # A transition takes 2 s: until 7 neither of the two holds.
  found = long_form.active_prompts(9, 3.0, 1.0, [0, 5], [0, 7])
  np.testing.assert_array_equal(found, [0, 0, 0, -1, -1, -1, -1, 1, 1])
  # Times that come of sums.
  found = long_form.active_prompts(4, 0.1, 0.1, [0, 0.1 + 0.2])
  np.testing.assert_array_equal(found, [0, 0, 0, 1])


def story(seed=0):
  generator = np.random.default_rng(seed)
  texts = generator.normal(size=(3, 16))
  active = np.repeat([0, 1, 2], 10)
  windows = texts[active] + 0.8 * generator.normal(size=(30, 16))
  return windows, texts, active


def test_story_that_follows_its_prompts():
  windows, texts, active = story()
  active[[9, 10, 19]] = -1
  found = long_form.story_score(windows, texts, active)
  assert found.num_windows == 27
  assert found.share_won > 0.9 and found.margin > 0.4
  cosine = [
    w @ t / np.linalg.norm(w) / np.linalg.norm(t)
    for w, t in zip(windows[:9], texts[[0] * 9])
  ]
  assert found.by_prompt[0] == pytest.approx(np.mean(cosine))


def test_story_that_does_not_change_with_its_prompts():
  windows, texts, active = story()
  found = long_form.story_score(windows, texts, (active + 1) % 3)
  assert found.share_won < 0.2 and found.margin < -0.1
  stuck = long_form.story_score(windows[:10].repeat(3, 0), texts, active)
  assert stuck.share_won == pytest.approx(1 / 3)
  assert stuck.by_prompt[0] > max(stuck.by_prompt[1:])


def test_one_prompt_has_no_others():
  windows, texts, _ = story()
  found = long_form.story_score(windows, texts[:1], np.zeros(30, int))
  assert np.isnan(found.others) and found.share_won == 1.0
  held = long_form.story_score(windows[:10], texts, np.zeros(10, int))
  assert np.isnan(held.by_prompt[1])


def heard(windows, seed=0):
  noise = np.random.default_rng(seed).normal(size=30 * RATE_HZ)
  return long_form_figures.Heard(
    0.1 * noise, RATE_HZ, windows, 2.0, 1.0, {"semantic": (np.arange(750), 25)}
  )


def test_figures_over_pieces():
  rows = []
  for seed in range(5):
    windows, texts, _ = story(seed)
    told = long_form_figures.Told(texts, [0, 10, 20], [0, 12, 20])
    figures, missing = long_form_figures.of_piece(heard(windows, seed), told)
    assert not missing
    rows.append(figures)
  active = long_form.active_prompts(30, 2, 1, [0, 10, 20], [0, 12, 20])
  score = long_form.story_score(windows, texts, active)
  assert rows[-1]["story_margin"] == score.margin
  assert rows[-1]["semantic_loops_at_end"] == 0.0
  found = long_form_figures.over_pieces(rows)
  margin = found["story_margin"]
  assert 0.3 < margin["low"] < margin["mean"] < margin["high"] < 1.0
  assert margin["num_items"] == 5
  assert {name.partition("_")[0] for name in found} == {
    "story", "drift", "level", "embedding", "semantic",
  }  # fmt: skip


def test_figures_that_a_piece_is_too_short_for():
  windows, texts, _ = story()
  told = long_form_figures.Told(texts[:1], [0], [0])
  figures, missing = long_form_figures.of_piece(heard(windows[:6]), told)
  # One prompt has no others; 6 windows are too few for drift.
  assert set(missing) == {"drift"} and "story_score" in figures
  assert not {"story_margin", "drift_per_minute"} & set(figures)
  told = long_form_figures.Told(texts, [0, 1, 2], [0, 1, 2.5])
  _, missing = long_form_figures.of_piece(heard(windows[:2]), told)
  assert "inside one prompt" in missing["story"]
  found = long_form_figures.over_pieces([figures, {}])
  # The spread of one piece says nothing of others.
  assert np.isnan(found["story_score"]["low"])
  assert found["story_score"]["num_items"] == 1
  shown = long_form_figures.table({"made": found, "real": {}})
  assert "n = 1 | - |" in shown and "nan" not in shown


def test_drift_of_music_that_turns_into_something_else():
  generator = np.random.default_rng(1)
  first, last = np.eye(2, 24)
  noise = 0.05 * generator.normal(size=(61, 24))
  # From one to the other in 60 s, by the angle.
  angle = np.linspace(0, np.pi / 2, 61)[:, None]
  turning = np.cos(angle) * first + np.sin(angle) * last + noise
  found = long_form.drift(turning, 5.0, 1.0)
  assert found.per_minute > 0.9 and found.end > 0.8 > 0.2 > found.start
  steady = long_form.drift(first + noise, 5.0, 1.0)
  assert abs(steady.per_minute) < 0.05
  assert steady.end == pytest.approx(steady.start, abs=0.03)
  with pytest.raises(ValueError, match="12 windows of 5"):
    long_form.drift(turning[:12], 5.0, 1.0)


@pytest.mark.parametrize(
  "window_secs, hop_secs, first", [(10, 4, 20), (3, 2, 6), (5, 1, 9), (4, 4, 4)]
)
def test_drift_leaves_out_what_overlaps_the_begin(window_secs, hop_secs, first):
  windows = np.eye(30)
  times = long_form._after_begin(windows, window_secs, hop_secs)[2]
  # The last window that starts within the first one ends here.
  last = max(t for t in np.arange(30) * hop_secs if t < window_secs)
  assert times[0] == first >= last + window_secs > first - hop_secs


def test_level_drift_of_a_fade():
  time = np.arange(60 * RATE_HZ) / RATE_HZ
  tone = np.sin(2 * np.pi * 7 * time).astype(np.float32)
  fade = 10 ** (-30 / 20 * time / 60)
  assert long_form.level_drift_db(tone * fade, RATE_HZ) == pytest.approx(
    -30, abs=1
  )
  assert long_form.level_drift_db(tone, RATE_HZ) == pytest.approx(0, abs=0.1)
  silent = long_form.level_drift_db(0 * tone, RATE_HZ)
  assert silent == pytest.approx(0, abs=1e-9)
  with pytest.raises(ValueError, match="at least 2 s"):
    long_form.level_drift_db(tone[:150], RATE_HZ)


def test_codes_that_never_come_back():
  found = repetition.token_repetition(np.arange(200), 25)
  assert (found.repeated_share, found.longest_secs) == (0.0, 0.0)
  assert np.isnan(found.loop_period_secs)
  assert found.to_dict()["loop_period_secs"] is None


def test_planted_passage_and_loop():
  codes = np.arange(400)
  codes[300:350] = codes[100:150]
  found = repetition.token_repetition(codes, 25)
  assert found.longest_secs == pytest.approx(2.0)
  # 26 of 376 windows of 25 frames came before.
  assert found.repeated_share == pytest.approx(26 / 375)
  stuck = np.concatenate([np.arange(200), np.tile(np.arange(500, 515), 20)])
  found = repetition.token_repetition(stuck, 25)
  assert found.loop_period_secs == pytest.approx(0.6)
  assert found.longest_secs == pytest.approx(150 / 25)
  assert found.repeated_share > 0.5
  held = repetition.token_repetition(np.zeros(100, int), 25)
  assert held.repeated_share == 1.0
  assert held.loop_period_secs == pytest.approx(1 / 25)


def test_a_frame_repeats_if_all_its_codes_do():
  first = np.tile(np.arange(50), 2)
  both = np.stack([first, np.arange(100)], -1)
  assert repetition.token_repetition(both, 25).repeated_share == 0.0
  same = np.stack([first, first], -1)
  alone = repetition.token_repetition(first, 25)
  assert repetition.token_repetition(same, 25).to_dict() == alone.to_dict()
  assert alone.longest_secs == 2.0


def test_embedding_repetition():
  generator = np.random.default_rng(2)
  parts = generator.normal(size=(20, 32))
  twice = np.concatenate([parts, parts])
  assert repetition.embedding_repetition(twice, 2, 1) == pytest.approx(1.0)
  fresh = repetition.embedding_repetition(generator.normal(size=(40, 32)), 2, 1)
  assert fresh < 0.6
  # Overlapping neighbours do not count.
  near = parts.repeat(2, 0)
  assert repetition.embedding_repetition(near, 2, 1) < 0.7
  assert repetition.embedding_repetition(near, 1, 1) == pytest.approx(1.0)
  with pytest.raises(ValueError, match="do not overlap"):
    repetition.embedding_repetition(parts[:3], 5, 1)


@pytest.mark.parametrize(
  "call, match",
  [
    (lambda: long_form.active_prompts(3, 1, 1, [1, 2]), "ascend from 0"),
    (lambda: long_form.active_prompts(3, 1, 1, [0, 2], [1, 1]), "not before"),
    (lambda: long_form.active_prompts(3, 0, 1, [0]), "window_secs=0"),
    (
      lambda: long_form.story_score(np.ones((3, 2)), np.ones((1, 2)), [-1] * 3),
      "a prompt in at least one",
    ),
    (
      lambda: long_form.story_score(np.ones((1, 2)), np.ones((1, 2)), [1]),
      "expected",
    ),
    (lambda: repetition.token_repetition(np.zeros(9), 25), "float64"),
    (lambda: repetition.token_repetition(np.arange(25), 25), "25 frames"),
    (lambda: repetition.embedding_repetition(np.ones(3), 1, 1), "shape"),
  ],
)
def test_bad_input_is_named(call, match):
  with pytest.raises(ValueError, match=match):
    call()
