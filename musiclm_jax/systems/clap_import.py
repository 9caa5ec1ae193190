# SPDX-License-Identifier: Apache-2.0
"""CLAP on disk: a Hugging Face `ClapModel` folder in, both our towers out.

Reads `config.json`, `preprocessor_config.json`, `model.safetensors` and
`tokenizer.json`; torch and transformers are not needed, nothing is downloaded.
Models with feature fusion are refused.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.audio import clap_mel
from musiclm_jax.core import artifacts, byte_pairs, errors
from musiclm_jax.layers import encoder_block
from musiclm_jax.networks import bert, clap_audio, clap_text
from musiclm_jax.partitioning import axes
from musiclm_jax.systems import bert_import, model_folder

_PROCESSOR = "preprocessor_config.json"
_AUDIO, _TEXT = "audio_model.audio_encoder.", "text_model."
# RoBERTa counts positions from behind its padding id.
_POSITIONS_BEFORE = 2
# What other settings than ours would change, and the values we have.
_EXPECTED_AUDIO = {
  "patch_embed_input_channels": (1,),
  "flatten_patch_embeds": (True,),
  "enable_patch_layer_norm": (True,),
  "hidden_act": tuple(encoder_block.ACTIVATIONS),
  "projection_hidden_act": ("relu",),
}
_EXPECTED_TEXT = {
  "hidden_act": tuple(encoder_block.ACTIVATIONS),
  "projection_hidden_act": ("relu",),
  "pad_token_id": (1,),
  "position_embedding_type": ("absolute",),
}
_EXPECTED_PROCESSOR = {
  "feature_extractor_type": ("ClapFeatureExtractor",),
  "truncation": ("rand_trunc",),
  "padding": ("repeatpad",),
  "padding_value": (0, 0.0),
  "top_db": (None,),
}
# Our names of the modules of a block.
_BLOCK = {
  "layernorm_before": "attention_norm",
  "attention.self.query": "query",
  "attention.self.key": "key",
  "attention.self.value": "value",
  "attention.output.dense": "out",
  "layernorm_after": "mlp_norm",
  "intermediate.dense": "mlp_up",
  "output.dense": "mlp_down",
}
_PROJECTION = {"linear1": "project_in", "linear2": "project_out"}
# Of torch's batch norm, added to the variance.
_BATCH_NORM_EPS = 1e-5


class Clap(NamedTuple):
  """What is in a folder.

  Attributes:
    audio: sizes of the audio tower.
    text: sizes of the text tower.
    mel: its spectrogram.
    window_secs: audio the model reads at once.
    audio_params: of `clap_audio.ClapAudio`.
    text_params: of `clap_text.ClapText`.
    vocabulary: of the text tower.
    fingerprint: hex hash over sizes, weights and vocabulary.
  """

  audio: clap_audio.ClapAudioConfig
  text: clap_text.ClapTextConfig
  mel: clap_mel.ClapMelConfig
  window_secs: float
  audio_params: dict[str, Any]
  text_params: dict[str, Any]
  vocabulary: byte_pairs.BytePairs
  fingerprint: str


def _check(
  path: str, found: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
  """Raises UserError for a setting that is not supported."""
  for name, choices in expected.items():
    if found.get(name, choices[0]) not in choices:
      raise errors.UserError(
        f"{path}: {name}={found[name]!r}: expected "
        f"{' or '.join(map(repr, choices))}, nothing else is supported"
      )


def _single(path: str, name: str, value: Any) -> int:
  """A size that may be given for both axes.

  Raises:
    UserError: if the axes differ.
  """
  values = set(value) if isinstance(value, (list, tuple)) else {value}
  if len(values) != 1:
    raise errors.UserError(f"{path}: {name}={value}: expected the same twice")
  return int(values.pop())


def read_config(
  directory: str | os.PathLike,
) -> tuple[clap_audio.ClapAudioConfig, clap_text.ClapTextConfig]:
  """Sizes of both towers.

  Raises:
    UserError: if the folder holds another kind of model, or a setting that is
      missing or not supported; feature fusion is one.
  """
  found = model_folder.read_settings(directory, ("clap",), {})
  path = str(pathlib.Path(directory) / model_folder.CONFIG)
  audio = found.get("audio_config") or {}
  text = found.get("text_config") or {}
  if audio.get("enable_fusion"):
    raise errors.UserError(
      f"{path}: enable_fusion=True: expected a model without feature fusion, "
      "such as clap-htsat-unfused; with it, what is longer than a window is "
      "cut at random"
    )
  _check(path, {**found, **audio}, _EXPECTED_AUDIO)
  _check(path, {**found, **text}, _EXPECTED_TEXT)
  patch = _single(path, "patch_size", audio.get("patch_size", 4))
  stride = _single(path, "patch_stride", audio.get("patch_stride", 4))
  if patch != stride:
    raise errors.UserError(
      f"{path}: patch_stride={stride}: expected patch_size={patch}, patches "
      "side by side"
    )
  output_dim = int(found.get("projection_dim", 512))
  audio_config = model_folder.make_config(
    directory,
    lambda: clap_audio.ClapAudioConfig(
      spec_size=int(audio.get("spec_size", 256)),
      num_mels=int(audio.get("num_mel_bins", 64)),
      patch_size=patch,
      window_size=int(audio.get("window_size", 8)),
      width=int(audio.get("patch_embeds_hidden_size", 96)),
      depths=tuple(audio.get("depths", (2, 2, 6, 2))),
      num_heads=tuple(audio.get("num_attention_heads", (4, 8, 16, 32))),
      mlp_ratio=float(audio.get("mlp_ratio", 4.0)),
      activation=audio.get("hidden_act", "gelu"),
      norm_eps=float(audio.get("layer_norm_eps", 1e-5)),
      qkv_bias=bool(audio.get("qkv_bias", True)),
      output_dim=output_dim,
    ),
  )
  text_config = model_folder.make_config(
    directory,
    lambda: clap_text.ClapTextConfig(
      bert.BertConfig(
        vocab_size=int(text.get("vocab_size", 50265)),
        max_positions=int(text.get("max_position_embeddings", 514)),
        num_token_types=int(text.get("type_vocab_size", 1)),
        embed_dim=int(text.get("hidden_size", 768)),
        num_layers=int(text.get("num_hidden_layers", 12)),
        num_heads=int(text.get("num_attention_heads", 12)),
        mlp_dim=int(text.get("intermediate_size", 3072)),
        activation=text.get("hidden_act", "gelu"),
        norm_eps=float(text.get("layer_norm_eps", 1e-12)),
      ),
      output_dim,
    ),
  )
  return audio_config, text_config


def read_mel(
  directory: str | os.PathLike,
) -> tuple[clap_mel.ClapMelConfig, float]:
  """The spectrogram, and the seconds of a window.

  Raises:
    UserError: if the file is missing, or has a setting that is not supported.
  """
  path = pathlib.Path(directory) / _PROCESSOR
  found = model_folder.read_json(path)
  _check(str(path), found, _EXPECTED_PROCESSOR)
  try:
    config = clap_mel.ClapMelConfig(
      sample_rate_hz=int(found.get("sampling_rate", 48000)),
      num_mels=int(found.get("feature_size", 64)),
      frame_length=int(found.get("fft_window_size", 1024)),
      hop_length=int(found.get("hop_length", 480)),
      low_hz=float(found.get("frequency_min", 0)),
      high_hz=float(found.get("frequency_max", 14000)),
    )
    return config, float(found.get("max_length_s", 10))
  except (TypeError, ValueError) as error:
    raise errors.UserError(f"{path}: {error}") from error


def _audio_names(config: clap_audio.ClapAudioConfig) -> dict[str, str]:
  """Our name of each parameter of the audio tower, by the original's."""
  names = {
    f"{_AUDIO}batch_norm.weight": "input_norm_scale",
    f"{_AUDIO}batch_norm.bias": "input_norm_bias",
    f"{_AUDIO}batch_norm.running_mean": "input_norm_mean",
    f"{_AUDIO}batch_norm.running_var": "input_norm_variance",
    f"{_AUDIO}patch_embed.proj.weight": "patch/kernel",
    f"{_AUDIO}patch_embed.proj.bias": "patch/bias",
  }
  norms = {"patch_embed.norm": "patch_norm", "norm": "norm"}
  for stage, depth in enumerate(config.depths):
    if stage:
      before = f"layers.{stage - 1}.downsample"
      norms[f"{before}.norm"] = f"join_{stage}_norm"
      names[f"{_AUDIO}{before}.reduction.weight"] = f"join_{stage}/kernel"
    for index in range(depth):
      theirs = f"{_AUDIO}layers.{stage}.blocks.{index}."
      ours = f"stage_{stage}_block_{index}"
      names |= model_folder.block_names(_BLOCK, theirs, ours)
      table = f"{theirs}attention.self.relative_position_bias_table"
      names[table] = f"{ours}/positions"
      if not config.qkv_bias:
        for part in ("query", "key", "value"):
          del names[f"{theirs}attention.self.{part}.bias"]
  for theirs, ours in norms.items():
    names[f"{_AUDIO}{theirs}.weight"] = f"{ours}/scale"
    names[f"{_AUDIO}{theirs}.bias"] = f"{ours}/bias"
  return names | _projection_names("audio_projection")


def _projection_names(prefix: str) -> dict[str, str]:
  return {
    f"{prefix}.{theirs}.{kind}": f"{ours}/{our_kind}"
    for theirs, ours in _PROJECTION.items()
    for kind, our_kind in (("weight", "kernel"), ("bias", "bias"))
  }


def convert_audio(
  weights: Mapping[str, np.ndarray],
  config: clap_audio.ClapAudioConfig,
  where: str = "the model",
) -> dict[str, Any]:
  """Parameters of `clap_audio.ClapAudio`; arguments as `convert_text`."""
  network = clap_audio.ClapAudio(config)
  shapes = artifacts.flatten(
    axes.unbox(
      jax.eval_shape(
        network.init,
        jax.random.key(0),
        jnp.zeros((1, config.max_frames, config.num_mels)),
      )
    )["params"]
  )

  def shape(name: str) -> tuple[int, ...]:
    if name.startswith("input_norm"):
      return (config.num_mels,)
    found = shapes[name].shape
    return found[::-1] if name.endswith("kernel") else found

  params = model_folder.convert(
    weights,
    _audio_names(config),
    shape,
    1,
    lambda name: (
      name.startswith(("audio_model.", "audio_projection."))
      and not name.endswith(("relative_position_index", "num_batches_tracked"))
    ),
    where,
  )
  # Turned as a whole, its rows are columns.
  params["patch"]["kernel"] = params["patch"]["kernel"].swapaxes(0, 1)
  mean = params.pop("input_norm_mean").astype(np.float64)
  variance = params.pop("input_norm_variance").astype(np.float64)
  scale = params["input_norm_scale"] / np.sqrt(variance + _BATCH_NORM_EPS)
  bias = params["input_norm_bias"] - mean * scale
  params["input_norm_scale"] = scale.astype(np.float32)
  params["input_norm_bias"] = bias.astype(np.float32)
  return params


def convert_text(
  weights: Mapping[str, np.ndarray],
  config: clap_text.ClapTextConfig,
  where: str = "the model",
) -> tuple[clap_text.ClapTextConfig, dict[str, Any]]:
  """Parameters of `clap_text.ClapText`.

  Args:
    weights: by name in the original.
    config: with as many positions as the original has.
    where: for messages.

  Returns:
    The config with the positions that texts can have, and a nested dict of
    float32 arrays.

  Raises:
    UserError: if a parameter is missing, is not known or has another shape.
  """
  inner = {
    name.removeprefix(_TEXT): array
    for name, array in weights.items()
    if name.startswith(_TEXT)
  }
  encoder = bert_import.convert(inner, config.bert, where)
  encoder["embed"]["table"] = byte_pairs.swap_rows(encoder["embed"]["table"])
  encoder["position"] = encoder["position"][_POSITIONS_BEFORE:]
  width, output_dim = config.bert.embed_dim, config.output_dim
  sizes = {
    "pooler": (width, width),
    "project_in": (output_dim, width),
    "project_out": (output_dim, output_dim),
  }

  def shape(name: str) -> tuple[int, ...]:
    module, kind = name.split("/")
    return sizes[module] if kind == "kernel" else sizes[module][:1]

  params = model_folder.convert(
    weights,
    {
      f"{_TEXT}pooler.dense.weight": "pooler/kernel",
      f"{_TEXT}pooler.dense.bias": "pooler/bias",
      **_projection_names("text_projection"),
    },
    shape,
    1,
    lambda name: name.startswith(("text_projection.", f"{_TEXT}pooler.")),
    where,
  )
  sizes = artifacts.config_to_dict(config)
  sizes["bert"]["max_positions"] -= _POSITIONS_BEFORE
  config = artifacts.config_from_dict(clap_text.ClapTextConfig, sizes)
  return config, {"bert": encoder, **params}


def load(directory: str | os.PathLike) -> Clap:
  """Everything in a folder.

  Raises:
    UserError: if it holds no CLAP, one that is not supported, or parts that do
      not fit each other; names the first that does not.
  """
  audio, text = read_config(directory)
  mel, window_secs = read_mel(directory)
  frames = mel.num_frames(round(window_secs * mel.sample_rate_hz))
  if mel.num_mels != audio.num_mels or frames > audio.max_frames:
    raise errors.UserError(
      f"{directory}: {_PROCESSOR} makes {frames} frames of {mel.num_mels} "
      f"bands: expected at most {audio.max_frames} of {audio.num_mels}"
    )
  path = pathlib.Path(directory) / byte_pairs.NAME
  if not path.is_file():
    raise errors.UserError(f"no {byte_pairs.NAME} in {directory}")
  vocabulary = byte_pairs.BytePairs(path.read_bytes(), str(path))
  if vocabulary.num_tokens > text.bert.vocab_size:
    raise errors.UserError(
      f"{path} has {vocabulary.num_tokens} ids: expected at most "
      f"vocab_size={text.bert.vocab_size}"
    )
  weights = model_folder.read_weights(directory)
  audio_params = convert_audio(weights, audio, str(directory))
  text, text_params = convert_text(weights, text, str(directory))
  mark = artifacts.fingerprint(
    "clap",
    {
      "audio": artifacts.config_to_dict(audio),
      "text": artifacts.config_to_dict(text),
      "mel": artifacts.config_to_dict(mel),
      "window_secs": window_secs,
    },
    {"audio": audio_params, "text": text_params},
    vocabulary.files,
  )
  return Clap(
    audio, text, mel, window_secs, audio_params, text_params, vocabulary, mark
  )
