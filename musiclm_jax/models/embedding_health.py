# SPDX-License-Identifier: Apache-2.0
"""Whether a joint embedding is alive: embeddings of a batch in, numbers out.

Nothing here is larger than `[batch]` or `[dim, dim]`, on any mesh.
"""

import jax
import jax.numpy as jnp

from musiclm_jax.core import protocols
from musiclm_jax.models import pair_losses


def spread(
  embeddings: jax.Array, present: jax.Array | None = None
) -> jax.Array:
  """Total variance of unit vectors: one minus the squared length of the mean.

  Args:
    embeddings: float32 `[batch, dim]` of unit length.
    present: bool `[batch]`, rows that count; None for all.

  Returns:
    float32 scalar in [0, 1]; 0 where all inputs get one vector.
  """
  return _centred(embeddings, present)[1]


def participation_ratio(
  embeddings: jax.Array, present: jax.Array | None = None
) -> jax.Array:
  """Number of directions in which a batch varies.

  The squared sum of the eigenvalues of the covariance over the sum of their
  squares: k where k directions have equal variance and the others none. Both
  are traces, so no eigenvalue is computed.

  Args:
    embeddings: float32 `[batch, dim]`.
    present: bool `[batch]`, rows that count; None for all.

  Returns:
    float32 scalar in [1, min(dim, batch - 1)]; 0 where nothing varies.
  """
  centred, variance, count = _centred(embeddings, present)
  products = jnp.einsum(
    "bi,bj->ij", centred, centred, precision=jax.lax.Precision.HIGHEST
  )
  squares = ((products / count) ** 2).sum()
  return jnp.where(
    squares > 0, variance**2 / jnp.where(squares > 0, squares, 1.0), 0.0
  )


def _centred(
  embeddings: jax.Array, present: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Embeddings minus their mean, their total variance, and their number."""
  embeddings = embeddings.astype(jnp.float32)
  if present is None:
    present = jnp.ones(len(embeddings), bool)
  count = jnp.maximum(present.sum(dtype=jnp.float32), 1.0)
  weights = present[:, None].astype(jnp.float32)
  mean = (weights * embeddings).sum(0) / count
  centred = weights * (embeddings - mean)
  return centred, (centred**2).sum() / count, count


def hub_share(
  nearest: jax.Array, present: jax.Array | None = None
) -> jax.Array:
  """Share of the queries whose nearest item is the commonest nearest item.

  Args:
    nearest: int32 `[batch]`, row of each query's nearest item, in [0, batch).
    present: bool `[batch]`, queries that count; None for all.

  Returns:
    float32 scalar in [1 / batch, 1]; 1 where one item is nearest to all.
  """
  if present is None:
    present = jnp.ones(len(nearest), bool)
  weights = present.astype(jnp.float32)
  counts = jnp.zeros(len(nearest), jnp.float32).at[nearest].add(weights)
  return counts.max() / jnp.maximum(weights.sum(), 1.0)


def panel(
  audio: jax.Array,
  text: jax.Array,
  found: pair_losses.PairLosses,
  present: jax.Array | None = None,
) -> dict[str, protocols.Mean]:
  """Metrics of the health of both modalities.

  Args:
    audio: float32 `[batch, dim]` of unit length.
    text: the same of the texts.
    found: of `pair_losses` with them.
    present: bool `[batch]`, rows that are pairs; None for all.

  Returns:
    `embedding_rank_audio` and `embedding_rank_text` (participation ratio),
    `embedding_spread_audio` and `embedding_spread_text`, and
    `hub_share_audio_to_text` (queries are audio) and
    `hub_share_text_to_audio`. Without gradients.
  """
  audio, text = jax.lax.stop_gradient((audio, text))
  if present is None:
    present = jnp.ones(len(audio), bool)
  values = {
    "embedding_rank_audio": participation_ratio(audio, present),
    "embedding_rank_text": participation_ratio(text, present),
    "embedding_spread_audio": spread(audio, present),
    "embedding_spread_text": spread(text, present),
    "hub_share_audio_to_text": hub_share(found.nearest_text, present),
    "hub_share_text_to_audio": hub_share(found.nearest_audio, present),
  }
  # A batch without pairs has no health.
  one = present.any().astype(jnp.float32)
  return {
    name: protocols.Mean(value * one, one) for name, value in values.items()
  }
