# SPDX-License-Identifier: Apache-2.0
"""Retrieval with planted ranks, ties and shared captions."""

import numpy as np
import pytest

from musiclm_jax.evaluation import retrieval


def test_ranks_are_the_planted_ones_and_ties_count_against():
  scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.5, 0.5, 0.5]])
  relevant = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]], bool)
  assert retrieval.ranks(scores, relevant).tolist() == [1, 3, 3]
  # With several hits, the best one counts.
  relevant[1, 1] = True
  assert retrieval.ranks(scores, relevant).tolist() == [1, 2, 3]


def test_perfect_and_collapsed_embeddings():
  perfect = retrieval.retrieval(np.eye(40), np.eye(40))
  for scores in perfect.values():
    assert scores["recall_at_1"] == scores["recall_at_10"] == 1.0
    assert scores["median_rank"] == 1
    assert scores["num_items"] == 40
    assert scores["chance_at_10"] == pytest.approx(0.25)
  collapsed = retrieval.retrieval(np.ones((40, 4)) / 2, np.ones((40, 4)) / 2)
  assert collapsed["text_to_audio"]["recall_at_10"] == 0.0


def test_a_known_shift_gives_known_recall():
  # Text i scores audio j by how far j is after i: the match has rank 4.
  gap = (np.arange(30)[None, :] - np.arange(30)[:, None] + 3) % 30
  similarity = 1.0 - gap / 30.0
  scores = retrieval.retrieval(np.eye(30), similarity.T)["text_to_audio"]
  assert scores["recall_at_1"] == 0.0
  assert scores["recall_at_10"] == 1.0
  assert scores["median_rank"] == 4


def test_equal_captions_are_hits_for_each_other():
  texts = ["a", "a", "b", "c"]
  vectors = np.eye(4)
  text = vectors[[0, 0, 2, 3]]
  # The second clip of "a" looks like nothing: its caption still finds "a".
  audio = vectors[[0, 1, 2, 3]]
  scores = retrieval.retrieval(text, audio, texts)
  assert scores["text_to_audio"]["num_queries"] == 3
  assert scores["text_to_audio"]["num_items"] == 4
  assert scores["text_to_audio"]["recall_at_1"] == 1.0
  assert scores["text_to_audio"]["chance_at_1"] == pytest.approx(1 / 3)
  assert scores["audio_to_text"]["num_items"] == 3
  assert scores["audio_to_text"]["num_queries"] == 4
  assert scores["audio_to_text"]["recall_at_1"] == 0.75


def test_chance_is_what_random_embeddings_reach():
  generator = np.random.default_rng(0)
  texts = [str(index // 3) for index in range(150)]
  found, chance = [], []
  for _ in range(30):
    text = generator.normal(size=(50, 16))[np.arange(150) // 3]
    audio = generator.normal(size=(150, 16))
    scores = retrieval.retrieval(text, audio, texts)["text_to_audio"]
    found.append(scores["recall_at_10"])
    chance.append(scores["chance_at_10"])
  assert np.mean(found) == pytest.approx(chance[0], abs=0.03)
  assert retrieval.chance_at(10, 5, np.array([1])) == 1.0


def test_bad_shapes_are_named():
  with pytest.raises(ValueError, match="expected one"):
    retrieval.retrieval(np.eye(3), np.eye(4))
  with pytest.raises(ValueError, match="2 texts"):
    retrieval.retrieval(np.eye(3), np.eye(3), ["a", "b"])
