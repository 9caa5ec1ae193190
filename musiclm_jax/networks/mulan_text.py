# SPDX-License-Identifier: Apache-2.0
"""MuLan's text towers: token ids in, vectors of the joint space out.

`TextTower` is a bidirectional Transformer in the manner of BERT (MuLan sec.
3.1), trained from the start: either the position of a learned [CLS] vector or
the mean over real tokens is projected to the joint space. Relative positions
replace BERT's absolute ones. `BertTower` is BERT itself, for public weights.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import dense, embed
from musiclm_jax.layers import transformer as transformer_lib
from musiclm_jax.networks import bert as bert_lib
from musiclm_jax.partitioning import axes

_POOLINGS = ("cls", "mean")


def _check_pooling(pooling: str) -> None:
  if pooling not in _POOLINGS:
    raise ValueError(f"pooling={pooling!r}: expected one of {_POOLINGS}")


@dataclasses.dataclass(frozen=True)
class TextTowerConfig:
  """Size of the text tower.

  Attributes:
    vocab_size: ids of the SentencePiece vocabulary; id 0 is padding.
    max_length: longest text in ids; what is longer is cut.
    pooling: 'cls' or 'mean'.
    transformer: the stack, not causal. The default has BERT-base's size.
  """

  vocab_size: int = 32000
  max_length: int = 512
  pooling: str = "cls"
  transformer: transformer_lib.TransformerConfig = (
    transformer_lib.TransformerConfig(
      num_layers=12, embed_dim=768, num_heads=12, mlp_dim=3072, causal=False
    )
  )

  def __post_init__(self):
    for name in ("vocab_size", "max_length"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name}={getattr(self, name)}: expected a positive number"
        )
    _check_pooling(self.pooling)
    if self.transformer.causal:
      raise ValueError("transformer.causal=True: expected False")


class TextTower(nn.Module):
  """Text to a vector of the joint space, not yet normalised.

  Attributes:
    config: sizes.
    output_dim: width of the joint space.
    precision: dtypes.
  """

  config: TextTowerConfig
  output_dim: int
  precision: precision_lib.Precision = precision_lib.Precision()

  @nn.compact
  def __call__(
    self, tokens: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Embeds texts.

    Args:
      tokens: int32 `[batch, length]`, 0 = padding.
      deterministic: no dropout.

    Returns:
      float32 `[batch, output_dim]`.
    """
    config = self.config
    dim = config.transformer.embed_dim
    mask = tokens > 0
    x = embed.Embed(config.vocab_size, dim, self.precision, name="embed")(
      tokens
    )
    if config.pooling == "cls":
      first = self.param(
        "cls",
        axes.named(nn.initializers.normal(1.0), ("embed",)),
        (dim,),
        self.precision.param_dtype,
      ).astype(x.dtype)
      first = jnp.broadcast_to(first, (x.shape[0], 1, dim))
      x = jnp.concatenate([first, x], axis=1)
      mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
    x = transformer_lib.TransformerStack(
      config.transformer, self.precision, name="transformer"
    )(x, mask, deterministic)
    return dense.Dense(
      (self.output_dim,), ("embed", "code_dim"), name="project"
    )(bert_lib.pool(x, mask, config.pooling))


@dataclasses.dataclass(frozen=True)
class BertTowerConfig:
  """BERT and how it is pooled.

  Attributes:
    bert: its sizes.
    max_length: longest text in ids, [CLS] and [SEP] among them.
    pooling: 'cls' takes the vector at [CLS], without BERT's pooler; 'mean'
      averages over all that is not padding, as sentence encoders do.
  """

  bert: bert_lib.BertConfig = bert_lib.BertConfig()
  max_length: int = 512
  pooling: str = "cls"

  def __post_init__(self):
    _check_pooling(self.pooling)
    # Room for [CLS], a piece and [SEP].
    if not 3 <= self.max_length <= self.bert.max_positions:
      raise ValueError(
        f"max_length={self.max_length}: expected 3 to "
        f"max_positions={self.bert.max_positions} of the BERT"
      )

  @property
  def vocab_size(self) -> int:
    """Ids of the WordPiece vocabulary; id 0 is padding."""
    return self.bert.vocab_size


class BertTower(nn.Module):
  """As `TextTower`, of BERT.

  Attributes:
    config: sizes.
    output_dim: width of the joint space.
    precision: dtypes.
  """

  config: BertTowerConfig
  output_dim: int
  precision: precision_lib.Precision = precision_lib.Precision()

  @nn.compact
  def __call__(
    self, tokens: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Embeds texts.

    Args:
      tokens: int32 `[batch, length]`, 0 = padding.
      deterministic: no dropout.

    Returns:
      float32 `[batch, output_dim]`.
    """
    config = self.config
    x = bert_lib.Bert(config.bert, self.precision, name="bert")(
      tokens, deterministic
    )
    return dense.Dense(
      (self.output_dim,), ("embed", "code_dim"), name="project"
    )(bert_lib.pool(x, tokens > 0, config.pooling))
