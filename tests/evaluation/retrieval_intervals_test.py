# SPDX-License-Identifier: Apache-2.0
"""Retrieval query by query, with intervals over works."""

import numpy as np
import pytest

from musiclm_jax.evaluation import (
  bootstrap,
  mulan_table,
  retrieval,
  retrieval_intervals,
)


def _unit(rows):
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _pairs(noise, seed=0, num_clips=120):
  generator = np.random.default_rng(seed)
  texts = [f"text {index // 2}" for index in range(num_clips)]
  text = np.repeat(generator.normal(size=(num_clips // 2, 24)), 2, axis=0)
  audio = text + noise * generator.normal(size=text.shape)
  works = [f"work {index // 4}" for index in range(num_clips)]
  return _unit(text), _unit(audio), texts, works


def test_average_precision_of_hand_made_orders():
  scores = np.array([[4.0, 3, 2, 1]] * 4)
  relevant = np.array(
    [[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 1, 0, 0]], bool
  )
  found = retrieval_intervals.average_precision(scores, relevant)
  np.testing.assert_allclose(found, [(1 + 2 / 3) / 2, 1 / 4, 1, 1 / 2])
  # Of hits below the depth nothing is seen, of more hits than depth no more.
  found = retrieval_intervals.average_precision(scores, relevant, depth=2)
  np.testing.assert_allclose(found, [1 / 2, 0, 1, 1 / 2])
  # Ties count against the hit.
  found = retrieval_intervals.average_precision(np.ones((4, 4)), relevant)
  np.testing.assert_allclose(found, [(1 / 3 + 2 / 4) / 2, 1 / 4, 1, 1 / 4])


def test_table_equals_the_plain_scores():
  text, audio, texts, works = _pairs(2.0)
  plain = retrieval.retrieval(text, audio, texts)
  found = retrieval_intervals.search(text, audio, texts)
  table = retrieval_intervals.table(found, works)
  for direction, expected in plain.items():
    row = table[direction]
    for name in ("recall_at_1", "recall_at_10", "median_rank"):
      interval = row[name]
      assert interval["mean"] == pytest.approx(expected[name])
      assert interval["low"] <= interval["mean"] <= interval["high"]
    for name in ("chance_at_1", "chance_at_10", "num_items", "num_queries"):
      assert row[name] == pytest.approx(expected[name])
    recalls = [row[f"recall_at_{k}"]["mean"] for k in (1, 5, 10)]
    assert 0 < recalls[0] < recalls[1] < recalls[2] < 1
    assert recalls[0] / 2 <= row["map_at_10"]["mean"] <= recalls[2]
    assert row["chance_at_1"] < row["chance_at_5"] < row["chance_at_10"]


def test_many_queries_go_in_parts(monkeypatch):
  text, audio, texts, _ = _pairs(2.0)
  whole = retrieval_intervals.search(text, audio, texts)
  monkeypatch.setattr(retrieval_intervals, "_QUERIES", 7)
  parts = retrieval_intervals.search(text, audio, texts)
  for one, other in zip(whole.audio_to_text[:3], parts.audio_to_text[:3]):
    np.testing.assert_array_equal(one, other)


def test_difference_is_paired_by_clip():
  text, audio, texts, works = _pairs(1.5)
  good = retrieval_intervals.search(text, audio, texts)
  noise = np.random.default_rng(3).normal(size=text.shape)
  other = [f"other {index}" for index in range(len(texts))]
  bad = retrieval_intervals.search(_unit(text + 0.6 * noise), audio, other)
  same = retrieval_intervals.difference(good, good, works)
  worse = retrieval_intervals.difference(bad, good, works)
  for direction in ("text_to_audio", "audio_to_text"):
    assert same[direction]["recall_at_10"] == {"mean": 0, "low": 0, "high": 0}
    assert worse[direction]["recall_at_10"]["high"] < 0
  # A text of several clips counts for each of them.
  rank = good.text_to_audio.rank[good.group]
  gap = (bad.text_to_audio.rank <= 5).mean() - (rank <= 5).mean()
  found = worse["text_to_audio"]["recall_at_5"]["mean"]
  assert found == pytest.approx(gap)


def test_the_page_shows_every_number():
  text, audio, texts, works = _pairs(1.5)
  found = retrieval_intervals.search(text, audio, texts)
  table = retrieval_intervals.table(found, works)
  result = {"retrieval": {"captions": table}, "zero_shot": {}}
  lines = mulan_table.table(result).splitlines()
  assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
  recall = table["text_to_audio"]["recall_at_1"]
  assert f"{100 * recall['mean']:.1f} ({100 * recall['low']:.1f}" in lines[2]
  assert mulan_table.interval({"mean": 1, "low": None, "high": None}) == "-"


def test_bad_shapes_are_named():
  with pytest.raises(ValueError, match="3 texts"):
    retrieval_intervals.search(np.eye(4), np.eye(4), ["a"] * 3)


def test_groups_are_drawn_whole():
  groups = ["a", "a", "b", "c", "c", "c"]
  counts = bootstrap.resample_groups(groups, 500, seed=1)
  assert counts.shape == (500, 6)
  np.testing.assert_array_equal(counts[:, 0], counts[:, 1])
  np.testing.assert_array_equal(counts[:, 3], counts[:, 5])
  np.testing.assert_array_equal(counts[:, [0, 2, 3]].sum(1), 3)
  np.testing.assert_allclose(counts.mean(0), 1.0, atol=0.12)
  again = bootstrap.resample_groups(groups, 500, seed=1)
  np.testing.assert_array_equal(counts, again)
  with pytest.raises(ValueError, match="0 items"):
    bootstrap.resample_groups([])


def test_grouped_statistics_equal_those_of_repeated_items():
  values = np.array([5.0, 1, 4, 2, 2, 9])
  counts = bootstrap.resample_groups(["a", "a", "b", "c", "d", "d"], 200)
  drawn = [np.repeat(values, row.astype(int)) for row in counts]
  for function, plain in (
    (bootstrap.grouped_mean, np.mean),
    (bootstrap.grouped_median, np.median),
  ):
    found = function(values, counts)
    low, high = np.quantile([plain(draw) for draw in drawn], (0.025, 0.975))
    np.testing.assert_allclose(found, (plain(values), low, high))


def test_single_groups_give_the_usual_interval():
  values = np.random.default_rng(0).normal(size=200)
  counts = bootstrap.resample_groups([str(i) for i in range(200)], 4000)
  found = bootstrap.grouped_mean(values, counts)
  expected = bootstrap.mean_interval(values, 4000)
  np.testing.assert_allclose(found, expected, atol=0.015)
