# SPDX-License-Identifier: Apache-2.0
"""MCC: planted cosines, fair shuffling."""

import numpy as np
import pytest

from musiclm_jax.evaluation import mulan_consistency


@pytest.mark.parametrize("seed", range(20))
def test_derangement_is_a_permutation_that_changes_every_text(seed):
  texts = list("aaabbcdefff")
  other = mulan_consistency.derangement(texts, seed)
  assert sorted(other) == list(range(len(texts)))
  assert all(texts[i] != texts[j] for i, j in enumerate(other))


def test_derangements_differ_by_seed_and_reach_every_partner():
  partners = {mulan_consistency.derangement("abcd", s)[0] for s in range(40)}
  assert partners == {1, 2, 3}


def test_a_shared_majority_text_is_refused():
  with pytest.raises(ValueError, match="3 of 5 items"):
    mulan_consistency.derangement(list("aaabc"))


def test_planted_agreement_is_measured():
  generator = np.random.default_rng(0)
  text = np.eye(64)[:40]
  noise = generator.normal(size=(40, 64))
  noise -= (noise * text).sum(-1, keepdims=True) * text
  noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
  audio = 0.6 * text + 0.8 * noise
  result = mulan_consistency.mulan_consistency(5 * text, 2 * audio)
  assert result["matched"]["mean"] == pytest.approx(0.6)
  assert abs(result["shuffled"]["mean"]) < 0.05
  assert result["difference"]["low"] > 0.5
  difference = result["matched"]["mean"] - result["shuffled"]["mean"]
  assert result["difference"]["mean"] == pytest.approx(difference)


def test_unrelated_audio_gives_an_interval_around_zero():
  generator = np.random.default_rng(1)
  text, audio = generator.normal(size=(2, 60, 32))
  result = mulan_consistency.mulan_consistency(text, audio)
  assert result["difference"]["low"] < 0 < result["difference"]["high"]


def test_crops_are_averaged():
  text = np.eye(3)
  audio = np.stack([np.eye(3), np.eye(3)[[1, 2, 0]]], axis=1)
  np.testing.assert_allclose(mulan_consistency.cosines(text, audio), 0.5)


def test_unequal_numbers_are_refused():
  with pytest.raises(ValueError, match="3 text and 2 audio"):
    mulan_consistency.mulan_consistency(np.eye(3), np.eye(3)[:2])
