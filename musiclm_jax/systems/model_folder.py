# SPDX-License-Identifier: Apache-2.0
"""Public models on disk, as Hugging Face stores them: arrays by name.

What all importers share: settings and weights of a folder, and parameters of
ours made from those of the original by a table of names, with every
difference named. torch and transformers are not needed.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from musiclm_jax.core import artifacts, errors

CONFIG = "config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """A JSON file; raises UserError with its name if it cannot be read."""
  try:
    return json.loads(pathlib.Path(path).read_text())
  except (OSError, ValueError) as error:
    raise errors.UserError(f"cannot read {path}: {error}") from error


def read_settings(
  directory: str | os.PathLike,
  model_types: Sequence[str],
  expected: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
  """The `config.json` of a folder.

  Args:
    directory: of the model.
    model_types: that may be there.
    expected: by setting, the values that are supported; the first one stands
      for a setting that is not given.

  Raises:
    UserError: if there is none, of another kind of model, or with a setting
      that is not supported.
  """
  path = pathlib.Path(directory) / CONFIG
  if not path.is_file():
    raise errors.UserError(
      f"no {CONFIG} in {directory}: expected the folder of a Hugging Face model"
    )
  found = read_json(path)
  kind = found.get("model_type")
  if kind not in model_types:
    raise errors.UserError(
      f"{path}: model_type={kind!r}: expected one of {tuple(model_types)}"
    )
  for name, choices in expected.items():
    if found.get(name, choices[0]) not in choices:
      raise errors.UserError(
        f"{path}: {name}={found[name]!r}: expected "
        f"{' or '.join(repr(choice) for choice in choices)}, nothing else is "
        "supported"
      )
  return found


def make_config(directory: str | os.PathLike, make: Callable[[], Any]) -> Any:
  """What `make` gives; a setting it lacks or refuses is a UserError."""
  path = pathlib.Path(directory) / CONFIG
  try:
    return make()
  except KeyError as error:
    raise errors.UserError(f"{path}: {error} is missing") from error
  except errors.UserError:
    raise
  except (TypeError, ValueError) as error:
    raise errors.UserError(f"{path}: {error}") from error


def read_weights(directory: str | os.PathLike) -> dict[str, np.ndarray]:
  """All arrays of a model in one or several files, as float32.

  Raises:
    UserError: if a file is missing, is damaged or holds a dtype that numpy
      does not have.
  """
  directory = pathlib.Path(directory)
  names = [_WEIGHTS]
  if (directory / _INDEX).is_file():
    names = sorted(set(read_json(directory / _INDEX)["weight_map"].values()))
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
  return {name: array.astype(np.float32) for name, array in arrays.items()}


def block_names(
  theirs: Mapping[str, str], their_block: str, our_block: str
) -> dict[str, str]:
  """Names in one `layers.encoder_block.EncoderBlock`, by those of a model.

  Args:
    theirs: by the original's name of a module inside its block, ours.
    their_block: what stands before their names, with its dot.
    our_block: name of the block.
  """
  names = {}
  for module, ours in theirs.items():
    kind = "scale" if ours.endswith("_norm") else "kernel"
    names[f"{their_block}{module}.weight"] = f"{our_block}/{ours}/{kind}"
    names[f"{their_block}{module}.bias"] = f"{our_block}/{ours}/bias"
  return names


def block_shape(module: str, kind: str, dim: int, mlp: int) -> tuple[int, ...]:
  """Shape in the original of a parameter of an `EncoderBlock`.

  Args:
    module: our name, ending in that of the module inside the block.
    kind: 'kernel', 'scale' or 'bias'.
    dim: width of the block.
    mlp: hidden width of its feed-forward module.
  """
  if kind != "kernel":
    return (mlp,) if module.endswith("mlp_up") else (dim,)
  if module.endswith("mlp_up"):
    return mlp, dim
  return (dim, mlp) if module.endswith("mlp_down") else (dim, dim)


def convert_array(name: str, array: np.ndarray, num_heads: int) -> np.ndarray:
  """An array of the original as ours: inputs before outputs, heads apart."""
  module, _, kind = name.rpartition("/")
  if kind == "kernel":
    array = array.transpose()
  if module.endswith(("attention_query", "attention_key", "attention_value")):
    array = array.reshape(*array.shape[:-1], num_heads, -1)
  if module.endswith("attention_out") and kind == "kernel":
    array = array.reshape(num_heads, -1, array.shape[-1])
  return np.ascontiguousarray(array)


def convert(
  weights: Mapping[str, np.ndarray],
  names: Mapping[str, str],
  shape: Callable[[str], tuple[int, ...]],
  num_heads: int,
  is_unknown: Callable[[str], bool],
  where: str,
) -> dict[str, Any]:
  """Parameters of ours from those of the original.

  Args:
    weights: by name in the original.
    names: our name of each parameter that is needed, by the original's.
    shape: by our name, the shape in the original.
    num_heads: of the attention.
    is_unknown: whether a name that is not needed should not be there.
    where: for messages.

  Returns:
    A nested dict of float32 arrays.

  Raises:
    UserError: if a parameter is missing, is not known or has another shape.
  """
  missing = [name for name in names if name not in weights]
  if missing:
    raise errors.UserError(
      f"{where} lacks {len(missing)} of {len(names)} parameters, such as "
      f"{missing[0]!r}{errors.nearest(missing[0], list(weights))}: its "
      f"{CONFIG} does not fit its weights"
    )
  unknown = [name for name in weights if name not in names and is_unknown(name)]
  if unknown:
    raise errors.UserError(
      f"{where} has {len(unknown)} parameters that its {CONFIG} does not "
      f"explain, such as {unknown[0]!r}"
    )
  params = {}
  for theirs, ours in names.items():
    array, expected = weights[theirs], shape(ours)
    if array.shape != expected:
      raise errors.UserError(
        f"{where}: {theirs!r} has shape {array.shape}: expected {expected} by "
        f"its {CONFIG}"
      )
    params[ours] = convert_array(ours, array, num_heads)
  return artifacts.unflatten(params)
