# SPDX-License-Identifier: Apache-2.0
"""How gradients pass a quantizer: vectors and their quantized values in.

Forward, both ways give the quantized values; they differ in what flows back.
"""

import jax
import jax.numpy as jnp

GRADIENTS = ("straight_through", "rotation")
_TINY = 1e-6


def straight_through(vectors: jax.Array, quantized: jax.Array) -> jax.Array:
  """Gradients go back as if nothing had been quantized."""
  return vectors + jax.lax.stop_gradient(quantized - vectors)


def rotated(vectors: jax.Array, quantized: jax.Array) -> jax.Array:
  """Gradients go back through the rotation that quantizing was.

  Each vector is turned onto its quantized value and stretched to its length,
  and both are held constant: gradients that leave a cell of the quantizer keep
  their angle to the vector instead of their direction (the rotation trick,
  arXiv 2410.06424). Where one of the two is zero, or they point in opposite
  directions, there is no such rotation, and it is `straight_through`.

  Args:
    vectors: float32 `[..., dim]`.
    quantized: float32 `[..., dim]`; no gradient reaches it.

  Returns:
    `quantized`, up to rounding.
  """
  fixed = jax.lax.stop_gradient(vectors)
  quantized = jax.lax.stop_gradient(quantized)

  def unit(x):
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(length, _TINY), length

  source, source_length = unit(fixed)
  target, target_length = unit(quantized)
  middle, middle_length = unit(source + target)
  possible = (
    (source_length > _TINY) & (target_length > _TINY) & (middle_length > 1e-3)
  )
  stretch = target_length / jnp.maximum(source_length, _TINY)
  # Two reflections, I - 2 m m^T + 2 t s^T, applied without the matrix.
  along = jnp.sum(vectors * middle, -1, keepdims=True)
  ahead = jnp.sum(vectors * source, -1, keepdims=True)
  turned = stretch * (vectors - 2 * along * middle + 2 * ahead * target)
  # What rounding left is added as a constant: the values are exact.
  turned = straight_through(turned, quantized)
  return jnp.where(possible, turned, straight_through(vectors, quantized))


def pass_gradients(
  vectors: jax.Array, quantized: jax.Array, how: str
) -> jax.Array:
  """`quantized`, with gradients to `vectors` by one of `GRADIENTS`."""
  if how == "rotation":
    return rotated(vectors, quantized)
  return straight_through(vectors, quantized)
