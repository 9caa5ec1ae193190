# SPDX-License-Identifier: Apache-2.0
"""Multi-head self-attention with a key/value cache.

Activations and an additive bias in, activations out; while decoding, keys and
values of earlier positions are kept in the 'cache' collection.
"""

from typing import Any

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


def attend_cached(
  query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array
) -> jax.Array:
  """As `attend`, for keys and values as they lie in a cache.

  Products over one merged axis: a reshape between the cache and a product over
  two makes XLA:CPU copy the cache, four times a step.

  Args:
    query: `[batch, heads, queries, kv]`.
    key: `[batch * kv heads, keys, kv]` or `[batch, kv heads, keys, kv]`. The
      queries of as many heads as share a key are rows of one product.
    value: the same shape.
    bias: see `attend`.

  Returns:
    `[batch, heads, queries, kv]`.
  """
  *rows, keys, kv = key.shape
  scale = jnp.asarray(kv**-0.5, query.dtype)
  scores = jnp.einsum(
    "...qd,...kd->...qk",
    (query * scale).reshape(*rows, -1, kv),
    key,
    preferred_element_type=jnp.float32,
  )
  scores = scores.reshape(*query.shape[:3], keys)
  weights = jax.nn.softmax(bias + scores, axis=-1).astype(value.dtype)
  out = jnp.einsum(
    "...qk,...kd->...qd", weights.reshape(*rows, -1, keys), value
  )
  return out.reshape(query.shape)


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


def grow_cache(cache: Any, num_more: int) -> Any:
  """A cache with room for more positions.

  Args:
    cache: the 'cache' collection of a network: keys, values and masks may be
      anywhere in it, and other things beside them.
    num_more: positions to add.
  """

  def grow(path, leaf):
    name = path[-1].key
    if name in ("cached_key", "cached_value"):
      return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 2) + [(0, num_more), (0, 0)])
    if name == "cached_mask" and leaf is not None:
      return jnp.pad(leaf, [(0, 0), (0, num_more)], constant_values=True)
    return leaf

  return jax.tree_util.tree_map_with_path(grow, cache)


class SelfAttention(nn.Module):
  """Multi-head self-attention.

  Attributes:
    num_heads: heads of queries.
    head_dim: length of a head's query, key and value.
    precision: dtypes.
    rotary: rotates queries and keys by their positions.
    dropout_rate: of attention weights, shared by all queries (cheap).
    deterministic: no dropout.
    decode: fills the cache (first call), then reads it, one token per call.
    cache_length: positions the cache holds; read by the first call only.
    num_kv_heads: heads of keys and values, each shared by as many heads of
      queries (arXiv 2305.13245); None: as `num_heads`.
  """

  num_heads: int
  head_dim: int
  precision: precision_lib.Precision = precision_lib.Precision()
  rotary: bool = False
  dropout_rate: float = 0.0
  deterministic: bool = True
  decode: bool = False
  cache_length: int | None = None
  num_kv_heads: int | None = None

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
    if isinstance(bias, blocked_attention.BlockedBias):
      out = self._blocked(self._project(x), bias, positions)
    else:
      out = self._whole(self._project(x), bias, positions)
    return dense.Dense(
      (x.shape[-1],),
      ("heads", "kv", "embed"),
      self.precision,
      num_in_axes=2,
      name="out",
    )(out)

  def _project(self, x: jax.Array) -> list[jax.Array]:
    """Queries, keys and values, in one array or two.

    Either `[batch, length, 3, heads, kv]`, or queries `[batch, length, 1,
    heads, kv]`, then keys and values `[batch, length, 2, kv heads, kv]`.
    """
    if self._group == 1:
      # One product for query, key and value: small decode steps are bound by
      # the number of operations.
      kinds = [("qkv", (3, self.num_heads))]
    else:
      # Two: queries can be split over more devices than there are kv heads.
      kinds = [
        ("query", (1, self.num_heads)),
        ("key_value", (2, self.num_kv_heads)),
      ]
    return [
      dense.Dense(
        (*shape, self.head_dim),
        ("embed", None, "heads", "kv"),
        self.precision,
        name=name,
      )(x)
      for name, shape in kinds
    ]

  @property
  def _group(self) -> int:
    """Heads of queries that share a head of keys and values."""
    return self.num_heads // (self.num_kv_heads or self.num_heads)

  def _for_all_heads(self, x: jax.Array, axis: int) -> jax.Array:
    """Keys or values, once for each head of queries."""
    return x if self._group == 1 else jnp.repeat(x, self._group, axis)

  def _blocked(
    self,
    projected: list[jax.Array],
    bias: blocked_attention.BlockedBias,
    positions: jax.Array,
  ) -> jax.Array:
    """What `_project` gives to `[batch, length, heads, kv]`."""
    names = ("batch", "length", None, "heads", "kv")
    # What is kept for the backward pass is what is not repeated.
    query, *shared = (checkpoint_name(part, "qkv") for part in projected)
    qkv = query
    for part in shared:
      qkv = jnp.concatenate([qkv, self._for_all_heads(part, 3)], axis=2)
    qkv = axes.constrain(qkv, names)
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
    self,
    projected: list[jax.Array],
    bias: jax.Array | None,
    positions: jax.Array,
  ) -> jax.Array:
    """As `_blocked`, with the scores of all pairs at once."""
    query, key, value = (
      part[:, :, i] for part in projected for i in range(part.shape[2])
    )
    if self.rotary:
      query = positions_lib.rotate(query, positions)
      key = positions_lib.rotate(key, positions)
    query, key, value = (
      axes.constrain(
        part.transpose(0, 2, 1, 3), ("batch", "heads", "length", "kv")
      )
      for part in (query, key, value)
    )
    step = self.decode and self.has_variable("cache", "cached_key")
    if self.decode:
      keys = self._update_cache("cached_key", key, positions)
      values = self._update_cache("cached_value", value, positions)
    if step:
      return attend_cached(query, keys, values, bias).transpose(0, 2, 1, 3)
    key, value = (self._for_all_heads(part, 1) for part in (key, value))
    mask = self._value_mask(value.shape[:3], value.dtype)
    if mask is not None:
      value = value * mask[..., None]
    return attend(query, key, value, bias).transpose(0, 2, 1, 3)

  def _update_cache(
    self, name: str, new: jax.Array, positions: jax.Array
  ) -> jax.Array:
    """Stores keys or values `[batch, kv heads, length, kv]`.

    Returns:
      All of them: `[batch * kv heads, cache_length, kv]`, or with both axes
      where one is split over devices.
    """
    *leading, length, kv = new.shape
    if not (axes.is_split("batch") or axes.is_split("heads")):
      leading = [leading[0] * leading[1]]
    shape = (*leading, self.cache_length or length, kv)
    cached = self.variable("cache", name, jnp.zeros, shape, new.dtype)
    start = (*[0] * len(leading), positions[0], 0)
    cached.value = jax.lax.dynamic_update_slice(
      cached.value, new.reshape(*leading, length, kv), start
    )
    return cached.value
