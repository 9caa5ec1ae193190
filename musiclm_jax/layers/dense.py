# SPDX-License-Identifier: Apache-2.0
"""Products with learned kernels: activations in, projected activations out.

Kernels are created in their full shape (never reshaped from a matrix), so that
each axis can carry its own logical name under a mesh.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.partitioning import axes


def fan_in_init(num_in_axes: int, scale: float = 1.0):
  """Truncated normal with variance `scale / fan_in`.

  Args:
    num_in_axes: leading kernel axes that are contracted.
    scale: factor on the variance.
  """

  def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32):
    stddev = math.sqrt(scale / math.prod(shape[:num_in_axes]))
    # A normal truncated at two deviations has 0.88 of the deviation.
    draw = jax.random.truncated_normal(key, -2.0, 2.0, tuple(shape), dtype)
    return draw * jnp.asarray(stddev / 0.87962566103423978, dtype)

  return init


@jax.custom_vjp
def product(rows: jax.Array, kernel: jax.Array) -> jax.Array:
  """`[rows, in]` times `[in, out]`, with gradients that XLA:CPU does well.

  Left to itself, differentiation has the gradient of the kernel transposed,
  and that of several output axes at once is computed from a transposed copy.

  Args:
    rows: `[rows, in]`.
    kernel: `[in, out]` of the same dtype.

  Returns:
    `[rows, out]`.
  """
  return rows @ kernel


def _product_forward(rows, kernel):
  return rows @ kernel, (rows, kernel)


def _product_backward(saved, grad):
  rows, kernel = saved
  return (
    jnp.einsum("nm,km->nk", grad, kernel),
    jnp.einsum("nk,nm->km", rows, grad),
  )


product.defvjp(_product_forward, _product_backward)


class Dense(nn.Module):
  """Contracts the last `num_in_axes` axes of the input with a kernel.

  The kernel may be given as int8; what a step of each output channel is, is
  then in collection 'scales' under the same name, of shape `features`.

  Attributes:
    features: shape of the output axes that replace the contracted ones.
    names: logical names of all kernel axes (contracted ones first).
    precision: dtypes.
    num_in_axes: trailing input axes to contract.
    use_bias: adds a learned bias of shape `features`.
    init_scale: variance times fan-in of the initial kernel.
  """

  features: tuple[int, ...]
  names: tuple[str | None, ...]
  precision: precision_lib.Precision = precision_lib.Precision()
  num_in_axes: int = 1
  use_bias: bool = False
  init_scale: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., in axes]` to `[..., features]` in the compute dtype."""
    in_shape = x.shape[-self.num_in_axes :]
    kernel = self.param(
      "kernel",
      axes.named(fan_in_init(self.num_in_axes, self.init_scale), self.names),
      (*in_shape, *self.features),
      self.precision.param_dtype,
    )
    dtype = self.precision.compute_dtype
    leading = x.shape[: x.ndim - self.num_in_axes]
    out = self._contract(x.astype(dtype), kernel.astype(dtype))
    out = out.reshape(*leading, *self.features)
    if kernel.dtype == jnp.int8:
      out = (out * self.get_variable("scales", "kernel")).astype(dtype)
    if self.use_bias:
      bias = self.param(
        "bias",
        axes.named(nn.initializers.zeros, self.names[self.num_in_axes :]),
        self.features,
        self.precision.param_dtype,
      )
      out = out + bias.astype(dtype)
    return out

  def _contract(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The product, of any shape with the entries of the output in order."""
    in_shape = x.shape[x.ndim - self.num_in_axes :]
    names = ("length", *(name for name in self.names if name))
    if axes.platform() == "cpu" and not any(map(axes.is_split, names)):
      size = math.prod(in_shape)
      return product(x.reshape(-1, size), kernel.reshape(size, -1))
    # One row axis: XLA:CPU's backward pass of a product over [batch, length]
    # was measured four times slower than of one over rows. Not where the
    # length is split over devices: rows of [batch, length] cannot be.
    if not axes.is_split("length"):
      x = x.reshape(-1, *in_shape)
    return jnp.tensordot(x, kernel, axes=self.num_in_axes)
