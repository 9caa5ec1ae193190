# SPDX-License-Identifier: Apache-2.0
"""Multi-head self-attention with a key/value cache.

Activations and an additive bias in, activations out; while decoding, keys and
values of earlier positions are kept in the 'cache' collection.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import blocked_attention, dense
from musiclm_jax.layers import positions as positions_lib
from musiclm_jax.partitioning import axes

MASKED = positions_lib.MASKED


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None,
) -> jax.Array:
  """Softmax attention; scores and softmax in float32.

  The backward pass recomputes the weights from one number per query instead of
  keeping several arrays of `[queries, keys]` per layer: faster where memory
  traffic is the bound, which is everywhere.

  Args:
    query: `[batch, heads, queries, kv]`.
    key: `[batch, heads, keys, kv]`.
    value: `[batch, heads, keys, kv]`.
    bias: float32 of rank 4, broadcasts to `[batch, heads, queries, keys]`;
      masked pairs hold `MASKED`.

  Returns:
    `[batch, heads, queries, kv]` in the dtype of `value`.
  """
  if bias is None:
    bias = jnp.zeros((1, 1, 1, 1), jnp.float32)
  scale = jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
  return _attend(query * scale, key, value, bias)


def _scores(query: jax.Array, key: jax.Array, bias: jax.Array) -> jax.Array:
  return bias + jnp.einsum(
    "bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32
  )


@jax.custom_vjp
def _attend(
  query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array
) -> jax.Array:
  weights = jax.nn.softmax(_scores(query, key, bias), axis=-1)
  return jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value)


def _attend_forward(query, key, value, bias):
  scores = _scores(query, key, bias)
  log_sum = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
  weights = jnp.exp(scores - log_sum).astype(value.dtype)
  out = jnp.einsum("bhqk,bhkd->bhqd", weights, value)
  return out, (query, key, value, bias, out, log_sum)


def _attend_backward(saved, grad):
  query, key, value, bias, out, log_sum = saved
  dtype = query.dtype
  weights = jnp.exp(_scores(query, key, bias) - log_sum)
  value_grad = jnp.einsum("bhqk,bhqd->bhkd", weights.astype(dtype), grad)
  weights_grad = jnp.einsum(
    "bhqd,bhkd->bhqk", grad, value, preferred_element_type=jnp.float32
  )
  # sum_k weights * weights_grad, without another pass over the keys.
  mean = jnp.sum(
    grad.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True
  )
  scores_grad = weights * (weights_grad - mean)
  low = scores_grad.astype(dtype)
  query_grad = jnp.einsum("bhqk,bhkd->bhqd", low, key)
  key_grad = jnp.einsum("bhqk,bhqd->bhkd", low, query)
  bias_grad = scores_grad
  if bias.shape[0] == 1:
    # A product with ones: XLA:CPU sums over a leading axis ten times slower.
    ones = jnp.ones((1, scores_grad.shape[0]), jnp.float32)
    bias_grad = jnp.einsum("ob,bhqk->ohqk", ones, scores_grad)
  for axis in (1, 2, 3):
    if bias.shape[axis] == 1 and bias_grad.shape[axis] > 1:
      bias_grad = bias_grad.sum(axis, keepdims=True)
  return query_grad, key_grad, value_grad.astype(value.dtype), bias_grad


_attend.defvjp(_attend_forward, _attend_backward)


class SelfAttention(nn.Module):
  """Multi-head self-attention.

  Attributes:
    num_heads: heads.
    head_dim: length of a head's query, key and value.
    precision: dtypes.
    rotary: rotates queries and keys by their positions.
    dropout_rate: of attention weights, shared by all queries (cheap).
    deterministic: no dropout.
    decode: fills the cache (first call), then reads it, one token per call.
    cache_length: positions the cache holds; read by the first call only.
  """

  num_heads: int
  head_dim: int
  precision: precision_lib.Precision = precision_lib.Precision()
  rotary: bool = False
  dropout_rate: float = 0.0
  deterministic: bool = True
  decode: bool = False
  cache_length: int | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    bias: jax.Array | blocked_attention.BlockedBias | None,
    positions: jax.Array,
  ) -> jax.Array:
    """Attends.

    Args:
      x: `[batch, length, embed]`.
      bias: float32, broadcasts to `[batch, heads, length, keys]`, with the
        mask in it; keys are the cached positions in a decode step. Or a
        `BlockedBias`: blocks of the sequence are then done one by one.
      positions: int32 `[length]`, positions of `x` in the sequence.

    Returns:
      `[batch, length, embed]`.
    """
    # One product for query, key and value: small decode steps are bound by
    # the number of operations.
    qkv = dense.Dense(
      (3, self.num_heads, self.head_dim),
      ("embed", None, "heads", "kv"),
      self.precision,
      name="qkv",
    )(x)
    if isinstance(bias, blocked_attention.BlockedBias):
      out = self._blocked(qkv, bias, positions)
    else:
      out = self._whole(qkv, bias, positions)
    return dense.Dense(
      (x.shape[-1],),
      ("heads", "kv", "embed"),
      self.precision,
      num_in_axes=2,
      name="out",
    )(out)

  def _blocked(
    self,
    qkv: jax.Array,
    bias: blocked_attention.BlockedBias,
    positions: jax.Array,
  ) -> jax.Array:
    """`[batch, length, 3, heads, kv]` to `[batch, length, heads, kv]`."""
    names = ("batch", "length", None, "heads", "kv")
    qkv = axes.constrain(checkpoint_name(qkv, "qkv"), names)
    factor = self._value_mask((*qkv.shape[:2], self.num_heads), qkv.dtype)
    if factor is not None:
      # A product with ones for the others costs less than taking the values
      # out of the packed array and putting them back.
      ones = jnp.ones_like(factor)
      qkv = qkv * jnp.stack([ones, ones, factor], axis=2)[..., None]
    if self.rotary:
      query, key = (
        positions_lib.rotate(qkv[:, :, i], positions) for i in range(2)
      )
      qkv = jnp.stack([query, key, qkv[:, :, 2]], axis=2)
    return blocked_attention.attend(qkv, bias)

  def _value_mask(
    self, shape: tuple[int, ...], dtype: jnp.dtype
  ) -> jax.Array | None:
    """Dropout of attention weights: a mask that all queries share.

    That is a mask on the values, one number per position and head.
    """
    if not self.dropout_rate or self.deterministic:
      return None
    return nn.Dropout(self.dropout_rate, deterministic=False)(
      jnp.ones(shape, dtype)
    )

  def _whole(
    self, qkv: jax.Array, bias: jax.Array | None, positions: jax.Array
  ) -> jax.Array:
    """As `_blocked`, with the scores of all pairs at once."""
    query, key, value = (qkv[:, :, i] for i in range(3))
    if self.rotary:
      query = positions_lib.rotate(query, positions)
      key = positions_lib.rotate(key, positions)
    query, key, value = (
      axes.constrain(
        part.transpose(0, 2, 1, 3), ("batch", "heads", "length", "kv")
      )
      for part in (query, key, value)
    )
    if self.decode:
      key, value = self._update_cache(key, value, positions)
    mask = self._value_mask(value.shape[:3], value.dtype)
    if mask is not None:
      value = value * mask[..., None]
    return attend(query, key, value, bias).transpose(0, 2, 1, 3)

  def _update_cache(
    self, key: jax.Array, value: jax.Array, positions: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Stores new keys and values; returns those to attend to."""
    prefill = not self.has_variable("cache", "cached_key")
    batch, heads, length, kv = key.shape
    shape = (batch, heads, self.cache_length or length, kv)
    cached_key = self.variable(
      "cache", "cached_key", jnp.zeros, shape, key.dtype
    )
    cached_value = self.variable(
      "cache", "cached_value", jnp.zeros, shape, value.dtype
    )
    start = (0, 0, positions[0], 0)
    cached_key.value = jax.lax.dynamic_update_slice(
      cached_key.value, key, start
    )
    cached_value.value = jax.lax.dynamic_update_slice(
      cached_value.value, value, start
    )
    if prefill:
      return key, value
    return cached_key.value, cached_value.value
