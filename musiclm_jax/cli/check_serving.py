# SPDX-License-Identifier: Apache-2.0
"""Decode and tokenize programs of an experiment, for `musiclm check`.

A trainable flows in; the function that generation or tokenization compiles
flows out, with shapes in place of weights and inputs. Each chip works alone on
its own rows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.cli import check_acoustic
from musiclm_jax.core import errors, rng, stages
from musiclm_jax.decoding import sampling
from musiclm_jax.layers import transformer
from musiclm_jax.models import (
  codec_gan,
  contrastive,
  masked_prediction,
  token_lm,
)
from musiclm_jax.networks import soundstream
from musiclm_jax.partitioning import axes
from musiclm_jax.systems import stage_program, stage_weights


@dataclasses.dataclass(frozen=True)
class Served:
  """A program that serves.

  Attributes:
    function: of arrays.
    arguments: shapes.
    parameters: entries.
    audio_secs: of one row.
  """

  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  parameters: int
  audio_secs: float


def variables(trainable: Any) -> Any:
  """Shapes of a trainable's variables."""
  batch = trainable.input_shapes(1)

  def init(key):
    zeros = {n: jnp.zeros(s.shape, s.dtype) for n, s in batch.items()}
    return axes.unbox(dict(trainable.init(rng.named(key, "init"), zeros)))

  return jax.eval_shape(init, jax.eval_shape(lambda: rng.root_key(0)))


def _count(tree: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def decode_program(
  trainable: Any,
  rows: int,
  secs: float | None = None,
  known_frames: int = 0,
  weights: str = stage_weights.COMPUTE,
) -> Served:
  """Generation of one window: prefill, then every token; or all passes.

  Args:
    trainable: of a stage or a back end; of the latter a whole crop.
    rows: at once.
    secs: of the window; None: of a crop.
    known_frames: of its target, given as prefix.
    weights: of a stage in memory, of `stage_weights.CHOICES`.

  Raises:
    UserError: if the trainable is neither a stage nor a back end, or weights
      are chosen for a back end.
  """
  if isinstance(trainable, check_acoustic.TRAINABLES):
    if weights != stage_weights.COMPUTE:
      raise errors.UserError(
        f"--weights={weights} of a back end: expected {stage_weights.COMPUTE}"
      )
    params = variables(trainable)["params"]
    program = check_acoustic.window_program(trainable, params, rows)
    return Served(*program, _count(params), trainable.config.spec.crop_secs)
  if not isinstance(trainable, token_lm.TokenLM):
    raise errors.UserError(
      "--what=decode: expected the experiment of a stage or back end, got "
      f"{type(trainable).__name__}"
    )
  config, layout = trainable.config, trainable.layout
  if secs is not None:
    layout = stages.StageLayout(config.spec, layout.streams, secs)
  network = stage_program.decode_network(
    config.spec,
    layout.streams,
    config.transformer,
    config.precision,
    config.aligned_conditioning,
  )
  precision = config.precision
  dtype = stage_weights.resolve(weights, precision.compute)
  params = variables(trainable)["params"]
  held = jax.eval_shape(
    lambda tree: stage_weights.stored(
      transformer.unstack_layers(tree), dtype, precision.compute_dtype
    ),
    params,
  )
  levels = layout.num_target_levels
  frames = layout.num_target_frames - known_frames
  length = 1 + layout.target_start + known_frames * levels

  def generate(held, tokens, keys, first_positions):
    return stage_program.generate_program(
      network,
      layout.target_offsets,
      held,
      tokens,
      keys,
      first_positions,
      jnp.zeros((rows, frames, levels), jnp.int32),
      jnp.int32(0),
      layout.shapes,
      frames,
      sampling.SamplingConfig(),
      layout.end_code,
    )

  arguments = (
    held,
    jax.ShapeDtypeStruct((rows, length), jnp.int32),
    jax.eval_shape(lambda: jax.random.split(rng.root_key(0), rows)),
    jax.ShapeDtypeStruct((rows,), jnp.int32),
  )
  return Served(generate, arguments, _count(params), layout.secs)


def tokenize_program(trainable: Any, rows: int) -> Served:
  """The tokenizer's network on crops of the training length.

  Raises:
    UserError: if the trainable is not a tokenizer.
  """
  shapes = variables(trainable)
  batch = trainable.input_shapes(rows)
  if isinstance(trainable, codec_gan.CodecGAN):
    codec = trainable.config.codec
    network = soundstream.SoundStream(codec)
    weights = {
      "params": shapes["params"]["generator"],
      "codebooks": shapes["codebooks"],
    }
    rate_hz, method = codec.sample_rate_hz, network.encode
  elif isinstance(trainable, masked_prediction.MaskedPrediction):
    network = trainable.network
    weights = {"params": shapes["params"]}
    rate_hz, method = network.config.mel.sample_rate_hz, network.features
  elif isinstance(trainable, contrastive.Contrastive):
    network = trainable.network
    weights = {"params": shapes["params"]}
    rate_hz, method = network.config.mel.sample_rate_hz, network.embed_audio
  else:
    raise errors.UserError(
      "--what=tokenize: expected the experiment of a tokenizer, got "
      f"{type(trainable).__name__}"
    )
  waveform = batch["waveform"]

  def tokenize(weights, waveform):
    return network.apply(weights, waveform, method=method)

  secs = waveform.shape[1] / rate_hz
  return Served(tokenize, (weights, waveform), _count(weights), secs)
