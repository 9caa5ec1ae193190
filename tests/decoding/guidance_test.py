# SPDX-License-Identifier: Apache-2.0
"""Guided logits and the doubled batch, on functions whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.decoding import autoregressive, guidance, sampling


def test_logits_are_those_of_the_formula():
  told, other = jax.random.normal(jax.random.key(0), (2, 3, 5))
  both = jnp.concatenate([told, other])
  np.testing.assert_array_equal(guidance.guide_logits(both, 1.0), told)
  np.testing.assert_allclose(guidance.guide_logits(both, 0.0), other, atol=1e-6)
  # p ~ p(code | told)^g / p(code | other)^(g - 1)
  ratio = jax.nn.softmax(told) ** 3 / jax.nn.softmax(other) ** 2
  np.testing.assert_allclose(
    jax.nn.softmax(guidance.guide_logits(both, 3.0)),
    ratio / ratio.sum(-1, keepdims=True),
    rtol=1e-4,
  )


@pytest.mark.parametrize("forced", [None, [[[3], [1]], [[0], [2]]]])
def test_both_halves_of_the_cache_take_the_same_codes(forced):
  """Row r wants code (last code + bias[r]), the told half more so."""
  bias = jnp.array([1, 2, 3, 4])
  size = 5

  def step(cache, token):
    assert token.shape == (4,)
    return jnp.concatenate([cache[:, 1:], token[:, None]], 1), token

  def logits(hidden, level):
    return 2.0 * jax.nn.one_hot((hidden + bias + level) % size, size)

  keys = jax.random.split(jax.random.key(0), 2)
  guided = guidance.guided(step, logits, 3.0)
  codes, cache = autoregressive.decode(
    *guided,
    jnp.full((4, 2), -1),
    jnp.zeros(4, jnp.int32),
    keys,
    jnp.zeros(2, jnp.int32),
    np.array([0], np.int32),
    2,
    sampling.SamplingConfig(0.0, guidance=3.0),
    None if forced is None else jnp.asarray(forced),
    0 if forced is None else 2,
  )
  expected = [[[1], [2]], [[2], [4]]] if forced is None else forced
  np.testing.assert_array_equal(codes, expected)
  np.testing.assert_array_equal(
    cache, np.tile(np.squeeze(expected, -1), (2, 1))
  )
