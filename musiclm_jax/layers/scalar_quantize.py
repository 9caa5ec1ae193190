# SPDX-License-Identifier: Apache-2.0
"""Residual finite scalar quantization, behind the seam of the RVQ.

Vectors flow in; codes, their quantized sum and counts flow out, as in
`quantize.py`, so a codec and what reads its codes cannot tell them apart. A
level has no codebook: it projects what the levels before left onto a few axes,
rounds each of them to a few steps (FSQ, arXiv 2309.15505) and projects back.
Its entries are the points of that grid, so none can die.

Residual and not grouped: a prefix of the codes must be a coarser version of
all of the sound, because coarse and fine stages and scalable bitrates cut the
codes there. And a pair of projections per level in place of one for all: on
axes common to all levels, 12 codebooks would only say a few numbers more
exactly.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import rng
from musiclm_jax.layers import quantize, rotation
from musiclm_jax.partitioning import axes


@dataclasses.dataclass(frozen=True)
class ScalarQuantizerConfig:
  """Attributes of `ResidualScalarQuantizer`.

  Attributes:
    num_codebooks: levels, each with its own axes.
    steps: values of each axis of a level; their product is the codebook size.
    code_dim: width of the vectors.
    decay: of the averaged counts, which only serve the statistics.
    dropout: draw the number of levels per example in training.
    gradient: how it passes the quantizer to the encoder, 'straight_through' or
      'rotation' (`rotation.py`).
  """

  num_codebooks: int = 12
  steps: tuple[int, ...] = (4, 4, 4, 4, 4)
  code_dim: int = 128
  decay: float = 0.99
  dropout: bool = True
  gradient: str = "straight_through"

  def __post_init__(self):
    object.__setattr__(self, "steps", tuple(self.steps))
    for name in ("num_codebooks", "code_dim"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected >= 1")
    if not self.steps or min(self.steps) < 2:
      raise ValueError(f"steps={self.steps}: expected numbers >= 2")
    if len(self.steps) > self.code_dim:
      raise ValueError(
        f"steps={self.steps}: expected at most code_dim={self.code_dim} axes"
      )
    if not 0 < self.decay < 1:
      raise ValueError(f"decay={self.decay}: expected in (0, 1)")
    if self.gradient not in rotation.GRADIENTS:
      raise ValueError(
        f"gradient={self.gradient!r}: expected one of {rotation.GRADIENTS}"
      )

  @property
  def codebook_size(self) -> int:
    return math.prod(self.steps)

  @property
  def radices(self) -> tuple[int, ...]:
    """What the digit of each axis counts in a code; the first axis most."""
    sizes = [math.prod(self.steps[i + 1 :]) for i in range(len(self.steps))]
    return tuple(sizes)


def digits_of(points: jax.Array, config: ScalarQuantizerConfig) -> jax.Array:
  """Digits of unbounded coordinates, `[..., axes]` as float32."""
  top = jnp.asarray(config.steps, jnp.float32) - 1
  return jnp.round((jnp.tanh(points) + 1) / 2 * top)


def values_of(digits: jax.Array, config: ScalarQuantizerConfig) -> jax.Array:
  """Coordinates of digits, in [-1, 1]."""
  top = jnp.asarray(config.steps, jnp.float32) - 1
  return 2 * digits / top - 1


def codes_of(digits: jax.Array, config: ScalarQuantizerConfig) -> jax.Array:
  """Digits `[..., axes]` to codes `[...]`, int32."""
  radices = jnp.asarray(config.radices, jnp.int32)
  return (digits.astype(jnp.int32) * radices).sum(-1)


def digits_of_codes(
  codes: jax.Array, config: ScalarQuantizerConfig
) -> jax.Array:
  """The inverse of `codes_of`."""
  radices = jnp.asarray(config.radices, jnp.int32)
  steps = jnp.asarray(config.steps, jnp.int32)
  return (codes[..., None] // radices % steps).astype(jnp.float32)


def fit(
  vectors: jax.Array, config: ScalarQuantizerConfig
) -> dict[str, jax.Array]:
  """Projections by principal axes, level by level on what was left.

  The counterpart of k-means for codebooks: from random axes a codec starts
  with levels that describe next to nothing.

  Args:
    vectors: float32 `[n, code_dim]`.
    config: sizes.

  Returns:
    The parameters of a `ResidualScalarQuantizer`.
  """
  num_axes = len(config.steps)

  def step(residual, _):
    centre = residual.mean(0)
    left = residual - centre
    _, basis = jnp.linalg.eigh(left.T @ left / left.shape[0])
    basis = basis[:, -num_axes:][:, ::-1]  # the largest first
    spread = jnp.maximum((left @ basis).std(0), 1e-6)
    # tanh maps two deviations of a bell curve onto most of the steps.
    params = {
      "project_in": basis / spread,
      "bias_in": -(centre @ basis) / spread,
      "project_out": (1.7 * spread)[:, None] * basis.T,
      "bias_out": centre,
    }
    _, _, chosen = _quantize_level(params, residual, config)
    return residual - chosen, params

  _, params = jax.lax.scan(step, vectors, length=config.num_codebooks)
  return params


def _quantize_level(params, residual, config):
  """Codes, digits and contribution (with gradients) of one level."""
  points = residual @ params["project_in"] + params["bias_in"]
  top = jnp.asarray(config.steps, jnp.float32) - 1
  digits = jax.lax.stop_gradient(digits_of(points, config))
  bounded = (jnp.tanh(points) + 1) / 2 * top
  digits = bounded + jax.lax.stop_gradient(digits - bounded)
  chosen = _level_value(params, digits, config)
  return codes_of(jnp.round(digits), config), digits, chosen


def _level_value(params, digits, config):
  values = values_of(digits, config)
  return values @ params["project_out"] + params["bias_out"]


class ResidualScalarQuantizer(nn.Module):
  """Residual FSQ. Collections: 'params', and 'codebooks' with counts only."""

  config: ScalarQuantizerConfig

  def setup(self):
    config = self.config
    levels, num_axes = config.num_codebooks, len(config.steps)

    def param(name, init, shape, names):
      init = axes.named(init, ("codebook", *names))
      return self.param(name, init, (levels, *shape))

    kernel = nn.initializers.variance_scaling(
      1.0, "fan_in", "normal", in_axis=-2, out_axis=-1, batch_axis=0
    )
    zeros = nn.initializers.zeros
    dim = config.code_dim
    self.levels = {
      "project_in": param(
        "project_in", kernel, (dim, num_axes), ("code_dim", None)
      ),
      "bias_in": param("bias_in", zeros, (num_axes,), (None,)),
      "project_out": param(
        "project_out", kernel, (num_axes, dim), (None, "code_dim")
      ),
      "bias_out": param("bias_out", zeros, (dim,), ("code_dim",)),
    }
    size = (levels, config.codebook_size)
    counts = axes.named(zeros, ("codebook", None))
    self.counts = self.variable(
      "codebooks",
      "counts",
      lambda: counts(self.make_rng("params"), size, jnp.float32),
    )

  def __call__(
    self, vectors: jax.Array, train: bool, key: jax.Array | None = None
  ) -> quantize.QuantizerOutput:
    """Quantizes; in training also averages how often each code occurs.

    The encoder gets its gradients as from an RVQ. The projections get those
    of the decoder, and of the commitment: the squared error that each level in
    use leaves, which is what makes every prefix a good one.

    Args:
      vectors: float32 `[batch, frames, code_dim]`.
      train: whether to drop levels and to update counts.
      key: typed key, needed in training.
    """
    config = self.config
    update = train and self.is_mutable_collection("codebooks")
    update = update and not self.is_initializing()
    key = jax.random.key(0) if key is None else key
    in_use = quantize.levels_in_use(
      vectors.shape[0],
      config.num_codebooks,
      train and config.dropout,
      rng.named(key, "levels"),
    )

    def step(carry, xs):
      residual, total = carry
      params, use, average = xs
      codes, _, chosen = _quantize_level(params, residual, config)
      counts = jax.nn.one_hot(
        codes.reshape(-1), config.codebook_size, dtype=jnp.float32
      ).sum(0)
      average = config.decay * average + (1 - config.decay) * counts
      # The next level's input is a constant; later errors reach all levels
      # before through `total`.
      left = jax.lax.stop_gradient(residual - chosen)
      total = total + chosen * use[:, None, None]
      return (left, total), (codes, total, counts, average)

    fixed = jax.lax.stop_gradient(vectors.astype(jnp.float32))
    (_, total), (codes, partial, counts, average) = jax.lax.scan(
      step,
      (fixed, jnp.zeros_like(fixed)),
      (self.levels, in_use.T, self.counts.value),
    )
    if update:
      self.counts.value = average
    else:
      average = self.counts.value
    quantized = rotation.pass_gradients(vectors, total, config.gradient)
    quantized = quantized + (total - jax.lax.stop_gradient(total))
    weight = in_use / in_use.sum()
    error = ((vectors - partial) ** 2).mean((2, 3))
    return quantize.QuantizerOutput(
      quantized=quantized,
      codes=jnp.moveaxis(codes, 0, -1),
      commitment=jnp.sum(error * weight.T),
      usage=(counts > 0).mean(-1),
      perplexity=quantize.perplexity(counts),
      replaced=jnp.zeros((config.num_codebooks,), jnp.float32),
      average_perplexity=quantize.perplexity(average),
    )

  def encode(self, vectors: jax.Array) -> jax.Array:
    """`[..., code_dim]` to codes int32 `[..., codebooks]`."""

    def step(residual, params):
      codes, _, chosen = _quantize_level(params, residual, self.config)
      return residual - chosen, codes

    _, codes = jax.lax.scan(step, vectors.astype(jnp.float32), self.levels)
    return jnp.moveaxis(codes, 0, -1)

  def decode(self, codes: jax.Array) -> jax.Array:
    """Codes `[..., levels]` of the first levels to `[..., code_dim]`.

    Raises:
      ValueError: if there are more levels than codebooks.
    """
    levels = codes.shape[-1]
    quantize.check_levels(codes, self.config.num_codebooks)
    total = jnp.zeros((*codes.shape[:-1], self.config.code_dim), jnp.float32)
    for level in range(levels):
      params = {name: value[level] for name, value in self.levels.items()}
      digits = digits_of_codes(codes[..., level], self.config)
      total = total + _level_value(params, digits, self.config)
    return total
