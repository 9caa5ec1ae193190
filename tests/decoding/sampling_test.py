# SPDX-License-Identifier: Apache-2.0
"""Sampling: greedy, filters, distribution and independence of neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.decoding import sampling


def _keys(count):
  return jax.random.split(jax.random.key(0), count)


def test_temperature_zero_is_greedy():
  logits = jax.random.normal(jax.random.key(1), (5, 7))
  codes = sampling.sample(logits, _keys(5), sampling.SamplingConfig(0.0))
  np.testing.assert_array_equal(codes, logits.argmax(-1))


def test_draws_follow_the_tempered_softmax():
  logits = jnp.array([0.0, 1.0, 2.0])
  config = sampling.SamplingConfig(2.0)
  codes = sampling.sample(jnp.tile(logits, (20000, 1)), _keys(20000), config)
  found = np.bincount(codes, minlength=3) / 20000
  np.testing.assert_allclose(found, jax.nn.softmax(logits / 2), atol=0.015)


def test_top_k_and_top_p_keep_the_most_likely():
  logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))
  kept = sampling.filter_logits(logits, sampling.SamplingConfig(top_k=2))
  np.testing.assert_array_equal(np.isfinite(kept)[0], [0, 1, 0, 1])
  kept = sampling.filter_logits(logits, sampling.SamplingConfig(top_p=0.75))
  np.testing.assert_array_equal(np.isfinite(kept)[0], [0, 1, 1, 1])
  kept = sampling.filter_logits(logits, sampling.SamplingConfig(top_p=0.01))
  np.testing.assert_array_equal(np.isfinite(kept)[0], [0, 1, 0, 0])


def test_draw_depends_on_own_key_and_position_only():
  logits = jax.random.normal(jax.random.key(1), (6, 50))
  keys, at = _keys(6), jnp.arange(6)
  config = sampling.SamplingConfig()
  many = sampling.sample(logits, sampling.position_keys(keys, at), config)
  one = sampling.sample(
    logits[3:4], sampling.position_keys(keys[3:4], at[3:4]), config
  )
  assert int(many[3]) == int(one[0])
  draws = {
    int(
      sampling.sample(
        logits[:1], sampling.position_keys(keys[:1], at[i : i + 1]), config
      )[0]
    )
    for i in range(6)
  }
  assert len(draws) > 1


@pytest.mark.parametrize(
  "fields", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}]
)
def test_bad_values_are_refused(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    sampling.SamplingConfig(**fields)


def test_the_end_comes_as_often_as_it_is_likely_and_no_code_twice():
  chances = np.array([0.5, 0.2, 0.2, 0.1], np.float32)
  logits = jnp.tile(jnp.log(chances), (2000, 1))
  keys = jax.random.split(jax.random.key(0), 2000)
  # Cold, and of one code only: the end, 0.1 of what is not code 0, stays.
  for config in (
    sampling.SamplingConfig(0.2),
    sampling.SamplingConfig(1.0, top_k=1),
  ):
    draw = jax.jit(sampling.sample_or_end, static_argnums=3)
    codes = np.asarray(draw(logits, jnp.zeros(2000, jnp.int32), keys, config))
    assert not (codes == 0).any()
    assert np.mean(codes == 3) == pytest.approx(0.2, abs=0.03)
    # After the end nothing ends: it is the one before.
    codes = draw(logits, jnp.full(2000, 3), keys, config)
    assert np.asarray(codes).max() < 3
  greedy = sampling.sample_or_end(
    logits[:1], jnp.array([0]), keys[:1], sampling.SamplingConfig(0.0)
  )
  assert int(greedy[0]) == 1
