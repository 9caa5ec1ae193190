# SPDX-License-Identifier: Apache-2.0
"""A last fit of trained RVQ codebooks, when a codec is frozen.

Trained codebooks and many vectors of the finished encoder flow in; codebooks
that quantize these vectors better, with all entries in use, flow out.
"""

import functools

import jax
import jax.numpy as jnp

from musiclm_jax.layers import quantize


def _split_busy(embed, vectors, codes, counts, min_share: float) -> jax.Array:
  """Moves entries that hardly any vector chose into the busiest clusters.

  The first idle entry goes to the busiest one, the second to the next, and so
  on: a little off its centre, so that the vectors there divide.
  """
  fair = counts.mean() * min_share
  idle = counts < fair
  donor = jnp.argsort(-counts)[jnp.cumsum(idle) - 1]
  moves = idle & (counts[donor] >= 2 * fair)
  # Any vector of a cluster gives a direction; the last is always the same.
  rows = jnp.arange(vectors.shape[0])
  last = jnp.zeros(counts.shape, rows.dtype).at[codes].max(rows)
  beside = embed + 0.1 * (vectors[last] - embed)
  return jnp.where(moves[:, None], beside[donor], embed)


@functools.partial(jax.jit, static_argnames=("iterations", "min_share"))
def refit(
  embed: jax.Array,
  vectors: jax.Array,
  iterations: int,
  min_share: float = 0.2,
) -> tuple[jax.Array, jax.Array]:
  """Trained codebooks, moved to the means of what they quantize.

  The moving averages of training see few vectors per entry and follow an
  encoder that moves; a fit on many vectors of the finished encoder removes
  both errors. Entries keep their meaning, so the decoder still knows them,
  but for those that are hardly ever chosen: a fresh entry of training is a
  single vector, and deep levels, whose vectors lie far from each other, would
  keep many that nothing else is near to. They divide the busiest clusters. The
  shortest entry of each codebook becomes zero: a level that has nothing to add
  to a quiet frame then adds nothing.

  Args:
    embed: float32 `[codebooks, codebook_size, code_dim]`.
    vectors: float32 `[n, code_dim]`.
    iterations: of Lloyd's algorithm, per level.
    min_share: of the mean count, below which an entry is moved; 0 moves none.

  Returns:
    The new `embed`, and the mean squared error after each level,
    `[codebooks]`.
  """

  def step(residual, start):
    def improve(index, embed):
      embed, codes, counts = quantize.lloyd_step(residual, embed)
      if not min_share:
        return embed
      moved = _split_busy(embed, residual, codes, counts, min_share)
      # The rest of the iterations settles them.
      return jnp.where(index < iterations // 2, moved, embed)

    level = jax.lax.fori_loop(0, iterations, improve, start)
    level = level.at[jnp.argmin((level**2).sum(-1))].set(0.0)
    left = residual - level[quantize.nearest(residual, level)]
    return left, (level, jnp.mean((left**2).sum(-1)))

  _, (embed, error) = jax.lax.scan(step, vectors, embed)
  return embed, error
