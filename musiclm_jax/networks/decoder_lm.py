# SPDX-License-Identifier: Apache-2.0
"""Decoder-only language model of one stage: tokens in, logits of codes out.

Input tokens are `[BOS, tokens[:-1]]`, so the hidden state at position p
predicts token p. Logits exist for target positions only, each over the codes
legal at its level (one output kernel per level).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import dense, embed, transformer
from musiclm_jax.partitioning import axes


@dataclasses.dataclass(frozen=True)
class DecoderLMConfig:
  """Shape of a stage's network.

  Attributes:
    transformer: the stack; must be causal.
    vocab_size: input token ids, special ones included.
    num_target_levels: RVQ levels of the target segment.
    codebook_size: codes of each target level.
  """

  transformer: transformer.TransformerConfig
  vocab_size: int
  num_target_levels: int
  codebook_size: int

  def __post_init__(self):
    for field in ("vocab_size", "num_target_levels", "codebook_size"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"{field}={getattr(self, field)}: expected a positive number"
        )
    if not self.transformer.causal:
      raise ValueError("transformer.causal=False: expected True")


class DecoderLM(nn.Module):
  """Embedding, causal Transformer, one output kernel per target level.

  Attributes:
    config: shape.
    precision: dtypes; logits are float32.
  """

  config: DecoderLMConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  def setup(self):
    config = self.config
    embed_dim = config.transformer.embed_dim
    self.token_embed = embed.Embed(config.vocab_size, embed_dim, self.precision)
    self.transformer = transformer.TransformerStack(
      config.transformer, self.precision
    )

    def init_output(key, shape, dtype):
      # Small: the first predictions are close to uniform over the codes.
      init = dense.fan_in_init(1, scale=0.01)
      keys = jax.random.split(key, shape[0])
      return jnp.stack([init(k, shape[1:], dtype) for k in keys])

    self.output = self.param(
      "output",
      axes.named(init_output, ("codebook", "embed", "vocab")),
      (config.num_target_levels, embed_dim, config.codebook_size),
      self.precision.param_dtype,
    )

  def __call__(
    self, tokens: jax.Array, target_start: int, deterministic: bool = True
  ) -> jax.Array:
    """Logits of all target positions, teacher-forced.

    Args:
      tokens: int32 `[batch, length]`, `[BOS, tokens[:-1]]`.
      target_start: position of the first target token (static).
      deterministic: no dropout.

    Returns:
      float32 `[batch, frames, levels, codebook_size]`.
    """
    hidden = self.transformer(
      self.token_embed(tokens), deterministic=deterministic
    )
    hidden = hidden[:, target_start:]
    batch, length, embed_dim = hidden.shape
    levels = self.config.num_target_levels
    hidden = hidden.reshape(batch, length // levels, levels, embed_dim)
    logits = jnp.einsum(
      "bfle,lev->bflv",
      hidden,
      self.output.astype(hidden.dtype),
      preferred_element_type=jnp.float32,
    )
    return axes.constrain(logits, ("batch", "frames", "codebook", "vocab"))

  def prefill(self, tokens: jax.Array, cache_length: int) -> jax.Array:
    """Creates the cache from a prefix; apply with `mutable=['cache']`.

    Args:
      tokens: int32 `[batch, prefix]`, starting with BOS.
      cache_length: positions the cache holds, prefix included.

    Returns:
      Hidden state of the last position, `[batch, embed]`.
    """
    hidden = self.transformer(
      self.token_embed(tokens), decode=True, cache_length=cache_length
    )
    return hidden[:, -1]

  def step(self, token: jax.Array) -> jax.Array:
    """One decode step: int32 `[batch]` to hidden state `[batch, embed]`."""
    hidden = self.transformer(self.token_embed(token[:, None]), decode=True)
    return hidden[:, 0]

  def level_logits(self, hidden: jax.Array, level: jax.Array) -> jax.Array:
    """Logits of one target level.

    Args:
      hidden: `[batch, embed]`.
      level: target level, may be traced.

    Returns:
      float32 `[batch, codebook_size]`.
    """
    kernel = jax.lax.dynamic_index_in_dim(
      self.output, level, axis=0, keepdims=False
    )
    return jnp.einsum(
      "be,ev->bv",
      hidden,
      kernel.astype(hidden.dtype),
      preferred_element_type=jnp.float32,
    )


def code_nats(logits: jax.Array, codes: jax.Array) -> jax.Array:
  """Negative log-probability of each code.

  Args:
    logits: float32 `[..., codebook_size]`.
    codes: integers `[...]`; negative ones (padding) count as code 0.

  Returns:
    float32 `[...]`, in nats.
  """
  picked = jnp.take_along_axis(
    logits, jnp.maximum(codes, 0)[..., None], axis=-1
  )[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - picked
