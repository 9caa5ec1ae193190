# SPDX-License-Identifier: Apache-2.0
"""K-means and the Gumbel quantizer against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.layers import gumbel_quantize, kmeans


def _planted(num_clusters=6, per_cluster=40, dim=5):
  generator = np.random.default_rng(0)
  centers = generator.normal(size=(num_clusters, dim)) * 10
  labels = np.repeat(np.arange(num_clusters), per_cluster)
  points = centers[labels] + generator.normal(size=(len(labels), dim)) * 0.1
  return points.astype(np.float32), centers.astype(np.float32), labels


def test_assign_in_chunks_equals_naive():
  points, centers, _ = _planted()
  expected = ((points[:, None] - centers[None]) ** 2).sum(-1)
  codes, distances = kmeans.assign(points, centers, chunk_size=37)
  np.testing.assert_array_equal(codes, expected.argmin(-1))
  np.testing.assert_allclose(distances, expected.min(-1), atol=1e-3)


def test_recovers_planted_clusters():
  points, centers, labels = _planted()
  result = kmeans.fit(points, 6, jax.random.key(0), chunk_size=50)
  nearest, distances = kmeans.assign(centers, result.centroids)
  assert sorted(np.asarray(nearest)) == list(range(6))
  assert float(distances.max()) < 0.01
  codes, _ = kmeans.assign(points, result.centroids)
  np.testing.assert_array_equal(codes, np.asarray(nearest)[labels])


def test_chunk_size_does_not_change_fit_and_key_decides():
  points = np.random.default_rng(1).normal(size=(101, 4)).astype(np.float32)
  small = kmeans.fit(points, 7, jax.random.key(3), chunk_size=10)
  large = kmeans.fit(points, 7, jax.random.key(3), chunk_size=1000)
  np.testing.assert_allclose(small.centroids, large.centroids, atol=1e-4)
  other = kmeans.fit(points, 7, jax.random.key(4))
  assert not np.allclose(other.centroids, small.centroids)


def test_one_iteration_equals_lloyd_in_numpy():
  points = np.random.default_rng(2).normal(size=(60, 3)).astype(np.float32)
  key = jax.random.key(0)
  start = np.asarray(kmeans.seed(jnp.asarray(points), 4, key))
  codes = ((points[:, None] - start[None]) ** 2).sum(-1).argmin(-1)
  expected = np.stack([points[codes == code].mean(0) for code in range(4)])
  result = kmeans.fit(points, 4, key, num_iterations=1, chunk_size=16)
  np.testing.assert_allclose(result.centroids, expected, atol=1e-5)


def test_seeding_picks_distinct_points():
  points = np.repeat(np.eye(4, dtype=np.float32), 10, axis=0)
  centroids = np.asarray(kmeans.seed(jnp.asarray(points), 4, jax.random.key(0)))
  assert len(np.unique(centroids, axis=0)) == 4


def test_empty_clusters_move_to_far_points():
  points = np.array([[0.0], [0.1], [10.0], [20.0]], np.float32)
  start = jnp.array([[0.05], [100.0], [200.0]])
  moved, _, num_empty = kmeans._update(jnp.asarray(points), start, 2)
  assert int(num_empty) == 2
  assert sorted(np.asarray(moved)[1:, 0].tolist()) == [10.0, 20.0]


def test_too_few_points_is_an_error():
  with pytest.raises(ValueError, match="num_clusters=5"):
    kmeans.fit(np.zeros((4, 2), np.float32), 5, jax.random.key(0))


def test_gumbel_quantizer_returns_codebook_rows_and_gradients():
  quantizer = gumbel_quantize.GumbelQuantizer(codebook_size=8, code_dim=4)
  features = jax.random.normal(jax.random.key(0), (2, 5, 6))
  variables = jax.tree.map(
    lambda leaf: leaf,
    gumbel_quantize.axes.unbox(quantizer.init(jax.random.key(1), features)),
  )
  vectors, ids, logits = quantizer.apply(variables, features)
  np.testing.assert_array_equal(ids, logits.argmax(-1))
  np.testing.assert_allclose(
    vectors, variables["params"]["codebook"][ids], atol=1e-5
  )
  noisy = quantizer.apply(variables, features, 2.0, jax.random.key(2))
  assert not np.array_equal(noisy[1], ids)

  def total(variables):
    vectors, _, _ = quantizer.apply(variables, features, 2.0)
    return (vectors**2).sum()

  gradient = jax.grad(total)(variables)["params"]
  assert float(jnp.abs(gradient["kernel"]).sum()) > 0
  assert float(jnp.abs(gradient["codebook"]).sum()) > 0


def test_diversity_extremes():
  weights = jnp.ones((1, 4))
  even, perplexity = gumbel_quantize.diversity(jnp.zeros((1, 4, 8)), weights)
  np.testing.assert_allclose(perplexity, 8.0, rtol=1e-4)
  np.testing.assert_allclose(even, 0.0, atol=1e-4)
  one = jnp.zeros((1, 4, 8)).at[..., 3].set(100.0)
  collapsed, perplexity = gumbel_quantize.diversity(one, weights)
  np.testing.assert_allclose(perplexity, 1.0, rtol=1e-4)
  np.testing.assert_allclose(collapsed, 1 - 1 / 8, rtol=1e-4)
