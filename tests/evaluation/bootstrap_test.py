# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals: coverage, pairing, seeds."""

import numpy as np
import pytest

from musiclm_jax.evaluation import bootstrap


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
  generator = np.random.default_rng(0)
  covered = 0
  for trial in range(300):
    values = generator.normal(3.0, 2.0, 60)
    interval = bootstrap.mean_interval(values, 400, 0.9, seed=trial)
    covered += interval.low <= 3.0 <= interval.high
  assert 0.83 < covered / 300 < 0.95


def test_width_is_that_of_the_normal_interval():
  values = np.random.default_rng(1).normal(0, 1, 400)
  interval = bootstrap.mean_interval(values, 4000)
  expected = 2 * 1.96 * values.std() / np.sqrt(400)
  assert interval.high - interval.low == pytest.approx(expected, rel=0.1)
  assert interval.mean == values.mean()


def test_same_seed_same_interval_and_chunks_do_not_matter(monkeypatch):
  values = np.random.default_rng(2).normal(size=50)
  first = bootstrap.mean_interval(values, 500, seed=7)
  assert first == bootstrap.mean_interval(values, 500, seed=7)
  assert first != bootstrap.mean_interval(values, 500, seed=8)
  monkeypatch.setattr(bootstrap, "_CHUNK_VALUES", 120)
  assert bootstrap.mean_interval(values, 500, seed=7) == first


def test_pairing_sees_a_difference_that_overlapping_intervals_hide():
  generator = np.random.default_rng(3)
  common = generator.normal(0, 5, 80)
  first = common + 0.2 + generator.normal(0, 0.1, 80)
  alone = bootstrap.mean_interval(first), bootstrap.mean_interval(common)
  assert alone[0].low < alone[1].high
  difference = bootstrap.paired_difference(first, common)
  assert difference.low > 0.15
  assert difference.high < 0.25


@pytest.mark.parametrize(
  "values, kwargs, match",
  [
    ([], {}, "items >= 1"),
    ([[1.0]], {}, "items >= 1"),
    ([1.0, float("nan")], {}, "NaN"),
    ([1.0], {"confidence": 1.0}, "confidence=1.0"),
    ([1.0], {"num_resamples": 0}, "num_resamples=0"),
  ],
)
def test_bad_input_is_named(values, kwargs, match):
  with pytest.raises(ValueError, match=match):
    bootstrap.mean_interval(values, **kwargs)


def test_unequal_lengths_are_refused():
  with pytest.raises(ValueError, match="as first"):
    bootstrap.paired_difference(np.ones(3), np.ones(2))


def test_jackknife_of_a_mean_is_the_t_interval():
  values = np.random.default_rng(3).normal(size=20)
  without = np.array([np.delete(values, i).mean() for i in range(20)])
  interval = bootstrap.jackknife_interval(values.mean(), without)
  reach = 2.093024 * values.std(ddof=1) / np.sqrt(20)  # t of 19 degrees
  assert interval.high - interval.mean == pytest.approx(reach, rel=1e-5)
  assert interval.mean - interval.low == pytest.approx(reach, rel=1e-5)
  for few in (without[:2], np.append(without, np.nan)):
    ends = bootstrap.jackknife_interval(1.0, few)[1:]
    assert np.isnan(ends).all()
