# SPDX-License-Identifier: Apache-2.0
"""Position buckets, the T5 bias matrix and rotary embedding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.layers import positions
from musiclm_jax.partitioning import axes


def test_buckets_are_exact_near_and_shared_far():
  buckets = positions.relative_buckets(-np.arange(1000), 32, 128, causal=True)
  np.testing.assert_array_equal(buckets[:16], np.arange(16))
  assert (np.diff(buckets) >= 0).all()
  assert buckets[127] == 31 and (buckets[128:] == 31).all()
  assert len(np.unique(buckets)) == 32


def test_causal_buckets_ignore_the_future():
  assert positions.relative_buckets(np.arange(5), 32, 128, True).max() == 0


def test_bidirectional_buckets_separate_directions():
  relative = np.arange(1, 300)
  after = positions.relative_buckets(relative, 32, 128, False)
  before = positions.relative_buckets(-relative, 32, 128, False)
  np.testing.assert_array_equal(after - before, 16)
  assert after.max() == 31


@pytest.mark.parametrize("causal", [True, False])
def test_bias_matrix_and_rows_equal_direct_lookup(causal):
  length = 21
  module = positions.RelativeBias(3, 8, 10, causal)
  variables = axes.unbox(module.init(jax.random.key(0), length))
  bias = module.apply(variables, length)
  grid = np.arange(length)[None, :] - np.arange(length)[:, None]
  buckets = positions.relative_buckets(grid, 8, 10, causal)
  table = np.asarray(variables["params"]["table"])
  np.testing.assert_allclose(bias, table[buckets].transpose(2, 0, 1))
  for position in (0, 7, length - 1):
    row = module.apply(variables, jnp.int32(position), length, method="row")
    np.testing.assert_allclose(row[:, 0], bias[:, position])


def test_rotary_scores_depend_on_distance_only():
  x = jax.random.normal(jax.random.key(0), (1, 1, 1, 8))
  y = jax.random.normal(jax.random.key(1), (1, 1, 1, 8))

  def score(i, j):
    a = positions.rotate(x, jnp.array([i]))
    b = positions.rotate(y, jnp.array([j]))
    return float((a * b).sum())

  assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
  assert abs(score(9, 4) - score(9, 8)) > 1e-3


def test_near_wheel_and_no_bias_beyond_give_the_same_attention():
  module = positions.RelativeBias(2, num_buckets=8, max_distance=20)
  length, block = 96, 16
  table = {"params": {"table": jax.random.normal(jax.random.key(0), (8, 2))}}
  whole = np.asarray(module.apply(table, length))
  tiles = positions.num_near_tiles(block, 20)
  wheel = module.apply(table, block, tiles, method="near")
  near = np.asarray(positions.toeplitz(wheel))
  for query in (0, 40, 95):
    for key in range(query + 1):
      tile = query // block - key // block
      value = 0.0
      if tile < tiles:
        value = near[:, tile, key % block, query % block]
      # Equal up to what all keys share.
      np.testing.assert_allclose(
        value, whole[:, query, key] - whole[:, 95, 0], atol=1e-6
      )
  assert (near[:, 0][:, 3, :3] == positions.MASKED).all()
