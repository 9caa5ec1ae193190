# SPDX-License-Identifier: Apache-2.0
"""Tiny models of all acoustic levels, for tests."""

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import stages, streams
from musiclm_jax.layers import conformer, transformer
from musiclm_jax.models import depthwise_lm, soundstorm
from musiclm_jax.partitioning import axes
from musiclm_jax.systems import depthwise
from musiclm_jax.systems import soundstorm as soundstorm_system

MULAN = streams.TokenStream("mulan", 4, 2)
SEMANTIC = streams.TokenStream("semantic", 6, 1, 4.0)
ACOUSTIC = streams.TokenStream("acoustic", 5, 3, 8.0)
STREAMS = (MULAN, SEMANTIC, ACOUSTIC)
SPEC = stages.acoustic_stage(2, 3, crop_secs=1.0)


def stack(num_layers=1, **fields):
  return transformer.TransformerConfig(
    num_layers, 16, 2, 16, dropout_rate=0.0, relpos_buckets=8,
    relpos_max_distance=20, **fields
  )  # fmt: skip


def depthwise_model(num_layers=1, spec=SPEC, streams=STREAMS, **fields):
  return depthwise_lm.Depthwise(
    depthwise_lm.DepthwiseConfig(
      spec,
      streams,
      stack(num_layers),
      stack(num_layers, positions="none"),
      **fields,
    )
  )


def soundstorm_model(spec=SPEC, streams=STREAMS, **fields):
  shape = conformer.ConformerConfig(1, 16, 2, 16, 3, dropout_rate=0.0)
  return soundstorm.SoundStorm(
    soundstorm.SoundStormConfig(spec, streams, shape, **fields)
  )


def codes(batch_size=2, secs=1.0, seed=0):
  rng = np.random.default_rng(seed)
  return {
    s.name: rng.integers(
      0, s.codebook_size, (batch_size, s.num_frames(secs), s.num_codebooks)
    ).astype(np.int32)
    for s in STREAMS
  }


def batch_of(model, batch_size=2):
  tokens = model.layout.encode(codes(batch_size))
  weights = np.zeros(tokens.shape, np.float32)
  weights[:, model.layout.target_start :] = 1
  return {"decoder_target_tokens": tokens, "decoder_loss_weights": weights}


def params_of(model, scale=3.0):
  """Parameters drawn in numpy, large enough for confident logits."""
  shapes = jax.eval_shape(
    lambda: axes.unbox(model.init(jax.random.key(0), _zeros(model)))
  )["params"]
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key in ("scale", "bias"):  # Of norms: all frames alike else.
      return jnp.full(leaf.shape, float(path[-1].key == "scale"))
    values = rng.standard_normal(leaf.shape) * scale / np.sqrt(leaf.shape[-1])
    return jnp.asarray(values, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def _zeros(model):
  shapes = model.input_shapes(1)
  return {n: jnp.zeros(s.shape, s.dtype) for n, s in shapes.items()}


SYSTEMS = {
  depthwise_lm.Depthwise: depthwise.DepthwiseStage,
  soundstorm.SoundStorm: soundstorm_system.SoundStormStage,
}


def system_of(model, params=None, **fields):
  """The frozen back end of a model."""
  config = model.config
  return SYSTEMS[type(model)](
    config.spec, config.streams, config.network, params or params_of(model),
    **fields,
  )  # fmt: skip
