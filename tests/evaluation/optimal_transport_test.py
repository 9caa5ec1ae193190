# SPDX-License-Identifier: Apache-2.0
"""Transport of histograms: known answers, POT's answers, bounds, batches."""

import functools

import numpy as np
import pytest

from musiclm_jax.evaluation import optimal_transport

NUM_CODES, LENGTH = 40, 125
# What POT 0.9.7 gives for the pairs below: `ot.sinkhorn2` with the method
# "sinkhorn_log", reg 0.05 mean distances and stopThr 1e-9, and `ot.emd2`.
SINKHORN = (3.4429007, 2.7261514, 1.4669452, 1.8783524, 2.6797669, 0.0029882736)
EXACT = (3.428068, 2.678725, 1.4372474, 1.8259715, 2.6349779, 0)
USUAL = optimal_transport.SinkhornConfig()
CLOSE = optimal_transport.SinkhornConfig(0.05, 1e-5, 3000)


def problem():
  """Centroids and pairs of token sequences, few to many different tokens."""
  rng = np.random.default_rng(0)
  centroids = rng.normal(size=(NUM_CODES, 6)) * [3, 1, 1, 1, 1, 1]
  most = np.array([2, 5, 12, 25, 40, 40])[:, None]
  first = (rng.random((6, LENGTH)) * most).astype(int)
  second = (rng.random((6, LENGTH)) * most[::-1]).astype(int)
  second[-1] = first[-1][::-1]
  return centroids, first, second


@functools.cache
def costs_of(config, **options):
  centroids, first, second = problem()
  transport = optimal_transport.Transport(centroids, config, **options)
  pair = map(optimal_transport.histograms, (first, second))
  return transport, transport.costs(*pair)


def test_costs_are_those_of_pot():
  transport, costs = costs_of(CLOSE)
  np.testing.assert_allclose(
    costs, SINKHORN, rtol=2e-5, atol=1e-4 * transport.mean_distance
  )


def pot_answers():
  """Both lists above, from POT itself."""
  ot = pytest.importorskip("ot")
  centroids, first, second = problem()
  distances = optimal_transport.centroid_distances(centroids)
  distances = distances.astype(np.float64)
  unit = distances.sum() / (distances.size - len(distances))
  answers = []
  for one, other in zip(first, second):
    bins = [np.unique(tokens, return_counts=True) for tokens in (one, other)]
    weights = [counts / LENGTH for _, counts in bins]
    costs = distances[np.ix_(bins[0][0], bins[1][0])]
    sinkhorn = unit * ot.sinkhorn2(
      *weights,
      costs / unit,
      0.05,
      method="sinkhorn_log",
      numItermax=20_000,
      stopThr=1e-9,
    )
    answers.append((float(sinkhorn), float(ot.emd2(*weights, costs))))
  return np.array(answers)


def test_recorded_answers_are_those_of_the_installed_pot():
  np.testing.assert_allclose(
    pot_answers(), np.stack([SINKHORN, EXACT], 1), rtol=1e-6, atol=1e-8
  )


def test_costs_are_a_little_above_optimal_transport():
  # Never below it, however early the iteration ends.
  for config in (
    USUAL,
    optimal_transport.SinkhornConfig(0.02, 1.0, 1),
  ):
    transport, costs = costs_of(config)
    exact = np.array(EXACT)
    assert (costs >= exact - 1e-5 * transport.mean_distance).all()
  _, costs = costs_of(USUAL)
  np.testing.assert_allclose(costs, EXACT, rtol=0.03, atol=0.01)


def test_equal_histograms_cost_nothing_and_single_tokens_their_distance():
  centroids = problem()[0]
  transport = optimal_transport.Transport(centroids)
  first = np.array([[3] * LENGTH, [3] * LENGTH, [1, 2] * 50 + [2] * 25])
  second = np.array([[3] * LENGTH, [9] * LENGTH, [2] * 75 + [1] * 50])
  costs = transport.costs(*map(optimal_transport.histograms, (first, second)))
  apart = np.linalg.norm(centroids[3] - centroids[9])
  np.testing.assert_allclose(costs, [0, apart, 0], atol=1e-4)


def test_distance_of_means_is_a_lower_bound():
  centroids, first, second = problem()
  transport = optimal_transport.Transport(centroids)
  pair = [optimal_transport.histograms(one) for one in (first, second)]
  bounds = transport.lower_bounds(*map(transport.means, pair))
  assert (bounds <= np.array(EXACT) + 1e-6).all()
  assert bounds[0] > 0.1 * EXACT[0]


def test_batches_do_not_matter():
  # A table of 64 x 64 bins alone in its batch, and several beside each other.
  transport, together = costs_of(USUAL)
  _, alone = costs_of(USUAL, table_values_per_device=1)
  # The iteration ends with the last pair of a batch.
  np.testing.assert_allclose(
    alone, together, atol=2 * USUAL.tolerance * transport.mean_distance
  )


def test_histograms_hold_the_tokens_that_occur():
  tokens = np.array([[7, 7, 0, 7], [5, 4, 3, 2]])
  found = optimal_transport.histograms(tokens)
  np.testing.assert_array_equal(found.bins, [[0, 7, 0, 0], [2, 3, 4, 5]])
  np.testing.assert_allclose(found.weights, [[0.25, 0.75, 0, 0], [0.25] * 4])
  np.testing.assert_array_equal(found.counts, [2, 4])
  bits = optimal_transport.entropy_bits(found.weights)
  np.testing.assert_allclose(bits, [0.811278, 2.0], atol=1e-6)


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="tolerance=0"):
    optimal_transport.SinkhornConfig(tolerance=0)
  with pytest.raises(ValueError, match="at least 2"):
    optimal_transport.Transport(np.ones((3, 2)))
  with pytest.raises(ValueError, match="length >= 1"):
    optimal_transport.histograms(np.zeros((2, 0), int))
