# SPDX-License-Identifier: Apache-2.0
"""Text scores: pooling of windows, own and other texts."""

import numpy as np
import pytest

from musiclm_jax.evaluation import mulan_consistency, text_score


def test_score_is_the_cosine_whatever_the_lengths():
  text = np.array([[3.0, 0], [0, 2]])
  audio = np.array([[5.0, 5.0], [0, -1]])
  np.testing.assert_allclose(
    text_score.text_scores(text, audio), [np.sqrt(0.5), -1]
  )


def test_pooling_of_windows():
  text = np.array([[1.0, 0.0]])
  windows = [np.array([[4.0, 0], [0, 1]])]
  cosine = text_score.text_scores(text, windows)
  assert cosine == pytest.approx(0.5)
  mean = text_score.text_scores(text, windows, text_score.COSINE_OF_MEAN)
  assert mean == pytest.approx(np.sqrt(0.5))  # Each window counts as much.
  # As MCC of three crops.
  generator = np.random.default_rng(0)
  texts, audio = generator.normal(size=(5, 8)), generator.normal(size=(5, 3, 8))
  np.testing.assert_allclose(
    text_score.text_scores(texts, audio),
    mulan_consistency.cosines(texts, audio),
  )


def test_numbers_of_windows_may_differ():
  generator = np.random.default_rng(1)
  clips = [generator.normal(size=(count, 4)) for count in (1, 5, 2)]
  texts = generator.normal(size=(3, 4))
  found = text_score.text_scores(texts, clips)
  for index, clip in enumerate(clips):
    alone = text_score.text_scores(texts[index : index + 1], [clip])
    assert found[index] == pytest.approx(alone[0])


def test_bad_input_is_named():
  texts = np.eye(3)
  with pytest.raises(ValueError, match="pooling='max'"):
    text_score.text_scores(texts, texts, "max")
  with pytest.raises(ValueError, match=r"shape \(2, 3\): expected \(3, 3\)"):
    text_score.text_scores(texts[:2], texts)
  with pytest.raises(ValueError, match="clip 1"):
    text_score.text_scores(texts, [texts, texts[:0], texts])
  with pytest.raises(ValueError, match="clip 0"):
    text_score.text_scores(texts, texts * np.nan)
