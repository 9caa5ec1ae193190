# SPDX-License-Identifier: Apache-2.0
"""Stages with random weights, as small as they get."""

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import stages
from musiclm_jax.layers import transformer
from musiclm_jax.networks import decoder_lm
from musiclm_jax.partitioning import axes

STACK = transformer.TransformerConfig(
  1, 16, 2, 16, relpos_buckets=8, relpos_max_distance=20
)


def make_params(spec, streams, scale=3.0):
  """Parameters of a stage over `STACK`."""
  layout = stages.StageLayout(spec, {s.name: s for s in streams})
  network = decoder_lm.DecoderLM(
    decoder_lm.DecoderLMConfig(
      STACK,
      layout.vocab_size,
      layout.num_target_levels,
      layout.num_target_codes,
      masks_padding=spec.pads_conditioning,
    )
  )
  shapes = jax.eval_shape(
    lambda: axes.unbox(
      network.init(
        jax.random.key(0),
        jnp.zeros((1, layout.length), jnp.int32),
        layout.shapes,
      )
    )
  )["params"]
  # Drawn in numpy, which compiles nothing; large enough for confident logits.
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: (
      rng.standard_normal(leaf.shape) * scale / np.sqrt(leaf.shape[-1])
    ).astype(np.float32),
    shapes,
  )
