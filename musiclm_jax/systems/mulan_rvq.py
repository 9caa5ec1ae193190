# SPDX-License-Identifier: Apache-2.0
"""MuLan embeddings of audio in, the codebooks of their RVQ out.

Residual k-means: each level clusters what the levels before left. `fit` runs
on one device; `fit_on_mesh` on all devices of all processes, with the same
result for any number of them.
"""

import jax
import numpy as np

from musiclm_jax.core import errors, rvq
from musiclm_jax.layers import kmeans, mesh_kmeans


def _check_count(count: int, codebook_size: int) -> None:
  if count < codebook_size:
    raise errors.UserError(
      f"{count} MuLan embeddings: expected at least "
      f"codebook_size={codebook_size}; give more audio or a smaller codebook"
    )


def _left(residual: np.ndarray, codebook: np.ndarray) -> np.ndarray:
  """What one level leaves of `residual`."""
  codes = rvq.encode(residual, codebook[None])
  return residual - rvq.decode(codes, codebook[None])


def fit(
  embeddings: np.ndarray,
  num_codebooks: int,
  codebook_size: int,
  key: jax.Array,
  num_iterations: int = 50,
) -> np.ndarray:
  """Codebooks of the embeddings, on one device.

  Args:
    embeddings: float32 `[n, dim]`, of audio.
    num_codebooks: levels.
    codebook_size: entries per level.
    key: typed key.
    num_iterations: most Lloyd iterations per level.

  Returns:
    float32 `[codebooks, codebook_size, dim]`.

  Raises:
    UserError: if there are fewer embeddings than entries.
  """
  residual = np.asarray(embeddings, np.float32)
  _check_count(len(residual), codebook_size)
  codebooks = []
  for level in range(num_codebooks):
    result = kmeans.fit(
      residual,
      codebook_size,
      jax.random.fold_in(key, level),
      num_iterations=num_iterations,
    )
    codebook = np.asarray(result.centroids)
    residual = _left(residual, codebook)
    codebooks.append(codebook)
  return np.stack(codebooks)


def fit_on_mesh(
  embeddings: np.ndarray,
  ids: np.ndarray,
  num_codebooks: int,
  config: mesh_kmeans.MeshKMeansConfig,
  mesh: jax.sharding.Mesh,
  seed: int = 0,
) -> np.ndarray:
  """Codebooks of the embeddings of all processes; a collective.

  Args:
    embeddings: float32 `[n, dim]`, this process's, any number.
    ids: int64 `[n]`, different over all processes.
    num_codebooks: levels.
    config: of k-means; `num_clusters` is the entries per level.
    mesh: all its devices take part.
    seed: of the seeding; level `l` has `seed + l`.

  Returns:
    float32 `[codebooks, codebook_size, dim]`, the same on every process.

  Raises:
    UserError: if there are fewer embeddings than entries.
  """
  residual = np.asarray(embeddings, np.float32)
  count = int(mesh_kmeans.gather(np.array([len(residual)], np.int64)).sum())
  _check_count(count, config.num_clusters)
  codebooks = []
  for level in range(num_codebooks):
    result = mesh_kmeans.fit(residual, ids, config, mesh, seed + level)
    residual = _left(residual, result.centroids)
    codebooks.append(result.centroids)
  return np.stack(codebooks)
