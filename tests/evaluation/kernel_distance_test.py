# SPDX-License-Identifier: Apache-2.0
"""KAD: against the definition over all pairs, in blocks, and its error."""

import numpy as np
import pytest

from musiclm_jax.evaluation import kernel_distance as kad


def distances(x, y):
  return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))


def direct(x, y, bandwidth=None):
  """The definition, pair by pair."""
  if bandwidth is None:
    bandwidth = np.median(distances(x, x)[np.triu_indices(len(x), 1)])
  gamma = 1 / (2 * bandwidth**2 + 1e-8)
  total = 0.0
  for one in (x, y):
    kernel = np.exp(-gamma * distances(one, one) ** 2)
    pairs = ~np.eye(len(one), dtype=bool)
    total += kernel[pairs].mean()
  return 100 * (total - 2 * np.exp(-gamma * distances(x, y) ** 2).mean())


@pytest.fixture(params=[2048, 7, 1])
def block(request, monkeypatch):
  monkeypatch.setattr(kad, "_BLOCK", request.param)


@pytest.mark.parametrize(
  "num_reference, num_evaluated", [(2, 2), (9, 4), (30, 41)]
)
def test_equals_the_definition(block, num_reference, num_evaluated):
  generator = np.random.default_rng(num_reference)
  x = generator.normal(size=(num_reference, 5)) + 10
  y = 1.3 * generator.normal(size=(num_evaluated, 5)) + 10.4
  assert kad.estimate(x, y).value == pytest.approx(direct(x, y), abs=1e-9)
  given = kad.estimate(x, y, bandwidth=0.7).value
  assert given == pytest.approx(direct(x, y, 0.7), abs=1e-9)
  # The bandwidth is the reference's, so that the order matters.
  if num_reference != 2:
    assert kad.estimate(y, x).value != pytest.approx(direct(x, y), abs=1e-3)


def test_without_each_group_is_the_estimate_of_the_others(block):
  generator = np.random.default_rng(0)
  x, y = generator.normal(size=(9, 5)), 1.2 * generator.normal(size=(11, 5))
  groups = np.array([0, 1, 2] * 3 + [2, 2])
  value, without = kad.estimate_without(x, y, groups, 0.7)
  assert value == pytest.approx(kad.estimate(x, y, 0.7).value, abs=1e-9)
  for group, one in enumerate(without):
    rest = kad.estimate(x, y[groups != group], 0.7).value
    assert one == pytest.approx(rest, abs=1e-9)
  alone = kad.estimate_without(x, y[:2], np.array([0, 1]), 0.7)[1]
  assert np.isnan(alone).all()
  with pytest.raises(ValueError, match=r"groups of shape \(2,\)"):
    kad.estimate_without(x, y, np.array([0, 1]), 0.7)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 12, 33])
def test_median_is_exact(block, count):
  generator = np.random.default_rng(count)
  vectors = np.round(generator.normal(size=(count, 2)), 1)  # With ties.
  expected = np.median(distances(vectors, vectors)[np.triu_indices(count, 1)])
  assert kad.median_distance(vectors) == pytest.approx(expected, abs=1e-7)


def test_median_between_two_far_bins():
  # Pairs: 1, 4, 5, 15, 19, 20; the middle two are far from each other.
  vectors = np.array([[0.0], [1.0], [5.0], [20.0]])
  assert kad.median_distance(vectors) == pytest.approx(10.0)


def test_known_answer_for_two_points():
  # Kernel exp(-1/2) for each pair at a distance of the bandwidth.
  x = np.array([[0.0], [1.0]])
  kernel = np.exp(-1 / (2 + 1e-8))
  # Own pairs: kernel each. Across: two at 0, two at 1.
  expected = 100 * (2 * kernel - 2 * (1 + kernel) / 2)
  assert kad.estimate(x, x).value == pytest.approx(expected, abs=1e-9)


def test_halves_of_one_set_are_at_0_within_the_error():
  generator = np.random.default_rng(0)
  found = []
  for _ in range(40):
    both = generator.normal(size=(120, 6))
    found.append(kad.estimate(both[:60], both[60:]))
  values = np.array([one.value for one in found])
  errors = np.array([one.standard_error for one in found])
  assert (np.abs(values) < 2 * errors).mean() >= 0.95
  assert abs(values.mean()) < 2 * values.std() / np.sqrt(40)
  assert (values < 0).any()  # It is not clipped.
  # Up to sqrt(2) too large where sets do not differ.
  assert 1.0 < errors.mean() / values.std() < 1.8


def test_error_where_sets_differ():
  generator = np.random.default_rng(1)
  found = [
    kad.estimate(
      generator.normal(size=(50, 6)), generator.normal(size=(70, 6)) + 0.6
    )
    for _ in range(60)
  ]
  spread = np.std([one.value for one in found])
  mean_error = np.mean([one.standard_error for one in found])
  assert mean_error == pytest.approx(spread, rel=0.3)
  interval = found[0].interval()
  assert interval.low < found[0].value == interval.mean < interval.high


def test_windows_of_one_clip_count_as_one():
  generator = np.random.default_rng(2)
  x, y = generator.normal(size=(40, 4)), generator.normal(size=(40, 4)) + 0.5
  alone = kad.estimate(x, y)
  clips = np.repeat(np.arange(40), 5)
  copies = x[clips] + 1e-3 * generator.normal(size=(200, 4))
  others = y[clips] + 1e-3 * generator.normal(size=(200, 4))
  blind = kad.estimate(copies, others)
  grouped = kad.estimate(copies, others, None, clips, clips)
  assert grouped.value == blind.value
  assert blind.standard_error < 0.6 * alone.standard_error
  assert grouped.standard_error == pytest.approx(alone.standard_error, rel=0.2)


def test_bad_input_is_named():
  x = np.random.default_rng(3).normal(size=(6, 3))
  with pytest.raises(ValueError, match="bandwidth=0.0"):
    kad.estimate(np.ones((4, 3)), x)
  with pytest.raises(ValueError, match="bandwidth=-1"):
    kad.estimate(x, x, -1)
  with pytest.raises(ValueError, match="evaluated of 2 dimensions: expected 3"):
    kad.estimate(x, x[:, :2])
  with pytest.raises(ValueError, match=r"reference of shape \(1, 3\)"):
    kad.estimate(x[:1], x)
  with pytest.raises(ValueError, match="2 groups: expected 6"):
    kad.estimate(x, x, None, [0, 1])
