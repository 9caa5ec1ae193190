# SPDX-License-Identifier: Apache-2.0
"""Public self-supervised encoders on disk: a Hugging Face folder in, ours out.

Reads `config.json`, `preprocessor_config.json` and `model.safetensors` of
wav2vec 2.0, HuBERT and MERT models. torch and transformers are not needed.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from musiclm_jax.core import errors
from musiclm_jax.networks import speech_encoder
from musiclm_jax.systems import model_folder

MODEL_TYPES = ("wav2vec2", "hubert", "mert_model")
_PROCESSOR = "preprocessor_config.json"
# What a model with a task on top of it puts before all names.
_PREFIX = re.compile(r"^(wav2vec2|hubert|mert_model|mert)\.")
# Parts of the original that are read; the rest only serves its training.
_PARTS = ("feature_extractor.", "feature_projection.", "encoder.")
# What other settings than ours would change, and the values we have.
_EXPECTED = {
  "hidden_act": ("gelu",),
  "feat_extract_activation": ("gelu",),
  "add_adapter": (False,),
  "conv_pos_batch_norm": (False,),
  "deepnorm": (False,),
  "feature_extractor_cqt": (False,),
}
_RATES = {"mert_model": 24000}
# Our names of the modules of a block.
_BLOCK = {
  "attention.q_proj": "attention_query",
  "attention.k_proj": "attention_key",
  "attention.v_proj": "attention_value",
  "attention.out_proj": "attention_out",
  "layer_norm": "attention_norm",
  "final_layer_norm": "mlp_norm",
  "feed_forward.intermediate_dense": "mlp_up",
  "feed_forward.output_dense": "mlp_down",
}


def read_config(
  directory: str | os.PathLike, layer: int, pool_frames: int = 1
) -> speech_encoder.SpeechEncoderConfig:
  """Sizes of the model in a folder.

  Args:
    directory: with `config.json`.
    layer: block from 1 whose output is wanted; 0 is the blocks' input.
    pool_frames: frames averaged to one.

  Raises:
    UserError: if the folder holds another kind of model, a setting that is not
      supported, or no such layer.
  """
  found = model_folder.read_settings(directory, MODEL_TYPES, _EXPECTED)
  processor = {}
  if (pathlib.Path(directory) / _PROCESSOR).is_file():
    processor = model_folder.read_json(pathlib.Path(directory) / _PROCESSOR)
  rate = found.get("sample_rate", _RATES.get(found["model_type"], 16000))
  return model_folder.make_config(
    directory,
    lambda: speech_encoder.SpeechEncoderConfig(
      sample_rate_hz=int(processor.get("sampling_rate", rate)),
      conv_channels=tuple(found["conv_dim"]),
      conv_kernels=tuple(found["conv_kernel"]),
      conv_strides=tuple(found["conv_stride"]),
      conv_bias=bool(found.get("conv_bias", False)),
      conv_norm=found.get("feat_extract_norm", "group"),
      projection_norm=bool(found.get("feat_proj_layer_norm", True)),
      embed_dim=int(found["hidden_size"]),
      num_layers=int(found["num_hidden_layers"]),
      num_heads=int(found["num_attention_heads"]),
      mlp_dim=int(found["intermediate_size"]),
      position_kernel=int(found["num_conv_pos_embeddings"]),
      position_groups=int(found["num_conv_pos_embedding_groups"]),
      pre_norm=bool(found.get("do_stable_layer_norm", False)),
      norm_eps=float(found.get("layer_norm_eps", 1e-5)),
      normalize_waveform=bool(processor.get("do_normalize", True)),
      tap_layer=layer,
      pool_frames=pool_frames,
    ),
  )


def _fold_weight_norm(weights: dict[str, np.ndarray]) -> None:
  """Replaces a kernel's direction and length by the kernel, in place."""
  base = "encoder.pos_conv_embed.conv."
  for length, direction in (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
  ):
    if base + length in weights and base + direction in weights:
      scale = weights.pop(base + length)
      kernel = weights.pop(base + direction)
      # One length for each tap of the kernel.
      norm = np.sqrt((kernel**2).sum((0, 1), keepdims=True))
      if scale.shape != norm.shape:
        raise errors.UserError(
          f"{base}{length} has shape {scale.shape}: expected {norm.shape}"
        )
      weights[base + "weight"] = kernel * (scale / norm)


def _names(config: speech_encoder.SpeechEncoderConfig) -> dict[str, str]:
  """Our name of each parameter, by that of the original."""
  names = {}

  def add(theirs, ours, kind="kernel"):
    names[f"{theirs}.weight"] = f"{ours}/{kind}"
    names[f"{theirs}.bias"] = f"{ours}/bias"

  for index in range(len(config.conv_channels)):
    layer, ours = (
      f"feature_extractor.conv_layers.{index}",
      f"samples/conv_{index}",
    )
    names[f"{layer}.conv.weight"] = f"{ours}/kernel"
    if config.conv_bias:
      names[f"{layer}.conv.bias"] = f"{ours}/bias"
    if config.conv_norm == "layer":
      add(f"{layer}.layer_norm", f"samples/norm_{index}", "scale")
    elif index == 0:
      names[f"{layer}.layer_norm.weight"] = "samples/group_scale"
      names[f"{layer}.layer_norm.bias"] = "samples/group_bias"
  if config.projection_norm:
    add("feature_projection.layer_norm", "projection_norm", "scale")
  add("feature_projection.projection", "projection")
  add("encoder.pos_conv_embed.conv", "position")
  if not config.pre_norm or config.tap_layer == config.num_layers:
    add("encoder.layer_norm", "norm", "scale")
  for index in range(config.tap_layer):
    names |= model_folder.block_names(
      _BLOCK, f"encoder.layers.{index}.", f"block_{index}"
    )
  return names


def _shape(
  name: str, config: speech_encoder.SpeechEncoderConfig
) -> tuple[int, ...]:
  """Shape of a parameter in the original, by our name."""
  dim = config.embed_dim
  module, kind = name.rsplit("/", 1)
  width = config.conv_channels[-1]
  if module.startswith("samples/conv_") and kind == "kernel":
    index = int(module.rsplit("_", 1)[1])
    before = config.conv_channels[index - 1] if index else 1
    return config.conv_channels[index], before, config.conv_kernels[index]
  if module.startswith("samples"):
    last = module.rsplit("_", 1)[-1]
    return (config.conv_channels[int(last) if last.isdigit() else 0],)
  if module == "projection_norm":
    return (width,)
  if module == "position" and kind == "kernel":
    return dim, dim // config.position_groups, config.position_kernel
  if module == "projection" and kind == "kernel":
    return dim, width
  return model_folder.block_shape(module, kind, dim, config.mlp_dim)


def convert(
  weights: Mapping[str, np.ndarray],
  config: speech_encoder.SpeechEncoderConfig,
  where: str = "the model",
) -> dict[str, Any]:
  """Parameters of `speech_encoder.SpeechEncoder` up to its tap.

  Args:
    weights: by name in the original; what belongs to its training and what
      lies above the tap is left out.
    config: of the network.
    where: for messages.

  Returns:
    A nested dict of float32 arrays.

  Raises:
    UserError: if a parameter is missing, is not known or has another shape.
  """
  weights = dict(weights)
  _fold_weight_norm(weights)
  names = _names(config)
  above = tuple(
    f"encoder.layers.{index}."
    for index in range(config.tap_layer, config.num_layers)
  )

  def is_unknown(name):
    return name.startswith(_PARTS) and not name.startswith(
      (*above, "encoder.layer_norm.")
    )

  return model_folder.convert(
    weights,
    names,
    lambda name: _shape(name, config),
    config.num_heads,
    is_unknown,
    where,
  )


def load(
  directory: str | os.PathLike, layer: int, pool_frames: int = 1
) -> tuple[speech_encoder.SpeechEncoderConfig, dict[str, Any]]:
  """Config and parameters of the encoder in a folder.

  Args:
    directory: a wav2vec 2.0, HuBERT or MERT model.
    layer: block from 1 whose output is wanted; 0 is the blocks' input.
    pool_frames: frames averaged to one.

  Raises:
    UserError: if the folder does not hold such a model, or its weights do not
      fit its settings; names the first that does not.
  """
  config = read_config(directory, layer, pool_frames)
  weights = {
    _PREFIX.sub("", name): array
    for name, array in model_folder.read_weights(directory).items()
  }
  return config, convert(weights, config, str(directory))
