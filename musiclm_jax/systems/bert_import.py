# SPDX-License-Identifier: Apache-2.0
"""Public text encoders on disk: a Hugging Face BERT folder in, ours out.

Reads `config.json` and `model.safetensors`; the vocabulary in the same folder
is read by `core/vocabularies.py`. Nothing is downloaded.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from musiclm_jax.core import errors
from musiclm_jax.layers import encoder_block
from musiclm_jax.networks import bert, mulan_text
from musiclm_jax.systems import model_folder

MODEL_TYPES = ("bert",)
# What a model with a task on top of it puts before all names, and the names
# that old checkpoints give to the parameters of norms.
_PREFIX = re.compile(r"^bert\.")
_OLD_NAMES = {
  "LayerNorm.gamma": "LayerNorm.weight",
  "LayerNorm.beta": "LayerNorm.bias",
}
_EXPECTED = {
  "hidden_act": tuple(encoder_block.ACTIVATIONS),
  "position_embedding_type": ("absolute",),
  "is_decoder": (False,),
  "add_cross_attention": (False,),
  "pad_token_id": (0,),
}
# Numbers that a model registers beside its parameters.
_NO_PARAMETERS = ("embeddings.position_ids", "embeddings.token_type_ids")
_TABLES = {
  "word_embeddings": "embed/table",
  "position_embeddings": "position",
  "token_type_embeddings": "token_type",
}
# Our names of the modules of a block.
_BLOCK = {
  "attention.self.query": "attention_query",
  "attention.self.key": "attention_key",
  "attention.self.value": "attention_value",
  "attention.output.dense": "attention_out",
  "attention.output.LayerNorm": "attention_norm",
  "intermediate.dense": "mlp_up",
  "output.dense": "mlp_down",
  "output.LayerNorm": "mlp_norm",
}


def read_config(
  directory: str | os.PathLike, remat: bool = False
) -> bert.BertConfig:
  """Sizes of the model in a folder.

  Args:
    directory: with `config.json`.
    remat: see `bert.BertConfig`.

  Raises:
    UserError: if the folder holds another kind of model, or a setting that is
      missing or not supported.
  """
  found = model_folder.read_settings(directory, MODEL_TYPES, _EXPECTED)
  return model_folder.make_config(
    directory,
    lambda: bert.BertConfig(
      vocab_size=int(found["vocab_size"]),
      max_positions=int(found["max_position_embeddings"]),
      num_token_types=int(found.get("type_vocab_size", 2)),
      embed_dim=int(found["hidden_size"]),
      num_layers=int(found["num_hidden_layers"]),
      num_heads=int(found["num_attention_heads"]),
      mlp_dim=int(found["intermediate_size"]),
      activation=found.get("hidden_act", "gelu"),
      norm_eps=float(found.get("layer_norm_eps", 1e-12)),
      dropout_rate=float(found.get("hidden_dropout_prob", 0.1)),
      remat=remat,
    ),
  )


def text_tower(
  directory: str | os.PathLike,
  max_length: int,
  pooling: str = "mean",
  remat: bool = False,
) -> mulan_text.BertTowerConfig:
  """MuLan's text tower with the sizes of the BERT in a folder.

  Args:
    directory: of the model.
    max_length: longest text in ids, with [CLS] and [SEP].
    pooling: 'cls' or 'mean'.
    remat: see `bert.BertConfig`.

  Raises:
    UserError: see `read_config`.
    ValueError: if the length or pooling does not fit.
  """
  config = read_config(directory, remat)
  return mulan_text.BertTowerConfig(config, max_length, pooling)


def _names(config: bert.BertConfig) -> dict[str, str]:
  """Our name of each parameter, by that of the original."""
  names = {
    f"embeddings.{theirs}.weight": ours for theirs, ours in _TABLES.items()
  }
  names["embeddings.LayerNorm.weight"] = "norm/scale"
  names["embeddings.LayerNorm.bias"] = "norm/bias"
  for index in range(config.num_layers):
    names |= model_folder.block_names(
      _BLOCK, f"encoder.layer.{index}.", f"block_{index}"
    )
  return names


def _shape(name: str, config: bert.BertConfig) -> tuple[int, ...]:
  """Shape of a parameter in the original, by our name."""
  rows = {
    "embed/table": config.vocab_size,
    "position": config.max_positions,
    "token_type": config.num_token_types,
  }
  if name in rows:
    return rows[name], config.embed_dim
  module, kind = name.rsplit("/", 1)
  return model_folder.block_shape(
    module, kind, config.embed_dim, config.mlp_dim
  )


def convert(
  weights: Mapping[str, np.ndarray],
  config: bert.BertConfig,
  where: str = "the model",
) -> dict[str, Any]:
  """Parameters of `bert.Bert`.

  Args:
    weights: by name in the original; its pooler and heads are left out.
    config: of the network.
    where: for messages.

  Returns:
    A nested dict of float32 arrays.

  Raises:
    UserError: if a parameter is missing, is not known or has another shape.
  """
  renamed = {}
  for name, array in weights.items():
    name = _PREFIX.sub("", name)
    for old, new in _OLD_NAMES.items():
      name = name.replace(old, new)
    renamed[name] = array
  return model_folder.convert(
    renamed,
    _names(config),
    lambda name: _shape(name, config),
    config.num_heads,
    lambda name: (
      name.startswith(("embeddings.", "encoder."))
      and name not in _NO_PARAMETERS
    ),
    where,
  )


@dataclasses.dataclass(frozen=True)
class BertWeights:
  """Where a text tower starts from (`models/contrastive.py`).

  Attributes:
    directory: of the model; read when a training starts anew.
  """

  directory: str

  def load(self, config: mulan_text.BertTowerConfig) -> dict[str, Any]:
    """Parameters of the tower that are in the folder: those of 'bert'.

    Raises:
      UserError: if the folder's model is not the tower's, or its weights do
        not fit its settings; names the first that does not.
    """
    found = read_config(self.directory, config.bert.remat)
    if found != config.bert:
      raise errors.UserError(
        f"{self.directory} holds {found}: expected the text tower's "
        f"{config.bert}"
      )
    return {"bert": load(self.directory)[1]}


def load(
  directory: str | os.PathLike,
) -> tuple[bert.BertConfig, dict[str, Any]]:
  """Config and parameters of the encoder in a folder.

  Raises:
    UserError: if the folder does not hold a BERT, or its weights do not fit
      its settings; names the first that does not.
  """
  config = read_config(directory)
  weights = model_folder.read_weights(directory)
  return config, convert(weights, config, str(directory))
