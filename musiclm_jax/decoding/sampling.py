# SPDX-License-Identifier: Apache-2.0
"""Sampling: logits and per-item keys in, codes out."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How one code is drawn.

  Attributes:
    temperature: divides the logits; 0 takes the most likely code.
    top_k: keeps the k most likely codes; 0 keeps all.
    top_p: keeps the fewest codes that hold this much probability.
    guidance: weight of the conditioning against the same without it, or with
      another in its place (`decoding/guidance.py`); 1 is without guidance.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  guidance: float = 1.0

  def __post_init__(self):
    for name in ("temperature", "guidance"):
      value = getattr(self, name)
      if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name}={value}: expected a finite number >= 0")
    if self.top_k < 0:
      raise ValueError(f"top_k={self.top_k}: expected >= 0")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p={self.top_p}: expected in (0, 1]")


def as_config(sampling: SamplingConfig | float) -> SamplingConfig:
  """`sampling`, of which a number is the temperature."""
  if isinstance(sampling, SamplingConfig):
    return sampling
  return SamplingConfig(float(sampling))


def position_keys(item_keys: jax.Array, positions: jax.Array) -> jax.Array:
  """One key per item, from its own key and position only.

  So an item's draws depend neither on the batch size nor on its neighbours.

  Args:
    item_keys: typed keys `[batch]`.
    positions: int32 `[batch]`.

  Returns:
    Typed keys `[batch]`.
  """
  return jax.vmap(jax.random.fold_in)(item_keys, positions)


def filter_logits(logits: jax.Array, config: SamplingConfig) -> jax.Array:
  """Sets logits outside top-k and top-p to -inf.

  Args:
    logits: float32 `[batch, codebook_size]`, already divided by temperature.
    config: see `SamplingConfig`.

  Returns:
    Same shape; at least one finite entry per row.
  """
  size = logits.shape[-1]
  if 0 < config.top_k < size:
    least = jax.lax.top_k(logits, config.top_k)[0][..., -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if config.top_p < 1:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probability = jax.nn.softmax(ordered, axis=-1)
    # Probability of all codes before this one: the first is always kept.
    before = jnp.cumsum(probability, axis=-1) - probability
    kept = jnp.where(before < config.top_p, ordered, jnp.inf)
    logits = jnp.where(
      logits < kept.min(axis=-1, keepdims=True), -jnp.inf, logits
    )
  return logits


def sample(
  logits: jax.Array, keys: jax.Array, config: SamplingConfig
) -> jax.Array:
  """Draws one code per item.

  Args:
    logits: float32 `[batch, codebook_size]`.
    keys: typed keys `[batch]`, see `position_keys`.
    config: static.

  Returns:
    int32 `[batch]`.
  """
  if config.temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = filter_logits(logits / config.temperature, config)
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def sample_or_end(
  logits: jax.Array,
  last: jax.Array,
  keys: jax.Array,
  config: SamplingConfig,
) -> jax.Array:
  """Draws one code per item that is not the one before, or the end.

  The end comes as often as the logits say, whatever the temperature, top-k and
  top-p: at each single position it is unlikely, and what is unlikely is what
  these take away, so that nothing would ever end. At temperature 0 it comes
  where it is the most likely.

  Args:
    logits: float32 `[batch, codebook_size + 1]`, of the end last.
    last: int32 `[batch]`, the codes before: none of them is drawn again.
    keys: typed keys `[batch]`, see `position_keys`.
    config: static.

  Returns:
    int32 `[batch]`, `codebook_size` for the end.
  """
  end = logits.shape[-1] - 1
  logits = jnp.where(jnp.arange(end + 1) == last[:, None], -jnp.inf, logits)
  if config.temperature == 0:
    return sample(logits, keys, config)
  chance = jax.nn.softmax(logits, axis=-1)[:, end]
  codes = sample(logits[:, :end], keys, config)
  drawn = jax.vmap(jax.random.uniform)(
    jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
  )
  return jnp.where(drawn < chance, end, codes)
