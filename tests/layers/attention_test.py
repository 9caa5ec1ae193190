# SPDX-License-Identifier: Apache-2.0
"""Attention against a direct formula, and its cache."""

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.layers import attention
from musiclm_jax.partitioning import axes


def _setup(**fields):
  module = attention.SelfAttention(2, 4, **fields)
  x = jax.random.normal(jax.random.key(0), (2, 6, 8))
  variables = axes.unbox(
    attention.SelfAttention(2, 4).init(
      jax.random.key(1), x, None, jnp.arange(6)
    )
  )
  return module, variables, x


def test_equals_the_formula():
  module, variables, x = _setup()
  out = module.apply(variables, x, None, jnp.arange(6))
  kernel = np.asarray(variables["params"]["qkv"]["kernel"], np.float64)
  query, key, value = np.einsum("ble,ethd->tblhd", np.asarray(x), kernel)
  scores = np.einsum("bqhd,bkhd->bhqk", query, key) / 2.0
  weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  heads = np.einsum("bhqk,bkhd->bqhd", weights, value)
  expected = np.einsum(
    "bqhd,hde->bqe", heads, np.asarray(variables["params"]["out"]["kernel"])
  )
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_masked_pairs_have_no_weight():
  module, variables, x = _setup()
  seen = jnp.tril(jnp.ones((6, 6), bool))
  bias = jnp.where(seen, 0.0, attention.MASKED)[None, None]
  out = module.apply(variables, x, bias, jnp.arange(6))
  changed = module.apply(variables, x.at[:, 4:].set(9.0), bias, jnp.arange(6))
  np.testing.assert_array_equal(out[:, :4], changed[:, :4])


def test_scores_are_float32_when_compute_is_bfloat16():
  query = jnp.full((1, 1, 1, 4), 16.0, jnp.bfloat16)
  key = jnp.stack([query[:, :, 0], query[:, :, 0] * 1.0078125], axis=2)
  value = jnp.array([[[[0.0] * 4, [1.0] * 4]]], jnp.bfloat16)
  out = attention.attend(query, key, value, None)
  # The scores are 512 and 516: equal if they were rounded to bfloat16 (step
  # 4 there), but for float32 softmax the second has nearly all the weight.
  assert out.dtype == jnp.bfloat16
  assert float(out[0, 0, 0, 0]) > 0.95


def test_cached_keys_are_shared_as_if_they_were_repeated():
  generator = np.random.default_rng(0)
  query = jnp.asarray(generator.standard_normal((2, 6, 1, 4)), jnp.float32)
  key, value = jnp.asarray(
    generator.standard_normal((2, 2, 3, 5, 4)), jnp.float32
  )
  bias = jnp.asarray(generator.standard_normal((1, 6, 1, 5)), jnp.float32)
  whole = attention.attend(
    query, jnp.repeat(key, 2, 1), jnp.repeat(value, 2, 1), bias
  )
  for shape in ((2, 3, 5, 4), (2 * 3, 5, 4)):
    out = attention.attend_cached(
      query, key.reshape(shape), value.reshape(shape), bias
    )
    np.testing.assert_allclose(out, whole, atol=1e-6)


def test_cache_holds_prefix_then_steps():
  module, variables, x = _setup(rotary=True, decode=True, cache_length=6)
  _, state = module.apply(
    variables, x[:, :4], None, jnp.arange(4), mutable=["cache"]
  )
  assert state["cache"]["cached_key"].shape == (2 * 2, 6, 4)
  assert not np.asarray(state["cache"]["cached_key"][:, 4:]).any()
  seen = jnp.where(jnp.arange(6) <= 4, 0.0, attention.MASKED)
  out, state = module.apply(
    {**variables, **state},
    x[:, 4:5],
    seen[None, None, None],
    jnp.array([4]),
    mutable=["cache"],
  )
  whole = attention.SelfAttention(2, 4, rotary=True).apply(
    variables, x[:, :5], None, jnp.arange(5)
  )
  np.testing.assert_allclose(out[:, 0], whole[:, 4], atol=1e-5)
