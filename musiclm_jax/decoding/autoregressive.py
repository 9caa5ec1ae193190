# SPDX-License-Identifier: Apache-2.0
"""Autoregressive decoding: a step function and a cache in, codes out.

Pure functions for use inside `jax.jit`: one compiled loop, sampling on the
device, no host round trip per token.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.decoding import sampling as sampling_lib

StepFn = Callable[[Any, jax.Array], tuple[Any, jax.Array]]
LogitsFn = Callable[[jax.Array, jax.Array], jax.Array]


def decode(
  step_fn: StepFn,
  logits_fn: LogitsFn,
  cache: Any,
  hidden: jax.Array,
  keys: jax.Array,
  first_positions: jax.Array,
  offsets: jax.Array,
  num_frames: int,
  sampling: sampling_lib.SamplingConfig,
  forced: jax.Array | None = None,
  num_forced: jax.Array | int = 0,
) -> tuple[jax.Array, Any]:
  """Samples `num_frames` frames, level after level.

  Args:
    step_fn: `(cache, token int32 [batch]) -> (cache, hidden)`.
    logits_fn: `(hidden, level) -> float32 [batch, codebook_size]`; the level
      is traced.
    cache: opaque, filled with the prefix.
    hidden: `[rows, embed]` of the last prefix position; as many rows as
      `logits_fn` takes, `batch` unless there is guidance.
    keys: typed keys `[batch]`.
    first_positions: int32 `[batch]`, target position (in tokens, from the
      start of the item) of the first code; only randomness depends on it.
    offsets: int32 `[levels]`, token id of code 0 of each level.
    num_frames: frames to make (static).
    sampling: static.
    forced: int32 `[batch, frames, levels]`: given codes to take in place of
      samples; None: sample all.
    num_forced: frames of `forced` to take, for all items or `[batch]`; may be
      traced.

  Returns:
    int32 codes `[batch, frames, levels]` and the cache after them.
  """
  offsets = jnp.asarray(offsets, jnp.int32)
  num_levels = offsets.shape[0]
  batch = keys.shape[0]

  def body(carry, index):
    cache, hidden = carry
    level = index % num_levels
    step_keys = sampling_lib.position_keys(keys, first_positions + index)
    code = sampling_lib.sample(logits_fn(hidden, level), step_keys, sampling)
    if forced is not None:
      given = jax.lax.dynamic_index_in_dim(
        forced.reshape(batch, -1), index, axis=1, keepdims=False
      )
      code = jnp.where(index < num_forced * num_levels, given, code)
    cache, hidden = step_fn(cache, code + offsets[level])
    return (cache, hidden), code

  steps = jnp.arange(num_frames * num_levels, dtype=jnp.int32)
  (cache, _), codes = jax.lax.scan(body, (cache, hidden), steps)
  return codes.T.reshape(batch, num_frames, num_levels), cache
