# SPDX-License-Identifier: Apache-2.0
"""The generate program of a stage, with its rows split over the devices.

Each device has all weights and runs the very program of its own rows, so codes
do not depend on how many devices there are.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from musiclm_jax.partitioning import partitioner as partitioner_lib


class SpreadRows:
  """In place of the jitted program that `StageLM.generate` calls."""

  def __init__(
    self,
    partitioner: partitioner_lib.Partitioner,
    program: Callable[..., jax.Array],
  ):
    """Compiles nothing yet.

    Args:
      partitioner: of the devices.
      program: not jitted: parameters, tokens `[copies * batch, length]`, keys
        `[batch]`, three more arrays `[batch, ...]` and static settings to
        codes `[batch, ...]`.
    """
    self._partitioner, self._program = partitioner, program
    self._compiled: dict[tuple, Any] = {}

  def __call__(
    self,
    params: Any,
    tokens: np.ndarray,
    keys: jax.Array,
    *arrays: np.ndarray,
    **static: Any,
  ) -> jax.Array:
    """Arguments and result are those of the program.

    Raises:
      ValueError: if the batch does not split over the devices.
    """
    batch, kind = keys.shape[0], jax.random.key_impl(keys)
    self._partitioner.check_batch_size(batch)
    signature = (kind, *static.items())
    if signature not in self._compiled:

      def apply(params, rows):
        # Of a guided row both versions are on one device.
        tokens = rows["tokens"].swapaxes(0, 1)
        others = [rows[str(index)] for index in range(len(arrays))]
        return self._program(
          params,
          tokens.reshape(-1, tokens.shape[-1]),
          jax.random.wrap_key_data(rows["keys"], impl=kind),
          *others,
          **static,
        )

      self._compiled[signature] = self._partitioner.jit_per_device(apply)
    rows = {str(index): array for index, array in enumerate(arrays)}
    rows["tokens"] = tokens.reshape(-1, batch, tokens.shape[-1]).swapaxes(0, 1)
    rows["keys"] = np.asarray(jax.random.key_data(keys))
    return self._compiled[signature](params, self._partitioner.put_batch(rows))
