# SPDX-License-Identifier: Apache-2.0
"""Masked parallel decoding: partly known codes in, all codes out.

SoundStorm (arXiv 2305.09636 sec. 3.3): level after level; each pass draws all
unknown codes of a level and keeps those it is most sure of, ever more of them
(MaskGIT, arXiv 2202.04200). Pure functions for use inside `jax.jit`: all
passes are one compiled loop.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.decoding import sampling as sampling_lib

LogitsFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class MaskedSchedule:
  """How many passes each level gets.

  Attributes:
    passes: of each level; the published ones are 16 for the first level and 1
      for each other.
    choice_noise: Gumbel noise on how sure a pass is of its codes, which falls
      to 0 with the share of unknown codes; 0, as published, keeps the surest.
    greedy_single: levels with one pass take the most likely codes.
  """

  passes: tuple[int, ...]
  choice_noise: float = 0.0
  greedy_single: bool = True

  def __post_init__(self):
    object.__setattr__(self, "passes", tuple(self.passes))
    if not self.passes or min(self.passes) < 1:
      raise ValueError(f"passes={self.passes}: expected one or more per level")
    if not self.choice_noise >= 0:
      raise ValueError(f"choice_noise={self.choice_noise}: expected >= 0")

  def describe(self) -> dict[str, Any]:
    """The settings as JSON-compatible values.

    Returns:
      'passes' of each level, 'choice_noise', and 'greedy_levels': those whose
      codes are the most likely ones, whatever the temperature.
    """
    return {
      "passes": [int(count) for count in self.passes],
      "choice_noise": float(self.choice_noise),
      "greedy_levels": [
        level for level in range(len(self.passes)) if self.is_greedy(level)
      ],
    }

  def is_greedy(self, level: int) -> bool:
    """Whether a level takes the most likely codes, not drawn ones."""
    return self.greedy_single and self.passes[level] == 1


def published(num_levels: int) -> MaskedSchedule:
  """16 passes for the first level, 1 for the others."""
  return MaskedSchedule((16,) + (1,) * (num_levels - 1))


def drawn(num_levels: int) -> MaskedSchedule:
  """The published passes, of which none takes only what is surest.

  A model that has not learnt much is surest of the code before: as published it
  repeats that to the end (docs/acoustic_backends.md). The noise is MaskGIT's.
  """
  return dataclasses.replace(
    published(num_levels), choice_noise=4.5, greedy_single=False
  )


def _plan(
  schedule: MaskedSchedule, temperatures: tuple[float, ...]
) -> dict[str, np.ndarray]:
  """Level, share left unknown, and temperature of each pass."""
  levels, ratios, heats = [], [], []
  for level, (count, heat) in enumerate(zip(schedule.passes, temperatures)):
    if schedule.is_greedy(level):
      heat = 0.0
    levels += [level] * count
    heats += [heat] * count
    ratios += [math.cos(math.pi / 2 * (i + 1) / count) for i in range(count)]
    ratios[-1] = 0.0
  return {
    "index": np.arange(len(levels), dtype=np.int32),
    "level": np.asarray(levels, np.int32),
    "ratio": np.asarray(ratios, np.float32),
    "temperature": np.asarray(heats, np.float32),
  }


def _at_level(array: jax.Array, level: jax.Array) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(array, level, axis=2, keepdims=False)


def surest(
  confidence: jax.Array, unknown: jax.Array, num_left: jax.Array
) -> jax.Array:
  """Which unknown frames become known.

  Args:
    confidence: float32 `[batch, frames]`.
    unknown: bool `[batch, frames]`.
    num_left: int32 `[batch]`: frames that stay unknown.

  Returns:
    bool `[batch, frames]`, True for all but the `num_left` least sure of the
    unknown frames.
  """
  score = jnp.where(unknown, confidence, -jnp.inf)
  rank = jnp.argsort(jnp.argsort(-score, axis=1), axis=1)
  num_new = unknown.sum(1) - num_left
  return unknown & (rank < num_new[:, None])


def decode(
  logits_fn: LogitsFn,
  codes: jax.Array,
  known: jax.Array,
  keys: jax.Array,
  first_frames: jax.Array,
  schedule: MaskedSchedule,
  sampling: tuple[sampling_lib.SamplingConfig, ...],
) -> jax.Array:
  """Fills in all codes that are not known.

  Args:
    logits_fn: `(codes, masked, level) -> float32 [batch, frames,
      codebook_size]`; the level is traced.
    codes: int32 `[batch, frames, levels]`; anything where not known.
    known: bool, same shape.
    keys: typed keys `[batch]`.
    first_frames: int32 `[batch]`, frame of the item that is frame 0 here; only
      randomness depends on it.
    schedule: passes of each level (static).
    sampling: of each level (static); top-k and top-p are those of level 0.

  Returns:
    int32 codes of the same shape; known ones as they were.

  Raises:
    ValueError: if schedule, sampling and codes differ in their levels.
  """
  batch, frames, levels = codes.shape
  if not levels == len(schedule.passes) == len(sampling):
    raise ValueError(
      f"passes={schedule.passes} and {len(sampling)} samplings: expected one "
      f"for each of {levels} levels"
    )
  total = (~known).sum(1)  # [batch, levels]
  filters = dataclasses.replace(sampling[0], temperature=1.0)
  places = first_frames[:, None] + jnp.arange(frames, dtype=jnp.int32)

  def noise(use, index, shape):
    """Gumbel noise of each item and frame, `[batch, frames, *shape]`."""

    def draw(one):
      return jax.random.gumbel(jax.random.fold_in(one, use), shape)

    by_item = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
    by_frame = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(
      by_item, places
    )
    return jax.vmap(jax.vmap(draw))(by_frame)

  def one_pass(carry, step):
    codes, masked = carry
    level, ratio, heat = step["level"], step["ratio"], step["temperature"]
    logits = logits_fn(codes, masked, level)
    warm = logits / jnp.where(heat > 0, heat, 1.0)
    warm = sampling_lib.filter_logits(
      warm.reshape(batch * frames, -1), filters
    ).reshape(logits.shape)
    # The largest of logits and noise is a sample; without noise, the largest.
    noisy = warm + (heat > 0) * noise(0, step["index"], logits.shape[-1:])
    choice = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
    confidence = jnp.take_along_axis(
      jax.nn.log_softmax(logits), choice[..., None], axis=-1
    )[..., 0]
    if schedule.choice_noise:
      scale = schedule.choice_noise * ratio
      confidence += scale * noise(1, step["index"], ())
    unknown = _at_level(masked, level)
    left = jnp.floor(ratio * total[:, level]).astype(jnp.int32)
    # Every pass makes something known.
    left = jnp.clip(left, 0, jnp.maximum(unknown.sum(1) - 1, 0))
    left = jnp.where(ratio > 0, left, 0)
    new = surest(confidence, unknown, left)
    is_level = jnp.arange(levels) == level
    new = new[..., None] & is_level
    return (jnp.where(new, choice[..., None], codes), masked & ~new), None

  plan = _plan(schedule, tuple(one.temperature for one in sampling))
  (codes, _), _ = jax.lax.scan(one_pass, (codes, ~known), plan)
  return codes
