# SPDX-License-Identifier: Apache-2.0
"""Memory of the pair losses by devices; `pair_losses_memory_test.py` runs this.

A program of its own, because jax fixes the number of devices when it starts.
Nothing is computed: compiling says how much memory a device would need. Prints
one JSON object: temporary bytes of a device by loss, chunk and devices.
"""

import json
import sys

import jax
import numpy as np

from musiclm_jax.models import pair_losses
from musiclm_jax.partitioning import mesh, partitioner

DEVICES = (1, 8)


def temporary_bytes(num_devices: int, rows: int, chunk: int, dim: int, loss):
  """Of one device with `rows` pairs, for the loss and its gradients."""
  part = partitioner.Partitioner(
    mesh.MeshConfig(data=num_devices), jax.devices()[:num_devices]
  )
  pairs = num_devices * rows

  def total(audio, text, ids):
    found = pair_losses.pair_losses(audio, text, ids, 9.0, -3.0, loss, chunk)
    return found.loss.sum()

  vectors = np.zeros((pairs, dim), np.float32)
  batch = part.put_batch(
    {"audio": vectors, "text": vectors, "ids": np.zeros((pairs, 1), np.int32)}
  )
  shapes = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    for name, x in batch.items()
  }
  program = part.jit(jax.grad(total, (0, 1)))
  compiled = program.lower(*shapes.values()).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def main(rows: int, dim: int, chunks: list[int]) -> None:
  found = {
    loss: {
      chunk: [temporary_bytes(n, rows, chunk, dim, loss) for n in DEVICES]
      for chunk in chunks
    }
    for loss in pair_losses.LOSSES
  }
  print(json.dumps(found))


if __name__ == "__main__":
  main(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
