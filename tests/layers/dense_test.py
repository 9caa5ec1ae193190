# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import precision
from musiclm_jax.layers import dense


def _random(seed: int, *shape: int) -> jax.Array:
  values = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize(
  "features,names,num_in_axes,in_shape",
  [
    ((24,), ("embed", "mlp"), 1, (16,)),
    ((3, 2, 4), ("embed", None, "heads", "kv"), 1, (16,)),
    ((16,), ("heads", "kv", "embed"), 2, (2, 4)),
  ],
)
def test_equals_a_contraction_with_its_gradients(
  features, names, num_in_axes, in_shape
):
  layer = dense.Dense(features, names, num_in_axes=num_in_axes)
  x = _random(0, 2, 5, *in_shape)
  kernel = _random(1, *in_shape, *features)
  direction = _random(2, 2, 5, *features)

  def with_gradients(function):
    return jax.value_and_grad(
      lambda x, kernel: jnp.sum(function(x, kernel) * direction), (0, 1)
    )(x, kernel)

  value, gradients = with_gradients(
    lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x)
  )
  expected, wanted = with_gradients(
    lambda x, kernel: jnp.tensordot(x, kernel, axes=num_in_axes)
  )
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for found, want in zip(gradients, wanted):
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_gradients_have_the_dtypes_of_what_they_are_of():
  layer = dense.Dense(
    (8,),
    ("embed", "mlp"),
    precision.Precision(compute="bfloat16"),
  )
  params = {"kernel": _random(0, 4, 8)}
  x = _random(1, 3, 4)
  gradients = jax.grad(
    lambda params, x: layer.apply({"params": params}, x).astype(float).sum(),
    (0, 1),
  )(params, x)
  assert gradients[0]["kernel"].dtype == jnp.float32
  assert gradients[1].dtype == jnp.float32


def test_a_single_row_without_axes_before_it():
  layer = dense.Dense((8,), ("embed", "mlp"))
  params = {"kernel": _random(0, 4, 8)}
  x = _random(1, 4)
  found = layer.apply({"params": params}, x)
  np.testing.assert_allclose(found, x @ params["kernel"], rtol=1e-5)
