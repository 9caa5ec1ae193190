# SPDX-License-Identifier: Apache-2.0
"""Causal convolutions: both ways agree, lengths are exact, no look-ahead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.layers import conv
from musiclm_jax.partitioning import axes


def _input(time: int, channels: int = 3) -> jax.Array:
  return jax.random.normal(jax.random.key(0), (2, time, channels))


def _run(module, x):
  variables = axes.unbox(module.init(jax.random.key(1), x))
  return variables, module.apply(variables, x)


@pytest.mark.parametrize(
  "kernel, stride, dilation, time",
  [(7, 1, 1, 10), (7, 1, 9, 10), (6, 3, 1, 10), (1, 1, 1, 4), (2, 2, 1, 5)],
)
def test_convolution(kernel, stride, dilation, time):
  x = _input(time)
  lax = conv.CausalConv1d(5, kernel, stride, dilation)
  variables, y = _run(lax, x)
  assert y.shape == (2, -(-time // stride), 5)
  other = lax.clone(implementation="matmul")
  np.testing.assert_allclose(other.apply(variables, x), y, atol=1e-5)
  # Output t may see inputs up to t * stride + stride - 1, and does.
  at = len(y[0]) // 2
  late = lax.apply(variables, x.at[:, at * stride :].add(1.0))
  np.testing.assert_array_equal(late[:, :at], y[:, :at])
  assert not np.allclose(late[:, at], y[:, at])


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_transposed_convolution(stride):
  x = _input(6)
  product = conv.CausalConvTranspose1d(4, stride)
  variables, y = _run(product, x)
  assert y.shape == (2, 6 * stride, 4)
  other = product.clone(implementation="lax")
  np.testing.assert_allclose(other.apply(variables, x), y, atol=1e-5)
  late = product.apply(variables, x.at[:, 3:].add(1.0))
  np.testing.assert_array_equal(late[:, : 3 * stride], y[:, : 3 * stride])
  assert not np.allclose(late[:, 3 * stride :], y[:, 3 * stride :])


def test_bad_settings_are_named():
  for module, message in (
    (conv.CausalConv1d(4, 3, implementation="fft"), "implementation='fft'"),
    (conv.CausalConv1d(4, 2, stride=3), "kernel_size=2"),
  ):
    with pytest.raises(ValueError, match=message):
      module.init(jax.random.key(0), jnp.zeros((1, 4, 2)))
