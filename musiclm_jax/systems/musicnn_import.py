# SPDX-License-Identifier: Apache-2.0
"""musicnn's taggers: variables of a TensorFlow checkpoint in, ours out.

The package `musicnn` (ISC licence) holds its weights as checkpoints of
TensorFlow 1, whose variables are numbered in the order its graph makes them.
`data/tensorflow_checkpoints.py` reads them once; the artefact made of them
needs no TensorFlow.
"""

import ast
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from musiclm_jax.core import artifacts, errors
from musiclm_jax.networks import musicnn

KIND = "tagger"
# Labels of the package, by the first part of a model's name.
_LABELS = {"MTT": "MTT_LABELS", "MSD": "MSD_LABELS"}
_CONFIGURATION = "configuration.py"
# What the optimizer keeps beside the variables.
_OPTIMIZER = re.compile(r"/Adam(_1)?$|^beta[12]_power$")
# Of TensorFlow's batch norm, added to the variance.
_NORM_EPS = 1e-3
_STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")
# The graph that is stored beside these weights, and that they were trained in,
# pools frames first, then bands. The package's own code rebuilds it with the
# pools of MTT_vgg: its answers differ by up to 0.7 in a logit.
_TRAINED_POOLS = {
  "MSD_vgg": (
    (4, 1, 4, 1),
    (1, 4, 1, 4),
    (2, 2, 2, 2),
    (2, 2, 2, 2),
    (4, 4, 4, 4),
  )
}
# Modules of ours by the order in which the graph makes convolutions (`None`
# stands for a batch norm that follows none) and products.
_MUSICNN_CONVS = (
  "timbral_0",
  "timbral_1",
  "temporal_0",
  "temporal_1",
  "temporal_2",
  "mid_0",
  "mid_1",
  "mid_2",
)
_VGG_CONVS = tuple(f"conv_{index}" for index in range(5))


def _numbered(name: str, index: int) -> str:
  """How TensorFlow calls the `index`-th layer of a kind."""
  return f"{name}_{index}" if index else name


def _names(architecture: str) -> tuple[dict[str, str], dict[str, str]]:
  """Our module by the original's layer: of kernels, and of batch norms."""
  if architecture == "vgg":
    kernels = {f"{i + 1}CNN": ours for i, ours in enumerate(_VGG_CONVS)}
    kernels["dense"] = "logits"
    norms = ("input_norm", *(f"{name}_norm" for name in _VGG_CONVS))
  else:
    kernels = {
      _numbered("conv2d", i): ours for i, ours in enumerate(_MUSICNN_CONVS)
    }
    kernels |= {"dense": "hidden", "dense_1": "logits"}
    norms = (
      "input_norm",
      *(f"{name}_norm" for name in _MUSICNN_CONVS),
      "pooled_norm",
      "hidden_norm",
    )
  return kernels, {
    _numbered("batch_normalization", i): ours for i, ours in enumerate(norms)
  }


def _read_sizes(
  variables: Mapping[str, np.ndarray], name: str
) -> musicnn.MusicnnConfig:
  """The config whose network has these variables."""
  try:
    if "1CNN/kernel" in variables:
      return musicnn.MusicnnConfig(
        architecture="vgg",
        num_classes=len(variables["dense/bias"]),
        vgg_filters=len(variables["1CNN/bias"]),
        **(
          {"vgg_pools": _TRAINED_POOLS[name]} if name in _TRAINED_POOLS else {}
        ),
      )
    return musicnn.MusicnnConfig(
      num_classes=len(variables["dense_1/bias"]),
      timbral_filters=len(variables["conv2d/bias"]),
      temporal_filters=len(variables["conv2d_2/bias"]),
      mid_filters=len(variables["conv2d_5/bias"]),
      dense_units=len(variables["dense/bias"]),
    )
  except KeyError as error:
    raise errors.UserError(
      f"{name} has no variable {error}: expected a model of musicnn"
    ) from error


def _kernel_shape(name: str, config: musicnn.MusicnnConfig) -> tuple[int, ...]:
  """Shape of a kernel of ours, by the name of its module."""
  if name == "logits":
    return config.embedding_dim, config.num_classes
  if name == "hidden":
    return config.pooled_dim, config.dense_units
  kind, index = name.rsplit("_", 1)
  if kind == "timbral":
    height = config.timbral_heights[int(index)]
    return 7, height, 1, config.timbral_filters
  if kind == "temporal":
    return 128 >> int(index), 1, 1, config.temporal_filters
  if kind == "mid":
    width = config.mid_filters if int(index) else config.front_dim
    return 7, width, config.mid_filters
  channels = config.vgg_filters if int(index) else 1
  return 3, 3, channels, config.vgg_filters


def convert(
  variables: Mapping[str, np.ndarray], name: str
) -> tuple[musicnn.MusicnnConfig, dict[str, Any]]:
  """Config and parameters of `networks/musicnn.py`.

  A batch norm becomes the scale and the offset it is at inference.

  Args:
    variables: by name in the checkpoint; what an optimizer keeps is left out.
    name: of the model, such as 'MSD_musicnn'.

  Returns:
    The config, and a nested dict of float32 arrays.

  Raises:
    UserError: if a variable is missing, is not known or has another shape.
  """
  variables = {
    key: array for key, array in variables.items() if not _OPTIMIZER.search(key)
  }
  config = _read_sizes(variables, name)
  kernels, norms = _names(config.architecture)
  left = set(variables)

  def take(key, shape):
    left.discard(key)
    if key not in variables:
      raise errors.UserError(
        f"{name} lacks {key!r}: expected all variables of a "
        f"{config.architecture!r} model of musicnn"
      )
    array = np.asarray(variables[key])
    if array.shape != shape:
      raise errors.UserError(
        f"{name}: {key!r} has shape {array.shape}: expected {shape}"
      )
    return array

  params = {}
  for theirs, ours in kernels.items():
    shape = _kernel_shape(ours, config)
    # In the original a channel over time is a row of a picture.
    is_flat = len(shape) == 3
    their_shape = (*shape[:2], 1, shape[2]) if is_flat else shape
    kernel = take(f"{theirs}/kernel", their_shape).reshape(shape)
    bias = take(f"{theirs}/bias", shape[-1:])
    params[ours] = {"kernel": kernel, "bias": bias}
  for theirs, ours in norms.items():
    if ours == "input_norm":
      width = 1
    elif ours == "pooled_norm":
      width = config.pooled_dim
    else:
      width = len(params[ours.removesuffix("_norm")]["bias"])
    gamma, beta, mean, variance = (
      take(f"{theirs}/{part}", (width,)).astype(np.float64)
      for part in _STATISTICS
    )
    scale = gamma / np.sqrt(variance + _NORM_EPS)
    params[ours] = {"scale": scale, "bias": beta - mean * scale}
  if left:
    raise errors.UserError(
      f"{name} has {len(left)} variables that are not musicnn's, such as "
      f"{min(left)!r}"
    )
  return config, {
    module: {part: array.astype(np.float32) for part, array in arrays.items()}
    for module, arrays in params.items()
  }


def read_labels(package: str | os.PathLike, model: str) -> tuple[str, ...]:
  """Names of a model's classes, from the package's `configuration.py`.

  The file is parsed, never run.

  Args:
    package: folder of the package.
    model: such as 'MSD_musicnn'.

  Raises:
    UserError: if the file, or the labels of this model, are not there.
  """
  path = pathlib.Path(package) / _CONFIGURATION
  wanted = _LABELS.get(model.split("_")[0])
  try:
    tree = ast.parse(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, SyntaxError) as error:
    raise errors.UserError(
      f"cannot read {path}: {error}: expected the folder of the package musicnn"
    ) from error
  for node in tree.body:
    if isinstance(node, ast.Assign) and any(
      isinstance(target, ast.Name) and target.id == wanted
      for target in node.targets
    ):
      labels = ast.literal_eval(node.value)
      return tuple(str(label) for label in labels)
  raise errors.UserError(
    f"{path} has no labels for {model!r}: expected a model whose name starts "
    f"with {' or '.join(_LABELS)}"
  )


def export(
  directory: str | os.PathLike,
  name: str,
  variables: Mapping[str, np.ndarray],
  class_names: tuple[str, ...],
  metadata: Mapping[str, Any] | None = None,
) -> str:
  """Writes a tagger.

  Args:
    directory: target; replaced when it exists.
    name: of the model, such as 'MSD_musicnn'.
    variables: of its checkpoint.
    class_names: in the order of the logits.
    metadata: provenance.

  Returns:
    The fingerprint.

  Raises:
    UserError: see `convert`; or if there are more or fewer names than classes.
  """
  config, params = convert(variables, name)
  if len(class_names) != config.num_classes:
    raise errors.UserError(
      f"{name} has {config.num_classes} classes: expected as many names, got "
      f"{len(class_names)}"
    )
  settings = {
    "name": name,
    "class_names": list(class_names),
    "network": artifacts.config_to_dict(config),
  }
  return artifacts.save(directory, KIND, settings, {"params": params}, metadata)
