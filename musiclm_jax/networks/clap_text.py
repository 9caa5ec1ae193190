# SPDX-License-Identifier: Apache-2.0
"""CLAP's text tower: token ids in, vectors of the joint space out.

RoBERTa (arXiv 1907.11692), which is BERT with other ids and positions; both
are brought into BERT's form when its weights are imported
(`systems/clap_import.py`), and its pooler and projection are added.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import dense
from musiclm_jax.networks import bert, clap_audio


@dataclasses.dataclass(frozen=True)
class ClapTextConfig:
  """Sizes.

  Attributes:
    bert: of the encoder; id 0 is padding.
    output_dim: width of the joint space.
  """

  bert: bert.BertConfig
  output_dim: int = 512

  def __post_init__(self):
    if self.output_dim < 1:
      raise ValueError(
        f"output_dim={self.output_dim}: expected a positive number"
      )


class ClapText(nn.Module):
  """The tower with its projection.

  Attributes:
    config: sizes.
    precision: dtypes.
  """

  config: ClapTextConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Embeds texts.

    Args:
      tokens: int32 `[batch, length]`, 0 = padding behind a text.

    Returns:
      float32 `[batch, output_dim]` of unit length.
    """
    config, precision = self.config, self.precision
    x = bert.Bert(config.bert, precision, name="bert")(tokens)[:, 0]
    x = dense.Dense(
      (config.bert.embed_dim,),
      ("embed", "mlp"),
      precision,
      use_bias=True,
      name="pooler",
    )(x)
    return clap_audio.project(jnp.tanh(x), config.output_dim, precision)
