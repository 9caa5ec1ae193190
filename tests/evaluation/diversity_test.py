# SPDX-License-Identifier: Apache-2.0
"""Diversity: distances by hand, groups, copies that are found."""

import itertools

import numpy as np
import pytest

from musiclm_jax.evaluation import diversity


def test_cosine_distances_by_hand():
  found = diversity.cosine_distances(
    np.array([[2.0, 0], [0, 3], [-1, 0], [0, 0]])
  )
  expected = [[0, 1, 2, 1], [1, 0, 1, 1], [2, 1, 0, 1], [1, 1, 1, 0]]
  np.testing.assert_allclose(found, expected, atol=1e-15)


@pytest.mark.parametrize("block", [1 << 24, 40])
def test_token_distances_by_definition(block, monkeypatch):
  monkeypatch.setattr(diversity, "_BLOCK_VALUES", block)
  codes = np.random.default_rng(0).integers(0, 3, (5, 7, 2))
  found = diversity.token_distances(codes)
  for i, j in itertools.product(range(5), repeat=2):
    assert found[i, j] == pytest.approx((codes[i] != codes[j]).mean())


def test_unigram_distances_do_not_see_time():
  codes = np.array([[0, 0, 1, 2], [2, 1, 0, 0], [0, 0, 0, 0], [9, 9, 9, 9]])
  found = diversity.unigram_distances(codes)
  expected = [[0, 0, 0.5, 1], [0, 0, 0.5, 1], [0.5, 0.5, 0, 1], [1, 1, 1, 0]]
  np.testing.assert_allclose(found, expected)
  assert diversity.token_distances(codes)[0, 1] == 1.0
  # Codebooks are counted apart: the second one is the same everywhere.
  both = np.stack([codes, np.full_like(codes, 7)], -1)
  np.testing.assert_allclose(diversity.unigram_distances(both), found / 2)


def test_mean_over_pairs_with_an_interval():
  generator = np.random.default_rng(1)
  distances = diversity.cosine_distances(generator.normal(size=(30, 6)))
  found = diversity.diversity(distances, num_resamples=300)
  pairs = distances[np.triu_indices(30, 1)]
  assert found.distance.mean == pytest.approx(pairs.mean())
  assert found.distance.low < pairs.mean() < found.distance.high
  assert found.smallest == pytest.approx(pairs.min())
  assert found.nearest == pytest.approx(
    np.where(np.eye(30) > 0, 9, distances).min(1).mean()
  )
  assert (found.num_items, found.num_pairs) == (30, 435)
  # A clip drawn twice adds no 0: draws lie around the mean.
  middle = (found.distance.low + found.distance.high) / 2
  assert middle == pytest.approx(pairs.mean(), abs=0.02)


def test_prompts_count_alike_and_copies_are_found():
  distances = np.full((6, 6), 0.8)
  distances[:3, :3] = 0.2
  distances[3, 4] = distances[4, 3] = 0.0
  np.fill_diagonal(distances, 0)
  found = diversity.diversity(distances, ["a", "a", "a", "b", "b", "c"])
  assert found.distance.mean == pytest.approx((0.2 + 0.0) / 2)
  assert (found.num_items, found.num_pairs) == (5, 4)
  assert found.smallest == 0.0
  assert found.to_dict()["distance"]["mean"] == pytest.approx(0.1)


def test_one_answer_to_every_prompt_scores_0():
  codes = np.repeat(np.random.default_rng(2).integers(0, 9, (1, 50)), 4, 0)
  for distances in (diversity.token_distances, diversity.unigram_distances):
    assert diversity.diversity(distances(codes)).distance == (0.0, 0.0, 0.0)


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="no pair"):
    diversity.diversity(np.zeros((1, 1)))
  with pytest.raises(ValueError, match="no pair"):
    diversity.diversity(np.zeros((2, 2)), ["a", "b"])
  with pytest.raises(ValueError, match="3 groups"):
    diversity.diversity(np.zeros((2, 2)), "abc")
  with pytest.raises(ValueError, match="float64"):
    diversity.token_distances(np.zeros((2, 3)))
  with pytest.raises(ValueError, match="expected finite"):
    diversity.cosine_distances(np.full((2, 3), np.nan))
