# SPDX-License-Identifier: Apache-2.0
"""Token embedding: ids in, vectors out."""

import flax.linen as nn
import jax

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.partitioning import axes


class Embed(nn.Module):
  """A table with one row per token id.

  Attributes:
    num_embeddings: rows.
    features: length of a row.
    precision: dtypes.
    scale: standard deviation of fresh entries. 1: the residual stream then
      starts at the scale that the pre-norm blocks add to it (T5's choice).
  """

  num_embeddings: int
  features: int
  precision: precision_lib.Precision = precision_lib.Precision()
  scale: float = 1.0

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """int32 `[...]` in `[0, num_embeddings)` to `[..., features]`."""
    table = self.param(
      "table",
      axes.named(nn.initializers.normal(self.scale), ("vocab", "embed")),
      (self.num_embeddings, self.features),
      self.precision.param_dtype,
    )
    # Rows are picked from a table whole along 'embed': left to itself, XLA
    # picks from a split one and then replicates the result of all devices.
    table = axes.constrain(
      table.astype(self.precision.compute_dtype), ("vocab", None)
    )
    names = ("batch", "length", "embed") if tokens.ndim == 2 else ()
    return axes.constrain(table[tokens], names) if names else table[tokens]
