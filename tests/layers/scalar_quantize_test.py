# SPDX-License-Identifier: Apache-2.0
"""Residual FSQ, the rotation trick and snake: what each must keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.layers import rotation, scalar_quantize, snake
from musiclm_jax.partitioning import axes

_CONFIG = scalar_quantize.ScalarQuantizerConfig(
  num_codebooks=3, steps=(4, 3), code_dim=6, dropout=False
)
_MODULE = scalar_quantize.ResidualScalarQuantizer(_CONFIG)


def _vectors() -> jax.Array:
  draw = np.random.default_rng(0).normal(size=(4, 50, 6))
  return jnp.asarray(draw * np.linspace(3, 0.3, 6) + 2.0, jnp.float32)


@functools.cache
def _variables():
  shapes = jax.eval_shape(
    lambda key: _MODULE.init(key, _vectors(), False), jax.random.key(0)
  )
  counts = jax.tree.map(
    lambda x: jnp.zeros(x.shape), axes.unbox(shapes)["codebooks"]
  )
  fit = jax.jit(scalar_quantize.fit, static_argnums=1)
  params = fit(_vectors().reshape(-1, 6), _CONFIG)
  return {"params": params, "codebooks": counts}


def test_codes_are_mixed_radix_digits():
  codes = jnp.arange(12)
  digits = scalar_quantize.digits_of_codes(codes, _CONFIG)
  assert digits.max(0).tolist() == [3, 2] and digits[5].tolist() == [1, 2]
  np.testing.assert_array_equal(
    scalar_quantize.codes_of(digits, _CONFIG), codes
  )
  far = scalar_quantize.digits_of(jnp.array([[-9.0, 9.0]]), _CONFIG)
  assert far.tolist() == [[0, 2]]


def test_encode_decode_agree_with_training_and_every_level_helps():
  variables, vectors = _variables(), _vectors()

  @jax.jit
  def run(variables, vectors):
    out, state = _MODULE.apply(
      variables, vectors, True, jax.random.key(0), mutable=["codebooks"]
    )
    codes = _MODULE.apply(variables, vectors, method="encode")
    decoded = [
      _MODULE.apply(variables, codes[..., :n], method="decode")
      for n in (0, 1, 2, 3)
    ]
    return out, state, codes, decoded

  out, state, codes, decoded = run(variables, vectors)
  np.testing.assert_array_equal(out.codes, codes)
  np.testing.assert_allclose(out.quantized, decoded[3], atol=1e-5)
  assert codes.shape == (4, 50, 3) and codes.dtype == jnp.int32
  errors = [float(((vectors - x) ** 2).mean()) for x in decoded]
  assert errors == sorted(errors, reverse=True)
  assert errors[3] < 0.1 * errors[0]
  assert (out.usage > 0.7).all() and (out.perplexity > 6).all()
  counts = state["codebooks"]["counts"]
  np.testing.assert_allclose(counts.sum(-1), 0.01 * 200, rtol=1e-5)
  with pytest.raises(ValueError, match="num_codebooks=3"):
    _MODULE.apply(variables, jnp.zeros((1, 4), jnp.int32), method="decode")


def test_projections_learn_from_decoder_and_commitment():
  variables, vectors = _variables(), _vectors()

  def loss(params, vectors, weight):
    out = _MODULE.apply({**variables, "params": params}, vectors, False)
    return (out.quantized * 2.0).sum() + weight * out.commitment

  slope, passed = jax.jit(jax.grad(loss, argnums=(0, 1)))(
    variables["params"], vectors, 0.0
  )
  np.testing.assert_allclose(passed, 2.0, rtol=1e-6)  # as if not quantized
  assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(slope))


def _turned(vectors, quantized):
  out, pull_back = jax.vjp(lambda x: rotation.rotated(x, quantized), vectors)
  return out, pull_back


def test_rotation_keeps_values_and_the_angle_of_gradients():
  draw = np.random.default_rng(1)
  vectors = jnp.asarray(draw.normal(size=(20, 5)), jnp.float32)
  quantized = vectors + jnp.asarray(draw.normal(size=(20, 5)), jnp.float32)
  out, pull_back = _turned(vectors, quantized)
  np.testing.assert_array_equal(out, quantized)
  gradient = jnp.asarray(draw.normal(size=(20, 5)), jnp.float32)
  (back,) = pull_back(gradient)
  stretch = np.linalg.norm(quantized, axis=1) / np.linalg.norm(vectors, axis=1)
  norm = np.linalg.norm
  np.testing.assert_allclose(
    norm(back, axis=1), stretch * norm(gradient, axis=1), rtol=1e-4
  )

  def cosine(a, b):
    return (a * b).sum(1) / norm(a, axis=1) / norm(b, axis=1)

  np.testing.assert_allclose(
    cosine(np.asarray(back), np.asarray(vectors)),
    cosine(np.asarray(gradient), np.asarray(quantized)),
    atol=1e-4,
  )


def test_without_a_rotation_it_is_straight_through():
  vectors = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
  quantized = jnp.array([[1.0, 0.0], [0.0, 0.0], [-2.0, 0.0]])
  out, pull_back = _turned(vectors, quantized)
  np.testing.assert_array_equal(out, quantized)
  (back,) = pull_back(jnp.ones((3, 2)))
  np.testing.assert_array_equal(back, 1.0)


def test_snake_is_periodic_on_top_of_the_identity():
  module = snake.Snake(start=2.0)
  x = jnp.linspace(-3, 3, 7)[:, None]
  variables = axes.unbox(module.init(jax.random.key(0), x))
  y = module.apply(variables, x)
  np.testing.assert_allclose(y, x + np.sin(2 * x) ** 2 / 2, atol=1e-6)
  still = {"params": {"frequency": jnp.zeros((1,))}}
  np.testing.assert_allclose(module.apply(still, x), x, atol=1e-3)
