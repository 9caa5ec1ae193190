# SPDX-License-Identifier: Apache-2.0
"""What a stage compiles: tokens of its conditioning in, codes out."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from musiclm_jax.core import artifacts
from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.decoding import autoregressive, guidance
from musiclm_jax.decoding import sampling as sampling_lib
from musiclm_jax.layers import attention
from musiclm_jax.layers import transformer as transformer_lib
from musiclm_jax.networks import decoder_lm
from musiclm_jax.partitioning import axes
from musiclm_jax.systems import stage_weights

# Each loop is compiled: more of them than this would cost more than they save,
# and so would short ones.
MAX_LOOPS = 4
MIN_LOOP_STEPS = 125


def decode_network(
  spec: stages_lib.StageSpec,
  streams: Mapping[str, streams_lib.TokenStream],
  transformer: transformer_lib.TransformerConfig,
  precision: precision_lib.Precision,
  aligned_conditioning: float = 0.0,
) -> decoder_lm.DecoderLM:
  """The network of a trained stage, laid out for decoding."""
  layout = stages_lib.StageLayout(spec, streams)
  # Unrolled, each layer has a cache of its own that is updated in place;
  # scanned, all caches would be copied at every decode step.
  unrolled = artifacts.config_from_dict(
    transformer_lib.TransformerConfig,
    artifacts.config_to_dict(transformer)
    | {"scan_layers": False, "remat": "none"},
  )
  return decoder_lm.DecoderLM(
    decoder_lm.DecoderLMConfig(
      unrolled,
      layout.vocab_size,
      layout.num_target_levels,
      layout.num_target_codes,
      aligned_conditioning,
      spec.pads_conditioning,
    ),
    precision,
  )


def loop_parts(num_steps: int) -> tuple[int, ...]:
  """Steps of the loops that a window is decoded in, one after the other.

  A step reads the whole cache, filled or not: in each loop it is as long as
  what is filled at its end. On a CPU only; elsewhere one loop has all steps,
  as `musiclm check` counts them.
  """
  if axes.platform() != "cpu":
    return (num_steps,)
  num_parts = min(max(num_steps // MIN_LOOP_STEPS, 1), MAX_LOOPS)
  share, rest = divmod(num_steps, num_parts)
  return tuple(share + (index < rest) for index in range(num_parts))


def generate_program(
  network: decoder_lm.DecoderLM,
  offsets: np.ndarray,
  variables: Any,
  tokens: jax.Array,
  keys: jax.Array,
  first_positions: jax.Array,
  forced: jax.Array,
  num_forced: jax.Array,
  shapes: tuple[tuple[int, int], ...],
  num_frames: int,
  sampling: sampling_lib.SamplingConfig,
  end_code: int | None = None,
) -> jax.Array:
  """Prefill, then the decode loop, as one program.

  With guidance, `tokens` has twice the rows of `keys` (`decoding/guidance.py`).
  The variables are those of `stage_weights.stored`.
  """
  dtype = network.precision.compute_dtype
  parts = loop_parts(num_frames * shapes[-1][1])
  hidden, state = network.apply(
    variables,
    tokens,
    shapes,
    parts[0],
    method="prefill",
    mutable=["cache"],
  )

  def step(cache, token):
    weights, token = stage_weights.read_again(variables, dtype, token)
    hidden, state = network.apply(
      {**weights, "cache": cache},
      token,
      method="step",
      mutable=["cache"],
    )
    return state["cache"], hidden

  def logits(hidden, level):
    weights, hidden = stage_weights.read_again(variables, dtype, hidden)
    return network.apply(weights, hidden, level, method="level_logits")

  if tokens.shape[0] != keys.shape[0]:
    step, logits = guidance.guided(step, logits, sampling.guidance)
  codes, _ = autoregressive.decode(
    step,
    logits,
    state["cache"],
    hidden,
    keys,
    first_positions,
    offsets,
    num_frames,
    sampling,
    forced,
    num_forced,
    end_code,
    parts[:-1],
    attention.grow_cache,
  )
  return codes
