# SPDX-License-Identifier: Apache-2.0
"""Matches, their intervals and the threshold set on permuted pairs."""

import numpy as np
import pytest

from musiclm_jax.core import errors
from musiclm_jax.evaluation import memorization, optimal_transport

NUM_CODES, FRAMES = 64, 30


@pytest.fixture(scope="module")
def transport():
  rng = np.random.default_rng(1)
  return optimal_transport.Transport(rng.normal(size=(NUM_CODES, 8)))


def _tokens(num_examples, num_lengths=2, seed=0):
  """Targets of few tokens each, and continuations that are nothing like."""
  rng = np.random.default_rng(seed)
  shape = (num_examples, num_lengths, FRAMES)
  own = rng.integers(0, NUM_CODES, (2, num_examples, num_lengths, 4))
  places = rng.integers(0, 4, (2, *shape))
  return [np.take_along_axis(o, p, -1) for o, p in zip(own, places)]


def _groups(count, size=2):
  return [f"work {index // size}" for index in range(count)]


def test_all_tokens_have_to_be_equal():
  target = np.arange(24).reshape(2, 3, 4)
  generated = target.copy()
  generated[1, 2, 3] += 1
  found = memorization.exact_matches(generated, target)
  np.testing.assert_array_equal(found, [[True] * 3, [True, True, False]])
  with pytest.raises(ValueError, match="expected"):
    memorization.exact_matches(generated[:1], target)


def test_rates_have_intervals_even_without_a_match():
  # Wilson's: the rates that 1.96 deviations of their own leave possible.
  for count, total in ((7, 50), (0, 198), (1, 10)):
    rate, low, high = memorization.rate_interval(count, total)
    assert rate == count / total
    for end in (low, high) if count else (high,):
      deviation = (end * (1 - end) / total) ** 0.5
      assert abs(rate - end) == pytest.approx(1.959964 * deviation, rel=1e-6)
  assert memorization.rate_interval(0, 198)[1] == 0
  assert memorization.rate_interval(5, 5)[2] == 1.0
  # The rule of three, and the 95 % limits of Poisson means 0, 1 and 5.
  limits = [memorization.highest_rate(k, 1000) for k in (0, 1, 5)]
  assert limits == pytest.approx([2.9957e-3, 4.7439e-3, 10.513e-3], rel=1e-3)
  assert memorization.num_pairs_needed() == 29_958
  assert memorization.num_allowed(29_000) == 0
  assert memorization.num_allowed(50_000) == 1


def test_pairs_are_of_different_works_and_all_different():
  groups = _groups(9, 3)
  pairs = memorization.permuted_pairs(groups, 4, 10_000, 0)
  assert len(pairs) == 9 * 6 * 4  # there are no more
  assert len(np.unique(pairs, axis=0)) == len(pairs)
  assert all(groups[a] != groups[b] for a, b, _ in pairs)
  few = memorization.permuted_pairs(groups, 4, 50, 0)
  assert few.shape == (50, 3)
  assert not np.array_equal(few, memorization.permuted_pairs(groups, 4, 50, 1))


def test_threshold_is_below_what_permuted_pairs_cost(transport):
  generated, targets = _tokens(60)
  groups = _groups(60)
  one = memorization.calibrate(transport, generated, targets, groups)
  pairs = memorization.permuted_pairs(groups, 2, 100_000, 0)
  half = (len(pairs) + 1) // 2
  first, second = (
    optimal_transport.histograms(tokens[pairs[:, row], pairs[:, 2]])
    for row, tokens in enumerate((generated, targets))
  )
  # All of them, without the bounds that spare most.
  costs = transport.costs(first, second)
  assert one.tau == pytest.approx(costs[:half].min(), rel=1e-4)
  assert (one.num_pairs, one.num_false) == (half, 0)
  assert one.num_check_false == (costs[half:] < one.tau).sum()
  assert one.num_check_pairs == len(pairs) - half
  # 60 examples make too few pairs, and that is said.
  assert one.num_pairs < one.num_pairs_needed
  assert f"{half} permuted pairs" in one.warnings[0]
  assert one.highest_rate == pytest.approx(2.9957 / half, rel=1e-3)


def test_some_false_matches_are_allowed_among_many_pairs(transport):
  generated, targets = _tokens(40)
  pairs = memorization.calibrate(
    transport, generated, targets, _groups(40), max_rate=0.01
  )
  # Of 1520 pairs, 8 leave a rate of up to 0.95 %.
  assert pairs.num_pairs == 1520 and pairs.num_false == 8
  assert pairs.highest_rate < 0.01
  assert pairs.check_rate < 0.01 and not pairs.warnings


def test_clips_that_sound_alike_are_told(transport):
  generated, targets = _tokens(40)
  generated[:] = targets[:] = 5  # the same silence everywhere
  one = memorization.calibrate(transport, generated, targets, _groups(40))
  assert one.tau < 1e-3 * transport.mean_distance
  assert "equal histograms" in one.warnings[-1]
  same = memorization.calibrate(
    transport, generated, targets, _groups(40), tau=1.0
  )
  assert same.source == "given" and same.check_rate == 1
  assert "count as matches" in same.warnings[0]


def test_one_work_cannot_be_permuted(transport):
  generated, targets = _tokens(3)
  with pytest.raises(errors.UserError, match="different works"):
    memorization.calibrate(transport, generated, targets, ["a"] * 3)
  one = memorization.calibrate(
    transport, generated, targets, ["a"] * 3, tau=0.5
  )
  assert (one.tau, one.num_check_pairs) == (0.5, 0)
  # Clips of which no work is known are works of their own.
  assert memorization.calibrate(transport, generated, targets, [""] * 3).tau


def test_curve_and_gate():
  exact = np.array([[False, False]] * 9 + [[False, True]])
  costs = np.array([[5.0, 4.0]] * 8 + [[5.0, 0.1], [5.0, 0.2]])
  entropies = np.array([[3.0, 3.0]] * 8 + [[3.0, 1.0], [3.0, 2.0]])
  costs[9, 1] = 9.0  # an exact match is an approximate one, whatever it costs
  rows = memorization.curve([0, 50], exact, costs, entropies, tau=0.5)
  assert [row["num_exact"] for row in rows] == [0, 1]
  assert [row["num_approximate"] for row in rows] == [0, 2]
  assert rows[0]["match_entropy_bits"] is None
  assert rows[1]["match_entropy_bits"]["mean"] == 1.5
  assert rows[1]["approximate"]["low"] < 0.2 < rows[1]["approximate"]["high"]
  assert memorization.check_gate(rows, None, None) == []
  assert memorization.check_gate(rows, 0.1, 0.2) == []
  exceeded = memorization.check_gate(rows, 0.002, 0.01)
  assert exceeded[0] == (
    "10.000% exact matches (1 of 10 at 50 prompt tokens) exceed "
    "--max_exact=0.002"
  )
  assert len(exceeded) == 2
