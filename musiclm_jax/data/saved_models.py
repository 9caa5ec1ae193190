# SPDX-License-Identifier: Apache-2.0
"""TensorFlow SavedModels on disk, as TF-Hub gives them: arrays in, arrays out.

The networks behind them are described in `evaluation/hub_models.py`, which
knows nothing of TensorFlow: a `SavedModel` is handed to it.
"""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from musiclm_jax.core import errors

_GRAPH = "saved_model.pb"
# What the answers depend on.
_PARTS = ("variables", "assets")
_SIGNATURES = ("serving_default", "default")
# Where a loaded object keeps what it does when it is called.
_CALL = "__call__"


def fingerprint(directory: str | os.PathLike) -> str:
  """Hex hash (16 digits) over graph, variables and assets of a SavedModel.

  Raises:
    UserError: if there is none.
  """
  root = pathlib.Path(directory)
  if not (root / _GRAPH).is_file():
    raise errors.UserError(
      f"no SavedModel at {directory}: {_GRAPH} is missing (a downloaded "
      "archive must be unpacked first)"
    )
  paths = [root / _GRAPH]
  for part in _PARTS:
    paths += (path for path in (root / part).rglob("*") if path.is_file())
  digest = hashlib.sha256()
  for path in sorted(paths):
    digest.update(path.relative_to(root).as_posix().encode())
    with open(path, "rb") as file:
      digest.update(hashlib.file_digest(file, "sha256").digest())
  return digest.hexdigest()[:16]


class SavedModel:
  """An opened SavedModel.

  Attributes:
    directory: where it lies.
    fingerprint: see `fingerprint`.
    inputs: by the name of an argument, its shape; None for an axis of any
      length, and for a shape that is not known.
  """

  def __init__(self, directory: str | os.PathLike):
    """Opens it.

    Raises:
      UserError: if there is none, it is damaged, or nothing in it can be
        called.
    """
    import tensorflow as tf

    self.directory = pathlib.Path(directory)
    self.fingerprint = fingerprint(directory)
    try:
      # Held: a function's variables live only as long as the object.
      self._model = tf.saved_model.load(os.fspath(directory))
    except Exception as error:  # TensorFlow raises many kinds
      raise errors.UserError(
        f"cannot open the SavedModel at {directory}: "
        f"{str(error).splitlines()[0]}"
      ) from error
    self._call, concrete = self._find_call()
    self.inputs = self._read_inputs(concrete)

  def _find_call(self) -> tuple[Any, Any]:
    """What is called, and a concrete function with its signature."""
    call = getattr(self._model, _CALL, None)
    concrete = getattr(call, "concrete_functions", None)
    if concrete:
      return self._model, concrete[0]
    signatures = dict(getattr(self._model, "signatures", {}))
    for name in (*_SIGNATURES, *signatures):
      if name in signatures:
        return signatures[name], signatures[name]
    raise errors.UserError(
      f"the SavedModel at {self.directory} has nothing to call: expected a "
      f"function or a signature such as {_SIGNATURES[0]!r}"
    )

  @staticmethod
  def _read_inputs(concrete: Any) -> dict[str, tuple[int | None, ...] | None]:
    """Shapes of the arguments of a concrete function."""
    import tensorflow as tf

    positional, named = concrete.structured_input_signature
    names = list(getattr(concrete.function_type, "parameters", {}))
    found = dict(zip(names, positional)) | dict(named)
    shapes = {}
    for name, spec in found.items():
      if isinstance(spec, tf.TensorSpec):
        known = spec.shape.rank is not None
        shapes[name] = tuple(spec.shape.as_list()) if known else None
      else:
        shapes[name] = ()  # a number that was written into the graph
    return shapes

  def __call__(self, **arguments: Any) -> dict[str, np.ndarray]:
    """Runs it.

    Args:
      **arguments: arrays or numbers by name.

    Returns:
      Its answers by name; 'output_0' and so on where they have none.

    Raises:
      UserError: if it refuses the arguments.
    """
    import tensorflow as tf

    tensors = {
      name: tf.constant(value) if isinstance(value, np.ndarray) else value
      for name, value in arguments.items()
    }
    try:
      found = self._call(**tensors)
    except Exception as error:  # TensorFlow raises many kinds
      shapes = {name: np.shape(value) for name, value in arguments.items()}
      raise errors.UserError(
        f"the SavedModel at {self.directory} refuses {shapes}: "
        f"{str(error).splitlines()[0]}"
      ) from error
    if isinstance(found, (tuple, list)):
      found = {f"output_{index}": one for index, one in enumerate(found)}
    elif not isinstance(found, Mapping):
      found = {"output_0": found}
    return {name: np.asarray(one) for name, one in found.items()}

  def asset(self, name: str) -> bytes:
    """Content of a file among its assets.

    Raises:
      UserError: if it is not there.
    """
    path = self.directory / "assets" / name
    if not path.is_file():
      raise errors.UserError(
        f"the SavedModel at {self.directory} has no assets/{name}"
      )
    return path.read_bytes()
