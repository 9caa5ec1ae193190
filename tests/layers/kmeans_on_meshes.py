# SPDX-License-Identifier: Apache-2.0
"""Fits centroids on several meshes; `mesh_kmeans_test.py` runs this.

A program of its own, because jax fixes its devices when it starts. Arguments:
number of processes, index of this one, port of the first. Prints one JSON
object: a hash of the centroids and more, per fit.
"""

import hashlib
import json
import sys

import jax
import numpy as np

from musiclm_jax.layers import mesh_kmeans
from musiclm_jax.systems import semantic_clusters

CONFIGS = {
  "parallel": mesh_kmeans.MeshKMeansConfig(
    12, num_rounds=2, chunk_size=64, num_iterations=12
  ),
  "mini-batch": mesh_kmeans.MeshKMeansConfig(
    12, seeding="plusplus", batch_size=500, chunk_size=64, num_iterations=6
  ),
}


def points() -> np.ndarray:
  """1500 vectors around 30 centres: many lie between two centroids."""
  generator = np.random.default_rng(0)
  centres = 2 * generator.normal(size=(30, 8))
  rows = centres[generator.integers(0, 30, 1500)]
  return (rows + generator.normal(size=rows.shape)).astype(np.float32)


def main(num_processes: int, index: int, port: int) -> None:
  jax.config.update("jax_disable_most_optimizations", True)
  if num_processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes, index)
  data = points()
  # Processes hold different numbers of vectors, in no order.
  order = np.random.default_rng(1).permutation(len(data))
  ends = np.linspace(0, 1, num_processes + 1) ** 1.5 * len(data)
  mine = order[int(ends[index]) : int(ends[index + 1])]
  devices = jax.devices()
  # Compiling is what takes time: each config has two meshes.
  sizes = {"parallel": [1, len(devices)], "mini-batch": [1, 3]}
  results = {}
  for name, config in CONFIGS.items():
    for size in sizes[name] if num_processes == 1 else [len(devices)]:
      mesh = jax.make_mesh((size, 1), ("data", "fsdp"), devices=devices[:size])
      # Ids are the rows' numbers times 7: gaps do not matter.
      found = mesh_kmeans.fit(data[mine], 7 * mine, config, mesh, seed=3)
      results[f"{name} {size}"] = {
        "hash": hashlib.sha256(found.centroids.tobytes()).hexdigest(),
        "counts": found.counts.tolist(),
        "inertia": found.inertia,
      }
  # The same from features of a corpus: six blocks of clips, dealt out.
  mesh = jax.make_mesh((len(devices), 1), ("data", "fsdp"), devices=devices)
  clips = data.reshape(30, 50, 8)
  found = semantic_clusters.fit_on_mesh(
    (
      (block, 5 * block, clips[5 * block : 5 * block + 5])
      for block in range(index, 6, num_processes)
    ),
    6,
    CONFIGS["parallel"],
    8,
    mesh,
    seed=3,
    max_points=900,
  )
  arrays = (found.mean, found.std, found.centroids)
  results["corpus"] = hashlib.sha256(
    b"".join(array.tobytes() for array in arrays)
  ).hexdigest()
  print(json.dumps(results))


if __name__ == "__main__":
  main(*map(int, sys.argv[1:]))
