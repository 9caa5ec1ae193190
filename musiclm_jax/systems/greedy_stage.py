# SPDX-License-Identifier: Apache-2.0
"""A stage that goes on greedily from known frames, split over devices.

Every device has all weights and its own rows; batches have one fixed shape,
the last one filled up, so what comes of a row does not depend on how many
there are.
"""

from collections.abc import Mapping

import jax
import numpy as np

from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.systems import stage_lm

ROWS_PER_DEVICE = 64


class GreedyStage:
  """A frozen stage whose most likely codes are taken.

  Attributes:
    stage: whose rows are split over the devices of this process from now on.
    batch_size: rows that all devices take at once.
  """

  def __init__(
    self, stage: stage_lm.StageLM, rows_per_device: int = ROWS_PER_DEVICE
  ):
    """Sends the weights to all devices of this process."""
    devices = jax.local_devices()
    self.stage = stage
    self.batch_size = rows_per_device * len(devices)
    stage.spread(partitioner_lib.Partitioner(mesh_lib.MeshConfig(), devices))
    # Nothing is drawn at temperature 0.
    self._keys = jax.random.split(jax.random.key(0), self.batch_size)

  def go_on(
    self,
    conditioning: Mapping[str, np.ndarray],
    known: np.ndarray,
    num_frames: int,
  ) -> np.ndarray:
    """The most likely codes after known ones, each given those before.

    Args:
      conditioning: codes by stream, int32 `[rows, frames, codebooks]`, over
        known and new frames.
      known: target codes, int32 `[rows, known frames, levels]`; may have no
        frames.
      num_frames: to add.

    Returns:
      int32 `[rows, num_frames, levels]`.
    """
    found = []
    for start in range(0, len(known), self.batch_size):
      rows = np.arange(start, start + self.batch_size)
      count = min(len(rows), len(known) - start)
      rows[count:] = start
      codes = self.stage.generate(
        {name: array[rows] for name, array in conditioning.items()},
        known[rows],
        num_frames,
        0.0,
        self._keys,
      )
      found.append(codes[:count])
    return np.concatenate(found)
