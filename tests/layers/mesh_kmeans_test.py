# SPDX-License-Identifier: Apache-2.0
"""K-means over a mesh: against numpy, and the same on any mesh."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from musiclm_jax.layers import kmeans, kmeans_programs, mesh_kmeans

_HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def mesh():
  return jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])


def _start(num_processes, index, port, num_devices):
  return subprocess.Popen(
    [
      sys.executable,
      _HERE / "kmeans_on_meshes.py",
      *map(str, (num_processes, index, port)),
    ],
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(_HERE.parents[1]),
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
    },
    stdout=subprocess.PIPE,
    text=True,
  )


def test_any_mesh_and_any_number_of_processes_give_the_same_centroids():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  children = [_start(1, 0, 0, 8), _start(2, 0, port, 2), _start(2, 1, port, 2)]
  outputs = [child.communicate(timeout=500)[0] for child in children]
  assert [child.returncode for child in children] == [0, 0, 0]
  results = [json.loads(output.splitlines()[-1]) for output in outputs]
  one = results[0]
  assert results[1] == results[2] and len(one) == 5
  assert results[1]["corpus"] == one["corpus"]
  for name, size in (("parallel", 8), ("mini-batch", 3)):
    expected = one[f"{name} 1"]
    assert sum(expected["counts"]) == 1500 and min(expected["counts"]) > 0
    assert one[f"{name} {size}"] == expected
    assert results[1][f"{name} 4"] == expected


def test_fit_is_lloyd_of_its_seeds_in_float64(mesh, monkeypatch):
  generator = np.random.default_rng(0)
  points = generator.normal(size=(300, 5)).astype(np.float32)
  seeds = []
  plain = mesh_kmeans._seed
  monkeypatch.setattr(
    mesh_kmeans, "_seed", lambda *a: seeds.append(plain(*a)) or seeds[0]
  )
  config = mesh_kmeans.MeshKMeansConfig(7, num_iterations=3, tolerance=0.0)
  result = mesh_kmeans.fit(points, np.arange(300), config, mesh)
  centroids = seeds[0].astype(np.float64)
  # Each seed is one of the vectors, and no two are the same.
  assert len({tuple(row) for row in seeds[0]} & {tuple(p) for p in points}) == 7
  for _ in range(3):
    codes = ((points[:, None] - centroids) ** 2).sum(-1).argmin(-1)
    centroids = np.stack([points[codes == c].mean(0) for c in range(7)])
  distances = ((points[:, None] - centroids) ** 2).sum(-1)
  np.testing.assert_allclose(result.centroids, centroids, atol=1e-5)
  np.testing.assert_array_equal(
    result.counts, np.bincount(distances.argmin(-1), minlength=7)
  )
  np.testing.assert_allclose(result.inertia, distances.min(-1).mean(), 1e-5)


def test_empty_clusters_are_moved_to_far_vectors(mesh):
  # Three places, of which seeding can find no more; one vector each far off.
  points = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
  config = mesh_kmeans.MeshKMeansConfig(4, seeding="plusplus")
  with_far = np.concatenate([points, [[9.0, 9.0, 9.0]]]).astype(np.float32)
  data = mesh_kmeans._place(with_far, np.arange(61), config, mesh)
  start = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-50, 0, 0]], np.float32)
  moved = mesh_kmeans._repair(data, 0, start, np.array([3]))
  np.testing.assert_array_equal(moved[3], [9, 9, 9])
  np.testing.assert_array_equal(moved[:3], start[:3])
  result = mesh_kmeans.fit(points, np.arange(60), config, mesh)
  assert result.inertia < 1e-6 and result.counts.sum() == 60


def test_seedings_find_planted_clusters(mesh):
  generator = np.random.default_rng(0)
  centres = 10 * generator.normal(size=(6, 5)).astype(np.float32)
  points = np.repeat(centres, 40, axis=0)
  points = points + 0.1 * generator.normal(size=points.shape)
  for seeding in mesh_kmeans.SEEDINGS:
    result = mesh_kmeans.fit(
      points,
      np.arange(240),
      mesh_kmeans.MeshKMeansConfig(6, seeding=seeding),
      mesh,
    )
    nearest, distances = kmeans.assign(centres, result.centroids)
    assert sorted(np.asarray(nearest)) == list(range(6)), seeding
    assert float(distances.max()) < 0.01
    assert result.counts.tolist() == [40] * 6


def test_draws_follow_the_distances(mesh):
  programs = kmeans_programs.Programs(mesh)
  ranks = programs.put(np.arange(400, dtype=np.int32).reshape(4, 100))
  weights = np.ones((4, 100), np.float32)
  weights[0] = 9.0  # 900 of 1200 in all.
  weights[1, :50] = 0.0
  drawn = [
    int(
      np.asarray(programs.lowest(1)(ranks, programs.put(weights), salt)[1])[0]
    )
    for salt in np.arange(1000, dtype=np.uint32) * 7919
  ]
  assert 0.68 < np.mean(np.array(drawn) < 100) < 0.82
  assert not any(100 <= rank < 150 for rank in drawn)


def test_sums_are_exact(mesh):
  """Values that float32 would lose beside each other."""
  points = np.full((5000, 1), 2.0**-12, np.float32)
  points[0] = 1000.0
  config = mesh_kmeans.MeshKMeansConfig(1, chunk_size=512)
  data = mesh_kmeans._place(points, np.arange(5000), config, mesh)
  sums, counts, _ = data.statistics(0, np.zeros((1, 1), np.float32))
  assert sums[0, 0] == 1000.0 + 4999 * 2.0**-12
  assert counts.tolist() == [5000]


def test_bad_input_names_what_is_wrong(mesh):
  config = mesh_kmeans.MeshKMeansConfig(3)
  points = np.zeros((4, 2), np.float32)
  with pytest.raises(ValueError, match="ids occur twice"):
    mesh_kmeans.fit(points, np.array([1, 2, 2, 3]), config, mesh)
  with pytest.raises(ValueError, match="num_clusters=3"):
    mesh_kmeans.fit(points[:2], np.arange(2), config, mesh)
  with pytest.raises(ValueError, match="finite"):
    mesh_kmeans.fit(points + np.nan, np.arange(4), config, mesh)
  with pytest.raises(ValueError, match="seeding='random'"):
    mesh_kmeans.MeshKMeansConfig(3, seeding="random")
