# SPDX-License-Identifier: Apache-2.0
"""Gumbel-softmax quantizer: features in, code vectors and code ids out.

The quantizer of wav2vec 2.0 that w2v-BERT trains its targets with
(w2v-BERT sec. 3.1); one codebook, chosen by a straight-through sample.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import kmeans
from musiclm_jax.partitioning import axes


class GumbelQuantizer(nn.Module):
  """Picks one code vector per frame by a straight-through Gumbel softmax.

  Attributes:
    codebook_size: entries.
    code_dim: width of a code vector.
    precision: dtype of the stored parameters; the computation is float32.
  """

  codebook_size: int
  code_dim: int
  precision: precision_lib.Precision = precision_lib.Precision()

  @nn.compact
  def __call__(
    self,
    features: jax.Array,
    temperature: jax.Array | float = 1.0,
    noise_key: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Quantizes features.

    Args:
      features: `[..., dim]`.
      temperature: of the softmax gradients flow through.
      noise_key: key of the Gumbel noise; None picks the likeliest code.

    Returns:
      Code vectors float32 `[..., code_dim]`, code ids int32 `[...]`, and the
      noise-free logits float32 `[..., codebook_size]`.
    """
    param_dtype = self.precision.param_dtype
    kernel = self.param(
      "kernel",
      # Unit variance, as wav2vec 2.0 does: smaller logits drown in the Gumbel
      # noise, targets are random, and nothing can be learnt from them.
      axes.named(nn.initializers.normal(1.0), ("embed", "codebook")),
      (features.shape[-1], self.codebook_size),
      param_dtype,
    )
    bias = self.param(
      "bias",
      axes.named(nn.initializers.zeros, ("codebook",)),
      (self.codebook_size,),
      param_dtype,
    )
    codebook = self.param(
      "codebook",
      axes.named(nn.initializers.normal(1.0), ("codebook", "code_dim")),
      (self.codebook_size, self.code_dim),
      param_dtype,
    )
    logits = features.astype(jnp.float32) @ kernel.astype(jnp.float32)
    logits = logits + bias.astype(jnp.float32)
    scores = logits
    if noise_key is not None:
      scores = logits + jax.random.gumbel(noise_key, logits.shape)
    ids = scores.argmax(-1).astype(jnp.int32)
    soft = jax.nn.softmax(scores / temperature)
    hard = jax.nn.one_hot(ids, self.codebook_size)
    # Value of the hard choice, gradient of the soft one.
    choice = hard + soft - jax.lax.stop_gradient(soft)
    return choice @ codebook.astype(jnp.float32), ids, logits


def fit(
  features: jax.Array, codebook_size: int, key: jax.Array
) -> dict[str, jax.Array]:
  """Kernel and bias whose likeliest code is the nearest k-means centroid.

  Logits are log-likelihoods under equal Gaussians around the centroids, as
  wide as the points of a cluster lie from its centroid.

  Args:
    features: `[points, dim]`, what the quantizer will see.
    codebook_size: centroids.
    key: of the seeding.

  Returns:
    `kernel` float32 `[dim, codebook_size]` and `bias` `[codebook_size]`.
  """
  features = features.astype(jnp.float32)
  result = kmeans.fit(features, codebook_size, key)
  # Expected squared distance per dimension is the variance of the Gaussian.
  precision = features.shape[-1] / jnp.maximum(result.inertia, 1e-6)
  centroids = result.centroids
  return {
    "kernel": precision * centroids.T,
    "bias": -0.5 * precision * (centroids**2).sum(-1),
  }


def diversity(
  logits: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Diversity loss and perplexity of the mean code distribution.

  Args:
    logits: float32 `[batch, frames, codebook_size]`.
    weights: float32 `[batch, frames]`, 0 at padding.

  Returns:
    Loss in [0, 1), `1 - perplexity / codebook_size` (wav2vec 2.0 sec. 3.2 up
    to a constant), and perplexity in [1, codebook_size].
  """
  probs = jax.nn.softmax(logits) * weights[..., None]
  mean = probs.sum((0, 1)) / jnp.maximum(weights.sum(), 1.0)
  entropy = -(mean * jnp.log(mean + 1e-9)).sum()
  perplexity = jnp.exp(entropy)
  return 1.0 - perplexity / logits.shape[-1], perplexity
