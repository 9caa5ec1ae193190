# SPDX-License-Identifier: Apache-2.0
"""Decode programs of the acoustic back ends, for `musiclm check`.

A trainable and shapes of its parameters flow in; the function that makes one
window, with shapes of its arguments, flows out.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.core import rng
from musiclm_jax.decoding import masked
from musiclm_jax.models import depthwise_lm, soundstorm
from musiclm_jax.systems import acoustic_stage, depthwise
from musiclm_jax.systems import soundstorm as soundstorm_system

TRAINABLES = (depthwise_lm.Depthwise, soundstorm.SoundStorm)


def window_program(
  trainable: depthwise_lm.Depthwise | soundstorm.SoundStorm,
  params: Any,
  rows: int,
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """What generation compiles for a window of which nothing is known.

  Args:
    trainable: one of `TRAINABLES`.
    params: shapes of its parameters, as trained.
    rows: items of a batch.

  Returns:
    A function to int32 codes `[rows, frames, levels]`, and shapes of its
    arguments: parameters, conditioning tokens, keys, first frames.
  """
  config, layout = trainable.config, trainable.layout
  precision, shapes = config.precision, layout.shapes
  codes = (rows, *shapes[-1])
  sampling = acoustic_stage.level_sampling(
    acoustic_stage.TEMPERATURES, layout.num_target_levels
  )
  is_depthwise = isinstance(trainable, depthwise_lm.Depthwise)
  system = soundstorm_system.SoundStormStage
  if is_depthwise:
    system = depthwise.DepthwiseStage
  network = system.decode_network(config.network, precision)
  params = jax.eval_shape(
    lambda tree: jax.tree.map(
      lambda leaf: leaf.astype(precision.compute_dtype),
      system.decode_params(tree),
    ),
    params,
  )

  def frames_in_turn(params, tokens, keys, first_frames):
    return depthwise.generate_program(
      network,
      layout.target_offsets,
      params,
      tokens,
      keys,
      first_frames,
      jnp.zeros(codes, jnp.int32),
      jnp.zeros(rows, jnp.int32),
      shapes,
      sampling,
    )

  def frames_at_once(params, tokens, keys, first_frames):
    return soundstorm_system.generate_program(
      network,
      layout.target_offsets,
      params,
      tokens,
      keys,
      jnp.zeros(codes, jnp.int32),
      jnp.zeros(codes, bool),
      first_frames,
      shapes,
      masked.drawn(layout.num_target_levels),
      sampling,
    )

  arguments = (
    params,
    jax.ShapeDtypeStruct((rows, layout.target_start), jnp.int32),
    jax.eval_shape(lambda: jax.random.split(rng.root_key(0), rows)),
    jax.ShapeDtypeStruct((rows,), jnp.int32),
  )
  return (frames_in_turn if is_depthwise else frames_at_once), arguments
