# SPDX-License-Identifier: Apache-2.0
"""A Transformer block as public encoders have it: frames in, frames out.

LayerNorm with biases, biases in all products, GELU. For networks with imported
weights (BERT, wav2vec 2.0, HuBERT, MERT); those trained here from the start
use `layers/transformer.py`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import attention, dense, norm

# By the name that public settings give them: 'gelu' is exact.
ACTIVATIONS = {
  "gelu": lambda x: nn.gelu(x, approximate=False),
  "gelu_new": nn.gelu,
  "gelu_pytorch_tanh": nn.gelu,
  "relu": nn.relu,
}


class EncoderBlock(nn.Module):
  """Attention and a feed-forward module, norms before or behind them.

  Attributes:
    num_heads: attention heads.
    mlp_dim: hidden width of the feed-forward module.
    precision: dtypes; softmax is float32.
    norm_eps: added to the variance.
    pre_norm: norms before the modules; else behind them, after the sum.
    activation: of `ACTIVATIONS`.
    dropout_rate: of what either module adds.
  """

  num_heads: int
  mlp_dim: int
  precision: precision_lib.Precision = precision_lib.Precision()
  norm_eps: float = 1e-5
  pre_norm: bool = False
  activation: str = "gelu"
  dropout_rate: float = 0.0

  def _dense(
    self,
    features: tuple[int, ...],
    names: tuple[str, ...],
    name: str,
    num_in_axes: int = 1,
  ) -> dense.Dense:
    return dense.Dense(
      features,
      names,
      self.precision,
      num_in_axes=num_in_axes,
      use_bias=True,
      name=name,
    )

  def _attention(self, x: jax.Array, valid: jax.Array) -> jax.Array:
    heads = (self.num_heads, x.shape[-1] // self.num_heads)
    query, key, value = (
      self._dense(heads, ("embed", "heads", "kv"), f"attention_{name}")(
        x
      ).swapaxes(1, 2)
      for name in ("query", "key", "value")
    )
    bias = jnp.where(valid[:, None, None], 0.0, attention.MASKED)
    out = attention.attend(query, key, value, bias.astype(jnp.float32))
    return self._dense(
      (x.shape[-1],), ("heads", "kv", "embed"), "attention_out", num_in_axes=2
    )(out.swapaxes(1, 2))

  def _mlp(self, x: jax.Array) -> jax.Array:
    up = self._dense((self.mlp_dim,), ("embed", "mlp"), "mlp_up")
    down = self._dense((x.shape[-1],), ("mlp", "embed"), "mlp_down")
    return down(ACTIVATIONS[self.activation](up(x)))

  @nn.compact
  def __call__(
    self, x: jax.Array, valid: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Transforms frames.

    Args:
      x: `[batch, length, embed]`.
      valid: bool `[batch, length]`, True where attention may look.
      deterministic: no dropout.

    Returns:
      The same shape, in the compute dtype.
    """
    first, second = (
      norm.layer_norm(self.precision, self.norm_eps, "embed", name)
      for name in ("attention_norm", "mlp_norm")
    )
    drop = nn.Dropout(self.dropout_rate, deterministic=deterministic)
    if self.pre_norm:
      x = x + drop(self._attention(first(x), valid))
      return x + drop(self._mlp(second(x)))
    x = first(x + drop(self._attention(x, valid)))
    return second(x + drop(self._mlp(x)))
