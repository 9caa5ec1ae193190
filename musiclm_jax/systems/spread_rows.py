# SPDX-License-Identifier: Apache-2.0
"""The generate program of a stage, with its rows split over the devices.

Each device has all weights and runs the very program of its own rows, so codes
do not depend on how many devices there are. Any number of rows will do: the
last one fills up what is missing.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from musiclm_jax.partitioning import partitioner as partitioner_lib


class SpreadRows:
  """In place of the jitted program that `generate` of a stage calls."""

  def __init__(
    self,
    partitioner: partitioner_lib.Partitioner,
    program: Callable[..., jax.Array],
  ):
    """Compiles nothing yet.

    Args:
      partitioner: of the devices.
      program: not jitted: parameters, tokens `[copies * batch, length]`, keys
        `[batch]`, more arrays `[batch, ...]` and static settings to codes
        `[batch, ...]`.
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
  ) -> np.ndarray:
    """Arguments and result are those of the program."""
    batch, kind = keys.shape[0], jax.random.key_impl(keys)
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
    # A row depends on itself only: what it is filled up with does not matter.
    filling = -batch % self._partitioner.batch_divisor
    rows = {
      name: np.concatenate([array, np.repeat(array[-1:], filling, axis=0)])
      for name, array in rows.items()
    }
    rows = self._partitioner.put_batch(rows)
    return np.asarray(self._compiled[signature](params, rows))[:batch]
