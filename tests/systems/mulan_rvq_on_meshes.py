# SPDX-License-Identifier: Apache-2.0
"""Fits an RVQ on several meshes; `mulan_rvq_test.py` runs this.

A program of its own, because jax fixes its devices when it starts. Prints one
JSON object: a hash of the codebooks per mesh.
"""

import hashlib
import json

import jax
import numpy as np

from musiclm_jax.layers import mesh_kmeans
from musiclm_jax.systems import mulan_rvq


def main() -> None:
  jax.config.update("jax_disable_most_optimizations", True)
  points = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float32)
  ids = np.arange(len(points))
  config = mesh_kmeans.MeshKMeansConfig(
    12, num_rounds=2, chunk_size=32, num_iterations=6
  )
  devices = jax.devices()
  results = {"num_devices": len(devices)}

  def fit(name, num_devices, order, seed=3):
    mesh = jax.make_mesh(
      (num_devices, 1), ("data", "fsdp"), devices=devices[:num_devices]
    )
    codebooks = mulan_rvq.fit_on_mesh(
      points[order], ids[order], 3, config, mesh, seed
    )
    results[name] = hashlib.sha256(codebooks.tobytes()).hexdigest()

  fit("1", 1, ids)
  fit("8", 8, ids)
  fit("3, in another order", 3, np.random.default_rng(1).permutation(ids))
  fit("another seed", 1, ids, seed=4)
  print(json.dumps(results))


if __name__ == "__main__":
  main()
