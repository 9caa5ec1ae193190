# SPDX-License-Identifier: Apache-2.0
"""GELU against flax's: values, gradients, and what is kept for them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.layers import gelu


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equals_flax_and_its_gradient(dtype):
  x = jnp.linspace(-6, 6, 101).astype(dtype)
  direction = jnp.cos(jnp.arange(101.0)).astype(dtype)
  out, back = jax.vjp(gelu.gelu, x)
  wide = x.astype(jnp.float32)
  expected, expected_back = jax.vjp(nn.gelu, wide)
  assert out.dtype == dtype
  np.testing.assert_array_equal(out, nn.gelu(x))
  (grad,), (wanted,) = back(direction), expected_back(direction.astype("f4"))
  assert grad.dtype == dtype
  # Of 1 - tanh(x) ** 2 both lose digits where tanh is nearly 1.
  atol = 5e-6 if dtype == jnp.float32 else 0.01
  np.testing.assert_allclose(grad.astype("f4"), wanted, atol=atol)
  np.testing.assert_allclose(out.astype("f4"), expected, atol=4 * atol)


def test_keeps_one_array_for_the_backward_pass():
  x = jnp.ones((7, 11))
  kept = jax.tree.leaves(jax.vjp(gelu.gelu, x)[1])
  assert [leaf.shape for leaf in kept if leaf.ndim] == [x.shape]
  ours, theirs = (
    sum(leaf.size for leaf in jax.tree.leaves(jax.vjp(function, x)[1]))
    for function in (gelu.gelu, nn.gelu)
  )
  assert ours < theirs
