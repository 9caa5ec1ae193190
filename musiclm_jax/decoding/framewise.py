# SPDX-License-Identifier: Apache-2.0
"""Decoding frame by frame, level by level: two step functions in, codes out.

Pure functions for use inside `jax.jit`: one compiled loop over frames, the
levels of a frame unrolled in it, sampling on the device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.decoding import sampling as sampling_lib

FrameFn = Callable[[Any, jax.Array], tuple[Any, jax.Array]]
LevelFn = Callable[
  [Any, jax.Array, jax.Array | None, int], tuple[Any, jax.Array]
]


def decode(
  frame_fn: FrameFn,
  level_fn: LevelFn,
  cache: Any,
  hidden: jax.Array,
  keys: jax.Array,
  first_frames: jax.Array,
  num_frames: int,
  sampling: Sequence[sampling_lib.SamplingConfig],
  forced: jax.Array,
  num_forced: jax.Array,
) -> jax.Array:
  """Samples `num_frames` frames.

  Args:
    frame_fn: `(cache, codes int32 [batch, levels]) -> (cache, hidden)` of the
      next frame.
    level_fn: `(level_cache, hidden, code, level) -> (level_cache, logits)`
      with float32 logits `[batch, codebook_size]`; `code` is that of the level
      before; both it and `level_cache` are None at level 0.
    cache: opaque, filled with the prefix.
    hidden: `[batch, embed]`, of the first frame to make.
    keys: typed keys `[batch]`.
    first_frames: int32 `[batch]`, frame of the item that is made first; only
      randomness depends on it.
    num_frames: frames to make (static).
    sampling: of each level (static).
    forced: int32 `[batch, num_frames, levels]`: given codes.
    num_forced: int32 `[batch]`, leading frames of `forced` to take in place of
      samples.

  Returns:
    int32 codes `[batch, num_frames, levels]`.
  """
  num_levels = len(sampling)

  def body(carry, index):
    cache, hidden = carry
    given = jax.lax.dynamic_index_in_dim(forced, index, 1, keepdims=False)
    level_cache, code, codes = None, None, []
    for level, how in enumerate(sampling):
      level_cache, logits = level_fn(level_cache, hidden, code, level)
      step_keys = sampling_lib.position_keys(
        keys, (first_frames + index) * num_levels + level
      )
      code = sampling_lib.sample(logits, step_keys, how)
      code = jnp.where(index < num_forced, given[:, level], code)
      codes.append(code)
    codes = jnp.stack(codes, axis=1)
    return frame_fn(cache, codes), codes

  frames = jnp.arange(num_frames, dtype=jnp.int32)
  _, codes = jax.lax.scan(body, (cache, hidden), frames)
  return codes.swapaxes(0, 1)
