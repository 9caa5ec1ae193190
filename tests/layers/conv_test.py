# SPDX-License-Identifier: Apache-2.0
"""Causal convolutions: both ways agree, lengths are exact, no look-ahead."""

import functools

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


@pytest.mark.parametrize("implementation", conv.IMPLEMENTATIONS)
@pytest.mark.parametrize(
  "make, stride",
  [
    (functools.partial(conv.CausalConv1d, 5, 7, dilation=3), 1),
    (functools.partial(conv.CausalConv1d, 5, 6, stride=3), 3),
    (functools.partial(conv.CausalConv1d, 5, 1), 1),
    (functools.partial(conv.CausalConvTranspose1d, 5, 3), 1),
  ],
)
def test_pieces_of_a_stream_join_to_the_whole(make, stride, implementation):
  module = make(implementation=implementation)
  x = _input(12)
  variables, whole = _run(module, x)
  assert set(variables) == {"params"}
  state, pieces, start = {}, [], 0
  for length in (stride, 6, 12 - 6 - stride):
    y, updates = module.apply(
      {**variables, **state}, x[:, start : start + length], mutable=["stream"]
    )
    state, start = dict(updates), start + length
    pieces.append(y)
  np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, atol=1e-5)


def test_a_stream_takes_whole_strides():
  module = conv.CausalConv1d(4, 6, stride=3)
  variables, _ = _run(module, _input(6))
  with pytest.raises(ValueError, match="4 inputs of a stream"):
    module.apply(variables, _input(4), mutable=["stream"])


def test_bad_settings_are_named():
  for module, message in (
    (conv.CausalConv1d(4, 3, implementation="fft"), "implementation='fft'"),
    (conv.CausalConv1d(4, 2, stride=3), "kernel_size=2"),
  ):
    with pytest.raises(ValueError, match=message):
      module.init(jax.random.key(0), jnp.zeros((1, 4, 2)))
