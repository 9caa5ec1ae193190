# SPDX-License-Identifier: Apache-2.0
"""BERT: WordPiece ids in, one vector per id out.

As published (arXiv 1810.04805 sec. 3): sums of token, position and type
embeddings, LayerNorm, Transformer blocks with norms behind their modules. Made
for public weights (`systems/bert_import.py`); the pooler and the heads of its
pretraining are not part of it.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import embed, encoder_block, norm
from musiclm_jax.partitioning import axes

# Standard deviation of fresh embeddings, as published.
_INIT_SCALE = 0.02


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Sizes; the defaults are BERT-base, uncased (110 M parameters).

  Attributes:
    vocab_size: WordPiece ids; id 0 is padding.
    max_positions: rows of the table of positions.
    num_token_types: rows of the table of types (sentence A and B).
    embed_dim: width of a block.
    num_layers: blocks.
    num_heads: attention heads.
    mlp_dim: hidden width of the feed-forward module.
    activation: of `encoder_block.ACTIVATIONS`; 'gelu' is exact.
    norm_eps: of all norms.
    dropout_rate: of embeddings and of what each module adds. Attention
      weights have none.
    remat: recomputes each block in the backward pass.
  """

  vocab_size: int = 30522
  max_positions: int = 512
  num_token_types: int = 2
  embed_dim: int = 768
  num_layers: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  activation: str = "gelu"
  norm_eps: float = 1e-12
  dropout_rate: float = 0.1
  remat: bool = False

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and value < 1:
        raise ValueError(f"{field.name}={value}: expected a positive number")
    if self.embed_dim % self.num_heads:
      raise ValueError(
        f"num_heads={self.num_heads}: expected a divisor of "
        f"embed_dim={self.embed_dim}"
      )
    if self.activation not in encoder_block.ACTIVATIONS:
      raise ValueError(
        f"activation={self.activation!r}: expected one of "
        f"{tuple(encoder_block.ACTIVATIONS)}"
      )
    if not self.norm_eps > 0:
      raise ValueError(f"norm_eps={self.norm_eps}: expected > 0")
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(
        f"dropout_rate={self.dropout_rate}: expected a rate in [0, 1)"
      )


class Bert(nn.Module):
  """The encoder.

  Attributes:
    config: sizes.
    precision: dtypes.
  """

  config: BertConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  def _table(self, name: str, rows: int) -> jax.Array:
    table = self.param(
      name,
      axes.named(nn.initializers.normal(_INIT_SCALE), (None, "embed")),
      (rows, self.config.embed_dim),
      self.precision.param_dtype,
    )
    return table.astype(self.precision.compute_dtype)

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    deterministic: bool = True,
    token_types: jax.Array | None = None,
  ) -> jax.Array:
    """Encodes texts.

    Args:
      tokens: int32 `[batch, length]`, 0 = padding, which nothing looks at;
        length at most `max_positions`.
      deterministic: no dropout.
      token_types: int32 `[batch, length]`; type 0 everywhere by default.

    Returns:
      `[batch, length, embed]` in the compute dtype.

    Raises:
      ValueError: if there are more ids than positions.
    """
    config, precision = self.config, self.precision
    length = tokens.shape[1]
    if length > config.max_positions:
      raise ValueError(
        f"tokens have length {length}: expected at most "
        f"max_positions={config.max_positions}"
      )
    valid = tokens > 0
    x = embed.Embed(
      config.vocab_size, config.embed_dim, precision, _INIT_SCALE, name="embed"
    )(tokens)
    x = x + self._table("position", config.max_positions)[:length]
    types = self._table("token_type", config.num_token_types)
    x = x + (types[0] if token_types is None else types[token_types])
    x = norm.layer_norm(precision, config.norm_eps, "embed", "norm")(x)
    x = nn.Dropout(config.dropout_rate, deterministic=deterministic)(x)
    block = encoder_block.EncoderBlock
    if config.remat:
      block = nn.remat(block, static_argnums=(3,))
    for index in range(config.num_layers):
      x = axes.constrain(x, ("batch", "length", "embed"))
      x = block(
        config.num_heads,
        config.mlp_dim,
        precision,
        config.norm_eps,
        activation=config.activation,
        dropout_rate=config.dropout_rate,
        name=f"block_{index}",
      )(x, valid, deterministic)
    return x


def pool(x: jax.Array, valid: jax.Array, pooling: str) -> jax.Array:
  """One vector per text.

  Args:
    x: `[batch, length, embed]`.
    valid: bool `[batch, length]`.
    pooling: 'cls' takes the first position, 'mean' averages the valid ones.

  Returns:
    `[batch, embed]`.
  """
  if pooling == "cls":
    return x[:, 0]
  weights = valid[..., None].astype(x.dtype)
  return (x * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
