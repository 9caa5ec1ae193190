# SPDX-License-Identifier: Apache-2.0
"""Residual vector quantization with codebooks learned by moving averages.

Vectors flow in; codes, their quantized sum and fresh codebook statistics flow
out. The codebooks are no parameters: they live in the collection 'codebooks'
and follow the assigned vectors (SoundStream sec. III-C). All statistics are
sums over the whole batch, so under `jax.jit` any mesh gives the same ones.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import rng
from musiclm_jax.layers import rotation
from musiclm_jax.partitioning import axes


@dataclasses.dataclass(frozen=True)
class ResidualQuantizerConfig:
  """Attributes of `ResidualQuantizer`.

  Attributes:
    num_codebooks: RVQ levels.
    codebook_size: entries of each.
    code_dim: width of the vectors.
    decay: of the moving averages (SoundStream: 0.99).
    dead_threshold: an entry whose averaged count is below is replaced
      (SoundStream: 2); lowered to a fifth of the mean count where a batch has
      few frames per entry, else nearly all entries would be replaced.
    kmeans_iterations: Lloyd iterations of the start from the first batch.
    dropout: draw the number of levels per example in training.
    gradient: how it passes the quantizer, 'straight_through' or 'rotation'
      (`rotation.py`).
  """

  num_codebooks: int = 12
  codebook_size: int = 1024
  code_dim: int = 128
  decay: float = 0.99
  dead_threshold: float = 2.0
  kmeans_iterations: int = 10
  dropout: bool = True
  gradient: str = "straight_through"

  def __post_init__(self):
    if self.gradient not in rotation.GRADIENTS:
      raise ValueError(
        f"gradient={self.gradient!r}: expected one of {rotation.GRADIENTS}"
      )
    for name in ("num_codebooks", "codebook_size", "code_dim"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected >= 1")
    if not 0 < self.decay < 1:
      raise ValueError(f"decay={self.decay}: expected in (0, 1)")
    if self.dead_threshold < 0 or self.kmeans_iterations < 0:
      raise ValueError(
        f"dead_threshold={self.dead_threshold}, "
        f"kmeans_iterations={self.kmeans_iterations}: expected >= 0"
      )


class QuantizerOutput(NamedTuple):
  """What quantizing a batch gives.

  Attributes:
    quantized: float32 `[batch, frames, code_dim]`, straight-through.
    codes: int32 `[batch, frames, codebooks]`, of all levels.
    commitment: scalar, mean squared residual left by each level in use.
    usage: `[codebooks]`, share of entries chosen at least once.
    perplexity: `[codebooks]`, exp of the entropy of the chosen entries.
    replaced: `[codebooks]`, share of entries that were dead and replaced.
    average_perplexity: `[codebooks]`, as `perplexity`, of the averaged counts:
      of many batches, where one has fewer frames than there are entries.
  """

  quantized: jax.Array
  codes: jax.Array
  commitment: jax.Array
  usage: jax.Array
  perplexity: jax.Array
  replaced: jax.Array
  average_perplexity: jax.Array


class _Level(NamedTuple):
  """One codebook with its averaged counts and sums."""

  embed: jax.Array  # [codebook_size, code_dim]
  counts: jax.Array  # [codebook_size]
  sums: jax.Array  # [codebook_size, code_dim]


def nearest(vectors: jax.Array, embed: jax.Array) -> jax.Array:
  """Index of the nearest entry: `[..., dim]`, `[size, dim]` to `[...]`."""
  product = jnp.matmul(vectors, embed.T, precision="highest")
  return jnp.argmin((embed**2).sum(-1) - 2.0 * product, -1).astype(jnp.int32)


def perplexity(counts: jax.Array) -> jax.Array:
  """exp(entropy) of counts `[..., codebook_size]`, `[...]`; 1 of no counts."""
  share = counts / jnp.maximum(counts.sum(-1, keepdims=True), 1e-12)
  return jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12)), -1))


def levels_in_use(
  batch: int, num_codebooks: int, drop: bool, key: jax.Array
) -> jax.Array:
  """1.0 where an example uses a level, float32 `[batch, codebooks]`.

  With `drop`, each uses a random number of first levels (SoundStream sec.
  III-C), else all.
  """
  if not drop:
    return jnp.ones((batch, num_codebooks), jnp.float32)
  count = jax.random.randint(key, (batch, 1), 1, num_codebooks + 1)
  return (jnp.arange(num_codebooks) < count).astype(jnp.float32)


def check_levels(codes: jax.Array, num_codebooks: int) -> None:
  """Raises ValueError if codes have more levels than there are codebooks."""
  if codes.shape[-1] > num_codebooks:
    raise ValueError(
      f"codes of shape {codes.shape} have {codes.shape[-1]} levels: expected "
      f"at most num_codebooks={num_codebooks}"
    )


def _assign(vectors, embed):
  """Codes `[n]`, counts `[size]` and sums `[size, dim]` of an assignment."""
  codes = nearest(vectors, embed)
  one_hot = jax.nn.one_hot(codes, embed.shape[0], dtype=vectors.dtype)
  sums = jnp.matmul(one_hot.T, vectors, precision="highest")
  return codes, one_hot.sum(0), sums


def _random_rows(key: jax.Array, vectors: jax.Array, count: int) -> jax.Array:
  """`count` rows of `[n, dim]`; distinct ones while there are enough."""
  order = jax.random.permutation(key, vectors.shape[0])
  return vectors[jnp.resize(order, (count,))]


def lloyd_step(
  vectors: jax.Array, embed: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """One iteration of Lloyd's algorithm; an empty cluster keeps its place.

  Args:
    vectors: float32 `[n, code_dim]`.
    embed: float32 `[codebook_size, code_dim]`.

  Returns:
    The new `embed`, and codes `[n]` and counts `[codebook_size]` by the old.
  """
  codes, counts, sums = _assign(vectors, embed)
  mean = sums / jnp.maximum(counts, 1.0)[:, None]
  return jnp.where(counts[:, None] > 0, mean, embed), codes, counts


def _kmeans(key, vectors, size: int, iterations: int) -> _Level:
  """K-means from random rows."""
  embed = jax.lax.fori_loop(
    0,
    iterations,
    lambda _, embed: lloyd_step(vectors, embed)[0],
    _random_rows(key, vectors, size),
  )
  _, counts, _ = _assign(vectors, embed)
  return _Level(embed, counts, embed * counts[:, None])


def fit(
  key: jax.Array,
  vectors: jax.Array,
  config: ResidualQuantizerConfig,
  vectors_per_step: int,
) -> dict[str, jax.Array]:
  """Codebooks by k-means, level by level on what the levels before left.

  For batches with fewer frames than a codebook has entries, where a start
  from the first batch would leave most entries on single frames.

  Args:
    key: typed key.
    vectors: float32 `[n, code_dim]`.
    config: sizes.
    vectors_per_step: frames of a training batch; the averaged counts start
      as they will be in training.

  Returns:
    The variables of collection 'codebooks' of a `ResidualQuantizer`.
  """
  scale = vectors_per_step / vectors.shape[0]

  def step(residual, level_key):
    level = _kmeans(
      level_key, residual, config.codebook_size, config.kmeans_iterations
    )
    left = residual - level.embed[nearest(residual, level.embed)]
    return left, (level.embed, level.counts * scale, level.sums * scale)

  keys = jax.random.split(key, config.num_codebooks)
  _, (embed, counts, sums) = jax.lax.scan(step, vectors, keys)
  return {
    "embed": embed,
    "counts": counts,
    "sums": sums,
    "initialized": jnp.ones((1,), jnp.float32),
  }


def update_level(
  level: _Level,
  vectors: jax.Array,
  counts: jax.Array,
  sums: jax.Array,
  key: jax.Array,
  config: ResidualQuantizerConfig,
) -> tuple[_Level, jax.Array]:
  """One step of the moving averages, then replacement of dead entries.

  A replaced entry gets a random vector of the batch in `embed`, and the mean
  count in `counts` and `sums`: with `embed` alone, the next average would put
  the old entry back.

  Args:
    level: averages before.
    vectors: `[n, code_dim]`, what the level quantized.
    counts: `[codebook_size]`, how many chose each entry.
    sums: `[codebook_size, code_dim]`, sum of those.
    key: draws the replacements.
    config: decay and threshold.

  Returns:
    The averages after, and the share of entries that were replaced.
  """
  decay = config.decay
  counts = decay * level.counts + (1 - decay) * counts
  sums = decay * level.sums + (1 - decay) * sums
  mean_count = vectors.shape[0] / config.codebook_size
  dead = counts < min(config.dead_threshold, 0.2 * mean_count)
  fresh = _random_rows(key, vectors, config.codebook_size)
  counts = jnp.where(dead, mean_count, counts)
  sums = jnp.where(dead[:, None], fresh * mean_count, sums)
  embed = sums / jnp.maximum(counts, 1e-6)[:, None]
  return _Level(embed, counts, sums), dead.mean()


class ResidualQuantizer(nn.Module):
  """RVQ: each level quantizes what the levels before left over."""

  config: ResidualQuantizerConfig

  def setup(self):
    config = self.config
    size = (config.num_codebooks, config.codebook_size)
    names = ("codebook", None)

    def variable(name, init, shape, shape_names):
      init = axes.named(init, shape_names)
      return self.variable(
        "codebooks",
        name,
        lambda: init(self.make_rng("params"), shape, jnp.float32),
      )

    vectors = (*size, config.code_dim)
    vector_names = (*names, "code_dim")
    normal = nn.initializers.normal(0.1)
    zeros = nn.initializers.zeros
    self.embed = variable("embed", normal, vectors, vector_names)
    self.counts = variable("counts", zeros, size, names)
    self.sums = variable("sums", zeros, vectors, vector_names)
    self.initialized = variable("initialized", zeros, (1,), (None,))

  def __call__(
    self, vectors: jax.Array, train: bool, key: jax.Array | None = None
  ) -> QuantizerOutput:
    """Quantizes; in training also updates the collection 'codebooks'.

    Codebook statistics use every example at every level, whatever number of
    levels its reconstruction is given: with 12 levels, quantizer dropout would
    leave the last a twelfth of the batch.

    Args:
      vectors: float32 `[batch, frames, code_dim]`.
      train: whether to drop levels and to update codebooks (if the collection
        is mutable).
      key: typed key, needed in training.
    """
    config = self.config
    batch, frames, _ = vectors.shape
    update = train and self.is_mutable_collection("codebooks")
    update = update and not self.is_initializing()
    key = jax.random.key(0) if key is None else key
    in_use = levels_in_use(
      batch,
      config.num_codebooks,
      train and config.dropout,
      rng.named(key, "levels"),
    )
    started = self.initialized.value[0] > 0

    def step(carry, xs):
      residual, total = carry
      level, use, level_key = xs
      flat = residual.reshape(batch * frames, -1)
      if update:
        level = jax.lax.cond(
          started,
          lambda: level,
          lambda: _kmeans(
            rng.named(level_key, "kmeans"),
            flat,
            config.codebook_size,
            config.kmeans_iterations,
          ),
        )
      codes, counts, sums = _assign(flat, level.embed)
      chosen = level.embed[codes].reshape(vectors.shape)
      replaced = jnp.zeros((), jnp.float32)
      if update:
        replace_key = rng.named(level_key, "dead")
        level, replaced = update_level(
          level, flat, counts, sums, replace_key, config
        )
      total = total + chosen * use[:, None, None]
      left = residual - chosen
      out = (
        codes.reshape(batch, frames),
        total,
        ((counts > 0).mean(), perplexity(counts), replaced),
        level,
      )
      return (left, total), out

    levels = _Level(self.embed.value, self.counts.value, self.sums.value)
    keys = jax.random.split(rng.named(key, "codebooks"), config.num_codebooks)
    fixed = jax.lax.stop_gradient(vectors.astype(jnp.float32))
    (_, total), (codes, partial, shares, levels) = jax.lax.scan(
      step, (fixed, jnp.zeros_like(fixed)), (levels, in_use.T, keys)
    )
    if update:
      self.embed.value, self.counts.value, self.sums.value = levels
      self.initialized.value = jnp.ones((1,), jnp.float32)
    # Passed on the sum: one identity or rotation, not one per level.
    quantized = rotation.pass_gradients(vectors, total, config.gradient)
    # The squared residual after every level, expanded so that the gradient
    # costs one pass: (v - p_l)^2 averaged over levels.
    weight = in_use / in_use.sum()
    error = ((vectors - partial) ** 2).mean((2, 3))
    commitment = jnp.sum(error * weight.T)
    codes = jnp.moveaxis(codes, 0, -1)
    return QuantizerOutput(
      quantized, codes, commitment, *shares, perplexity(levels.counts)
    )

  def encode(self, vectors: jax.Array) -> jax.Array:
    """`[..., code_dim]` to codes int32 `[..., codebooks]`."""

    def step(residual, embed):
      codes = nearest(residual, embed)
      return residual - embed[codes], codes

    _, codes = jax.lax.scan(step, vectors.astype(jnp.float32), self.embed.value)
    return jnp.moveaxis(codes, 0, -1)

  def decode(self, codes: jax.Array) -> jax.Array:
    """Codes `[..., levels]` of the first levels to `[..., code_dim]`.

    Raises:
      ValueError: if there are more levels than codebooks.
    """
    check_levels(codes, self.config.num_codebooks)
    total = jnp.zeros((*codes.shape[:-1], self.config.code_dim), jnp.float32)
    for level in range(codes.shape[-1]):
      total = total + self.embed.value[level][codes[..., level]]
    return total
