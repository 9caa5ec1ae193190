# SPDX-License-Identifier: Apache-2.0
"""Public self-supervised encoders on disk: a Hugging Face folder in, ours out.

Reads `config.json`, `preprocessor_config.json` and `model.safetensors` of
wav2vec 2.0, HuBERT and MERT models. torch and transformers are not needed.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from musiclm_jax.core import artifacts, errors
from musiclm_jax.networks import speech_encoder

MODEL_TYPES = ("wav2vec2", "hubert", "mert_model")
_CONFIG, _PROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
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


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise errors.UserError(f"cannot read {path}: {error}") from error


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
  path = pathlib.Path(directory) / _CONFIG
  if not path.is_file():
    raise errors.UserError(
      f"no {_CONFIG} in {directory}: expected the folder of a Hugging Face "
      "model"
    )
  found = _read_json(path)
  kind = found.get("model_type")
  if kind not in MODEL_TYPES:
    raise errors.UserError(
      f"{path}: model_type={kind!r}: expected one of {MODEL_TYPES}"
    )
  for name, choices in _EXPECTED.items():
    if found.get(name, choices[0]) not in choices:
      raise errors.UserError(
        f"{path}: {name}={found[name]!r}: expected {choices[0]!r}, nothing "
        "else is supported"
      )
  processor = {}
  if (pathlib.Path(directory) / _PROCESSOR).is_file():
    processor = _read_json(pathlib.Path(directory) / _PROCESSOR)
  rate = found.get("sample_rate", _RATES.get(kind, 16000))
  try:
    return speech_encoder.SpeechEncoderConfig(
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
    )
  except KeyError as error:
    raise errors.UserError(f"{path}: {error} is missing") from error
  except ValueError as error:
    raise errors.UserError(f"{path}: {error}") from error


def _read_weights(directory: pathlib.Path) -> dict[str, np.ndarray]:
  """All arrays of a model in one or several files, as float32."""
  names = [_WEIGHTS]
  if (directory / _INDEX).is_file():
    names = sorted(set(_read_json(directory / _INDEX)["weight_map"].values()))
  arrays: dict[str, np.ndarray] = {}
  for name in names:
    path = directory / name
    if not path.is_file():
      raise errors.UserError(
        f"no {name} in {directory}: expected weights as safetensors (a "
        "pytorch_model.bin is a pickle and is not read; transformers' "
        "`save_pretrained` writes safetensors)"
      )
    try:
      arrays.update(safetensors_numpy.load_file(path))
    except (SafetensorError, TypeError, KeyError) as error:
      raise errors.UserError(f"cannot read {path}: {error}") from error
  return {
    _PREFIX.sub("", name): array.astype(np.float32)
    for name, array in arrays.items()
  }


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
    layer, ours = f"encoder.layers.{index}", f"block_{index}"
    for letter, name in zip("qkv", ("query", "key", "value")):
      add(f"{layer}.attention.{letter}_proj", f"{ours}/attention_{name}")
    add(f"{layer}.attention.out_proj", f"{ours}/attention_out")
    add(f"{layer}.layer_norm", f"{ours}/attention_norm", "scale")
    add(f"{layer}.final_layer_norm", f"{ours}/mlp_norm", "scale")
    add(f"{layer}.feed_forward.intermediate_dense", f"{ours}/mlp_up")
    add(f"{layer}.feed_forward.output_dense", f"{ours}/mlp_down")
  return names


def _shape(
  name: str, config: speech_encoder.SpeechEncoderConfig
) -> tuple[int, ...]:
  """Shape of a parameter in the original, by our name."""
  dim, mlp = config.embed_dim, config.mlp_dim
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
  if kind != "kernel":
    return (mlp,) if module.endswith("mlp_up") else (dim,)
  if module == "position":
    return dim, dim // config.position_groups, config.position_kernel
  if module == "projection":
    return dim, width
  if module.endswith("mlp_up"):
    return mlp, dim
  return (dim, mlp) if module.endswith("mlp_down") else (dim, dim)


def _convert(
  name: str, array: np.ndarray, config: speech_encoder.SpeechEncoderConfig
) -> np.ndarray:
  """An array of the original as ours: inputs before outputs, heads apart."""
  heads = config.num_heads, config.embed_dim // config.num_heads
  module, kind = name.rsplit("/", 1)
  if kind == "kernel":
    array = array.transpose()
  if module.endswith(("attention_query", "attention_key", "attention_value")):
    array = array.reshape(*array.shape[:-1], *heads)
  if module.endswith("attention_out") and kind == "kernel":
    array = array.reshape(*heads, -1)
  return np.ascontiguousarray(array)


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
  missing = [name for name in names if name not in weights]
  if missing:
    raise errors.UserError(
      f"{where} lacks {len(missing)} of {len(names)} parameters, such as "
      f"{missing[0]!r}{errors.nearest(missing[0], list(weights))}: its "
      f"{_CONFIG} does not fit its weights"
    )
  above = tuple(
    f"encoder.layers.{index}."
    for index in range(config.tap_layer, config.num_layers)
  )
  unknown = [
    name
    for name in weights
    if name.startswith(_PARTS)
    and name not in names
    and not name.startswith((*above, "encoder.layer_norm."))
  ]
  if unknown:
    raise errors.UserError(
      f"{where} has {len(unknown)} parameters that its {_CONFIG} does not "
      f"explain, such as {unknown[0]!r}"
    )
  params = {}
  for theirs, ours in names.items():
    array, expected = weights[theirs], _shape(ours, config)
    if array.shape != expected:
      raise errors.UserError(
        f"{where}: {theirs!r} has shape {array.shape}: expected {expected} by "
        f"its {_CONFIG}"
      )
    params[ours] = _convert(ours, array, config)
  return artifacts.unflatten(params)


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
  weights = _read_weights(pathlib.Path(directory))
  return config, convert(weights, config, str(directory))
