# SPDX-License-Identifier: Apache-2.0
"""Autoregressive decoding: a step function and a cache in, codes out.

Pure functions for use inside `jax.jit`: one compiled loop, sampling on the
device, no host round trip per token.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.decoding import sampling as sampling_lib

StepFn = Callable[[Any, jax.Array], tuple[Any, jax.Array]]
LogitsFn = Callable[[jax.Array, jax.Array], jax.Array]
GrowFn = Callable[[Any, int], Any]


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
  end_code: int | None = None,
  parts: Sequence[int] = (),
  grow_fn: GrowFn | None = None,
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
    end_code: of codes without repeats, of one level and known by `forced`
      alone: what ends them, static. It is not drawn first, no code is drawn
      again at once, and whatever follows the end is -1, as it is.
    parts: steps after which, one part after the other, the cache is made
      longer; those that are left are the last part (static). Each part is a
      loop of its own, which reads a cache of its length.
    grow_fn: `(cache, number of steps in the next part) -> cache`.

  Returns:
    int32 codes `[batch, frames, levels]` and the cache after them.
  """
  offsets = jnp.asarray(offsets, jnp.int32)
  num_levels = offsets.shape[0]
  batch = keys.shape[0]

  def body(carry, index):
    cache, hidden, last = carry
    level = index % num_levels
    step_keys = sampling_lib.position_keys(keys, first_positions + index)
    logits = logits_fn(hidden, level)
    if end_code is None:
      code = sampling_lib.sample(logits, step_keys, sampling)
    else:
      code = sampling_lib.sample_or_end(logits, last, step_keys, sampling)
    if forced is not None:
      given = jax.lax.dynamic_index_in_dim(
        forced.reshape(batch, -1), index, axis=1, keepdims=False
      )
      code = jnp.where(index < num_forced * num_levels, given, code)
    if end_code is not None:
      has_ended = (last == end_code) & (index > 0)
      code = jnp.where(has_ended, end_code, code)
    cache, hidden = step_fn(cache, code + offsets[level])
    return (cache, hidden, code), code

  # As if the end came before the begin: it is not drawn first.
  last = jnp.full(batch, -1 if end_code is None else end_code, jnp.int32)
  carry, made, start = (cache, hidden, last), [], 0
  for end in (*itertools.accumulate(parts), num_frames * num_levels):
    if start:
      cache, *rest = carry
      carry = (grow_fn(cache, end - start), *rest)
    steps = jnp.arange(start, end, dtype=jnp.int32)
    carry, codes = jax.lax.scan(body, carry, steps)
    made.append(codes)
    start = end
  cache, codes = carry[0], jnp.concatenate(made)
  if end_code is not None:
    codes = jnp.where(codes == end_code, -1, codes)
  return codes.T.reshape(batch, num_frames, num_levels), cache
