# SPDX-License-Identifier: Apache-2.0
"""Statistics and clusters of a corpus, on one device and on a mesh."""

import jax
import numpy as np
import pytest

from musiclm_jax.core import errors
from musiclm_jax.layers import mesh_kmeans
from musiclm_jax.systems import semantic_clusters


def features(clips=30, frames=20, dim=3):
  generator = np.random.default_rng(0)
  # Clips differ: statistics of a clip are not those of the corpus.
  level = generator.normal(size=(clips, 1, dim)) * 5
  return level + generator.normal(size=(clips, frames, dim)) * [1, 10, 0]


def test_standardises_over_the_corpus_and_reports():
  data = features()
  mean, std, centroids, report = semantic_clusters.fit(
    iter(data), 7, jax.random.key(0), max_points=200
  )
  flat = data.reshape(-1, 3)
  np.testing.assert_allclose(mean, flat.mean(0), atol=1e-4)
  np.testing.assert_allclose(std, flat.std(0), rtol=1e-4)
  assert centroids.shape == (7, 3)
  assert (report["num_frames"], report["num_points"]) == (600, 200)
  assert report["num_clusters"] == report["clusters_used"] == 7
  assert 3 < report["perplexity"] <= 7
  assert 0.1 < report["quantization_error"] < 0.8
  assert "7 of 7 clusters" in semantic_clusters.describe(report)
  with pytest.raises(errors.UserError, match="codebook_size"):
    semantic_clusters.fit([data[0]], 26, jax.random.key(0))


def test_usage_report_counts_what_is_used():
  report = semantic_clusters.usage_report(np.array([30, 0, 10, 0]), 1.5, 3)
  expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
  assert report["clusters_used"] == 2 and report["largest_share"] == 0.75
  assert report["perplexity"] == pytest.approx(expected, abs=0.01)
  assert report["quantization_error"] == 0.5


def test_mesh_fit_does_not_depend_on_how_clips_come():
  data = features().astype(np.float32)
  mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
  config = mesh_kmeans.MeshKMeansConfig(5, num_rounds=1, num_iterations=4)

  def fit(blocks):
    return semantic_clusters.fit_on_mesh(
      blocks, 6, config, data.shape[-1], mesh, 1, 150
    )

  whole = [
    (block, 5 * block, data[5 * block : 5 * block + 5]) for block in range(6)
  ]
  # Another order of blocks, and blocks in several arrays.
  parts = [
    (block, first + shift, rows[shift : shift + size])
    for block, first, rows in whole[::-1]
    for shift, size in ((0, 2), (2, 3))
  ]
  one, other = fit(whole), fit(parts)
  for name in ("mean", "std", "centroids"):
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
  assert one.report == other.report
  flat = data.reshape(-1, 3)
  np.testing.assert_allclose(one.mean, flat.mean(0), atol=1e-4)
  np.testing.assert_allclose(one.std, flat.std(0), rtol=1e-4)
  assert one.report["num_points"] == 150 and one.report["num_frames"] == 600
  # The sample is uniform over the corpus.
  draws = semantic_clusters._draws(np.arange(4000), 3) / 2.0**64
  assert abs(draws.mean() - 0.5) < 0.03 and abs(draws.std() - 0.289) < 0.02
  assert (
    semantic_clusters._highest_kept(np.array([9, 2**63, 5, 70], np.uint64), 3)
    == 70
  )
