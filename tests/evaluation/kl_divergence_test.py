# SPDX-License-Identifier: Apache-2.0
"""KLD: direction, epsilon and normalisation, by definitions written out."""

import numpy as np
import pytest

from musiclm_jax.evaluation import kl_divergence as kld


def test_direction_and_epsilon_are_audiocrafts():
  reference, evaluated = (
    np.array([0.7, 0.2, 0.1]),
    np.array([0.5, 0.5 - 1e-9, 1e-9]),
  )
  expected = (reference * (np.log(reference) - np.log(evaluated + 1e-6))).sum()
  # Logits carry a constant that softmax does not see.
  found = kld.kl_divergence(
    np.log(reference)[None] + 3, np.log(evaluated)[None] - 200, False
  )
  assert found.shape == (1,)
  assert found[0] == pytest.approx(expected, abs=1e-9)
  # Without epsilon the missing class costs more, the other way it is cheap.
  plain = kld.kl_divergence(
    np.log(reference)[None], np.log(evaluated)[None], False, epsilon=0
  )
  assert plain[0] > found[0] + 0.5
  back = (evaluated * (np.log(evaluated) - np.log(reference + 1e-6))).sum()
  other = kld.kl_divergence(
    np.log(evaluated)[None], np.log(reference)[None], False
  )
  assert other[0] == pytest.approx(back, abs=1e-9)


def test_multi_label_divides_sigmoids_by_their_sum():
  generator = np.random.default_rng(0)
  first, second = generator.normal(size=(2, 4, 6))
  sigmoid = [1 / (1 + np.exp(-x)) for x in (first, second)]
  p, q = (one / one.sum(-1, keepdims=True) for one in sigmoid)
  expected = (p * (np.log(p) - np.log(q + 1e-6))).sum(-1)
  np.testing.assert_allclose(
    kld.kl_divergence(first, second, True), expected, atol=1e-12
  )
  assert not np.allclose(kld.kl_divergence(first, second, False), expected)
  assert kld.normalization(True) != kld.normalization(False)


def test_same_clip_is_0_and_divergence_is_not_negative():
  logits = np.random.default_rng(1).normal(size=(5, 20))
  other = np.random.default_rng(2).normal(size=(5, 20))
  for multi_label in (True, False):
    same = kld.kl_divergence(logits, logits, multi_label, epsilon=0)
    np.testing.assert_allclose(same, 0, atol=1e-12)
    near = kld.kl_divergence(logits, logits, multi_label)
    assert (near < 0).all() and (near > -20 * kld.EPSILON).all()
    assert (kld.kl_divergence(logits, other, multi_label, epsilon=0) > 0).all()


def test_extreme_logits_stay_finite():
  first, second = np.array([[1000.0, -1000, 0]]), np.array([[-1000.0, 1000, 0]])
  for multi_label in (True, False):
    for pair in ((first, second), (second, first)):
      assert np.isfinite(kld.kl_divergence(*pair, multi_label)).all()
  one_class = kld.kl_divergence(first, second, False)
  assert one_class[0] == pytest.approx(-np.log(1e-6))
  total = np.exp(kld.log_probabilities(first, True)).sum()
  assert total == pytest.approx(1.0)


def test_windows_are_compared_one_by_one():
  first, second = np.random.default_rng(3).normal(size=(2, 3, 4, 5))
  found = kld.kl_divergence(first, second, False)
  expected = [
    kld.kl_divergence(a, b, False).mean() for a, b in zip(first, second)
  ]
  np.testing.assert_allclose(found, expected)


def test_bad_input_is_named():
  logits = np.zeros((2, 3))
  with pytest.raises(ValueError, match=r"\(2, 3\) and \(1, 3\)"):
    kld.kl_divergence(logits, logits[:1], False)
  with pytest.raises(ValueError, match="NaN"):
    kld.kl_divergence(logits, logits * np.nan, True)
  with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
    kld.kl_divergence(logits[:, :1], logits[:, :1], True)
