# SPDX-License-Identifier: Apache-2.0
"""SoundStorm's network: partly masked codes in, logits of one level out.

A bidirectional Conformer over frames (arXiv 2305.09636 sec. 3.1). A frame is
the sum of the embeddings of its codes, masked ones replaced, and of the
conditioning of its instant; each level has an output kernel of its own.

Sequences are those of `StageLayout`, without BOS: `shapes` are its (frames,
levels) of each segment, the last one the target's; static.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import conformer as conformer_lib
from musiclm_jax.layers import embed
from musiclm_jax.networks import decoder_lm
from musiclm_jax.partitioning import axes

Shapes = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class SoundStormNetConfig:
  """Shape of the network.

  Attributes:
    conformer: over frames.
    vocab_size: input token ids, special ones included.
    num_levels: RVQ levels of a frame.
    codebook_size: codes of each level.
  """

  conformer: conformer_lib.ConformerConfig
  vocab_size: int
  num_levels: int
  codebook_size: int

  def __post_init__(self):
    for field in ("vocab_size", "num_levels", "codebook_size"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"{field}={getattr(self, field)}: expected a positive number"
        )


class SoundStormNet(nn.Module):
  """Embedding, Conformer, one output kernel per level.

  Attributes:
    config: shape.
    precision: dtypes; logits are float32.
  """

  config: SoundStormNetConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  def setup(self):
    config, width = self.config, self.config.conformer.embed_dim
    self.token_embed = embed.Embed(config.vocab_size, width, self.precision)
    self.mask_embed = self.param(
      "mask_embed",
      axes.named(nn.initializers.normal(1.0), ("codebook", "embed")),
      (config.num_levels, width),
      self.precision.param_dtype,
    )
    self.conformer = conformer_lib.ConformerStack(
      config.conformer, self.precision
    )
    self.output = self.param(
      "output",
      axes.named(decoder_lm.init_code_heads, ("codebook", "embed", "vocab")),
      (config.num_levels, width, config.codebook_size),
      self.precision.param_dtype,
    )

  def told(self, tokens: jax.Array, shapes: Shapes) -> jax.Array:
    """What each frame is told by its conditioning, `[batch, frames, embed]`.

    Args:
      tokens: int32 `[batch, length]`, conditioning first; the rest is ignored.
      shapes: (frames, levels) of each segment.
    """
    total = decoder_lm.sum_of_instants(self.token_embed, tokens, shapes)
    return total * max(1, sum(levels for _, levels in shapes[:-1])) ** -0.5

  def level_logits(
    self,
    told: jax.Array,
    tokens: jax.Array,
    masked: jax.Array,
    levels: jax.Array,
    is_real: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Logits of the codes of one level of each row.

    Args:
      told: see the method of that name.
      tokens: of the target, int32 `[batch, frames, levels]`.
      masked: bool, same shape: what stands there has no influence.
      levels: int32 `[batch]`, or one for all rows.
      is_real: bool `[batch, frames]`, False on padding; None: all real.
      deterministic: no dropout.

    Returns:
      float32 `[batch, frames, codebook_size]`.
    """
    mask_embed = self.mask_embed.astype(self.precision.compute_dtype)
    x = jnp.where(masked[..., None], mask_embed, self.token_embed(tokens))
    # As large as the embedding of one token, whatever the number of levels.
    x = told + x.sum(-2) * self.config.num_levels**-0.5
    hidden, _ = self.conformer(x, is_real, deterministic)
    kernel = self.output.astype(hidden.dtype)[levels]
    equation = "bfe,ev->bfv" if kernel.ndim == 2 else "bfe,bev->bfv"
    logits = jnp.einsum(
      equation, hidden, kernel, preferred_element_type=jnp.float32
    )
    return axes.constrain(logits, ("batch", "frames", "vocab"))

  def __call__(
    self,
    tokens: jax.Array,
    shapes: Shapes,
    masked: jax.Array,
    levels: jax.Array,
    is_real: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """`told` and `level_logits` of a whole sequence `[batch, length]`."""
    start = decoder_lm.target_start(shapes)
    target = tokens[:, start:].reshape(masked.shape)
    told = self.told(tokens, shapes)
    return self.level_logits(
      told, target, masked, levels, is_real, deterministic
    )
