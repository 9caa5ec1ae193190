# SPDX-License-Identifier: Apache-2.0
"""TensorFlow checkpoints on disk: a prefix in, numpy arrays by name out."""

import os
import pathlib

import numpy as np

from musiclm_jax.core import errors


def read(prefix: str | os.PathLike) -> dict[str, np.ndarray]:
  """All variables of a checkpoint.

  Args:
    prefix: what its files' names start with: `PREFIX.index` and
      `PREFIX.data-00000-of-00001`. A folder stands for files called `.index`.

  Raises:
    UserError: if a file is missing or damaged.
  """
  import tensorflow as tf

  path = os.fspath(prefix)
  if os.path.isdir(path):
    path = os.path.join(path, "")
  if not pathlib.Path(path + ".index").is_file():
    raise errors.UserError(
      f"no TensorFlow checkpoint at {prefix}: {path}.index is missing"
    )
  try:
    reader = tf.compat.v1.train.NewCheckpointReader(path)
    return {
      name: reader.get_tensor(name)
      for name in sorted(reader.get_variable_to_shape_map())
    }
  except Exception as error:  # TensorFlow raises many kinds
    reason = str(error).splitlines()[0]
    raise errors.UserError(
      f"cannot read the TensorFlow checkpoint at {prefix}: {reason}"
    ) from error
