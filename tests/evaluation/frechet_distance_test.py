# SPDX-License-Identifier: Apache-2.0
"""FAD: known answers, the public packages, statistics by parts, FAD-infinity.

Where `fadtk` or `frechet-audio-distance` is not installed, their answers come
from a file that `tests/support/public_frechet.py` wrote with both.
"""

import json

import numpy as np
import public_frechet
import pytest

from musiclm_jax.evaluation import frechet_distance as fad
from musiclm_jax.evaluation import gaussian_statistics, set_distances

Statistics = gaussian_statistics.GaussianStatistics


def gaussian(mean, covariance, count=1000):
  """Statistics of a Gaussian as if they had been measured."""
  return Statistics(
    count, np.asarray(mean), np.asarray(covariance) * (count - 1)
  )


def rotation(dim, seed=0):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def test_gaussians_with_known_answers():
  turn = rotation(5)
  first, second = np.array([4.0, 1, 9, 0.25, 1e-4]), np.array([1.0, 1, 4, 0, 1])
  shift = np.array([1.0, 0, -2, 0, 0.5])
  expected = (shift**2).sum() + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
  found = fad.frechet_distance(
    gaussian(np.zeros(5), turn @ np.diag(first) @ turn.T),
    gaussian(shift, turn @ np.diag(second) @ turn.T),
  )
  assert found == pytest.approx(expected, abs=1e-6)
  # Covariances that do not commute: 2 x 2 has the closed form
  # tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)).
  a, b = (
    np.array([[2.0, 0.9], [0.9, 1.0]]),
    np.array([[1.0, -0.4], [-0.4, 3.0]]),
  )
  product = a @ b
  root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
  expected = np.trace(a) + np.trace(b) - 2 * root
  found = fad.frechet_distance(gaussian([0, 0], a), gaussian([0, 0], b))
  assert found == pytest.approx(expected, abs=1e-6)


def test_singular_covariances_are_exact():
  generator = np.random.default_rng(0)
  first, second = (
    generator.normal(size=(20, 64)),
    generator.normal(size=(9, 64)),
  )
  assert fad.frechet_distance(first, first) == pytest.approx(0.0, abs=1e-10)
  # Without covariances: tr (S T)^(1/2) is the nuclear norm of X Y^T.
  x = (first - first.mean(0)) / np.sqrt(19)
  y = (second - second.mean(0)) / np.sqrt(8)
  expected = (
    ((first.mean(0) - second.mean(0)) ** 2).sum()
    + (x**2).sum()
    + (y**2).sum()
    - 2 * np.linalg.svd(x @ y.T, compute_uv=False).sum()
  )
  found = fad.frechet_distance(first, second)
  assert found == pytest.approx(expected, abs=1e-9)
  # All vectors alike: no covariance at all.
  alike = np.ones((3, 64))
  assert fad.frechet_distance(alike, alike + 0.5) == pytest.approx(16.0)


@pytest.mark.parametrize("package", public_frechet.FUNCTIONS)
def test_agrees_with_public_packages(package):
  distance = public_frechet.load(package)
  recorded = json.loads(public_frechet.FIXTURE.read_text())["distances"]
  for name in public_frechet.CASES:
    reference, evaluated = public_frechet.embeddings(name)
    found = fad.frechet_distance(reference, evaluated)
    answer = recorded[package][name]
    assert found == pytest.approx(answer, abs=1e-6), name
    if distance is not None:
      answer = distance(
        public_frechet.moments(reference), public_frechet.moments(evaluated)
      )
      assert found == pytest.approx(answer, abs=1e-6), name


def test_diagonal_leaves_covariances_out():
  generator = np.random.default_rng(1)
  x = generator.normal(size=(300, 3)) @ generator.normal(size=(3, 3))
  y = generator.normal(size=(200, 3)) * [1, 2, 3] + 1
  expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (
    (x.std(0, ddof=1) - y.std(0, ddof=1)) ** 2
  ).sum()
  found = fad.frechet_distance(x, y, diagonal=True)
  assert found == pytest.approx(expected, abs=1e-9)
  assert found < fad.frechet_distance(x, y)
  kept = Statistics.of(x, diagonal=True)
  assert fad.frechet_distance(kept, y, diagonal=True) == pytest.approx(found)
  with pytest.raises(ValueError, match="diagonal=True"):
    fad.frechet_distance(kept, y)


@pytest.mark.parametrize("diagonal", [False, True])
def test_statistics_by_parts_are_those_of_the_whole(diagonal):
  generator = np.random.default_rng(2)
  # Far from 0, where sums of squares would lose all digits.
  vectors = generator.normal(size=(1003, 6)) + 1e6
  whole = Statistics.of(vectors, diagonal)
  parts = np.split(vectors, [1, 2, 100, 640, 640])
  found = Statistics.over(iter(parts), diagonal)
  back = Statistics.over(reversed(parts), diagonal)
  covariance = np.cov(vectors - 1e6, rowvar=False)
  expected = np.diag(covariance) if diagonal else covariance
  for one in (whole, found, back):
    assert one.count == 1003
    np.testing.assert_allclose(one.mean, vectors.mean(0), rtol=1e-14)
    np.testing.assert_allclose(one.covariance, expected, atol=1e-9)
  assert fad.frechet_distance(found, whole, diagonal) < 1e-9


def test_memory_does_not_grow_with_batches():
  """10,000 clips pass through as a generator; only moments are held."""
  generator = np.random.default_rng(3)
  held = []

  def batches():
    for _ in range(100):
      batch = generator.normal(size=(100, 4))
      held.append(batch.sum(0))
      yield batch

  statistics = Statistics.over(batches())
  assert statistics.count == 10_000
  np.testing.assert_allclose(statistics.mean * 10_000, sum(held), atol=1e-8)
  assert statistics.mean.shape == (4,) and statistics.scatter.shape == (4, 4)


class Held:
  """A store of clips of some vectors each."""

  def __init__(self, clips):
    self.clips = clips

  def read(self, keys):
    return (self.clips[int(key)] for key in keys)


def test_interval_covers_what_other_samples_show():
  generator = np.random.default_rng(7)
  reference = Statistics.of(generator.normal(size=(4000, 4)))
  keys = [str(index) for index in range(80)]

  def sample():
    return generator.normal(size=(80, 1, 4)) * 1.2 + 0.4

  others = [fad.frechet_distance(reference, sample()[:, 0]) for _ in range(100)]
  samples = [sample() for _ in range(30)]
  found = [set_distances.frechet(Held(one), reference, keys) for one in samples]
  expected = np.mean(others)
  covered = np.mean([one.low <= expected <= one.high for one in found])
  assert covered > 0.8
  width = np.mean([one.high - one.low for one in found])
  # Student's t over 20 groups is wider than the normal law.
  assert width == pytest.approx(2 * 2.09 * np.std(others), rel=0.3)
  # Five copies of a vector in a clip are no five clips.
  copies = set_distances.frechet(Held(samples[0].repeat(5, 1)), reference, keys)
  same = copies.high - copies.low
  assert same == pytest.approx(found[0].high - found[0].low, rel=0.1)


def halves(dim, count, seed):
  generator = np.random.default_rng(seed)
  vectors = generator.normal(size=(2 * count, dim)) @ rotation(dim, seed)
  return vectors[:count], vectors[count:]


def test_halves_of_one_set_are_at_0_after_extrapolation():
  found = [fad.extrapolated(*halves(12, 1000, seed), seed) for seed in range(6)]
  values = np.array([one.value for one in found])
  finite = np.array([one.finite_value for one in found])
  assert finite.min() > 0.07  # About (2 * 12 + 12 * 13 / 2) / 1000.
  assert abs(values.mean()) < 0.15 * finite.mean()
  assert all(one.r_squared > 0.6 and one.slope > 0 for one in found)
  assert found[0].sizes[0] == 500 and found[0].sizes[-1] == 1000
  assert len(found[0].distances) == len(found[0].sizes) == 25
  assert found[0].distances[-1] == pytest.approx(found[0].finite_value)


def test_extrapolation_finds_a_known_distance_and_the_published_draws_do_not():
  def gap(seed, **options):
    first, second = halves(12, 1000, seed)
    return fad.extrapolated(first, second + 0.1, seed, **options).value - 0.12

  seeds = range(6)
  ours = np.mean([gap(seed) for seed in seeds])
  published = np.mean(
    [gap(seed, replacement=True, fixed_reference=True) for seed in seeds]
  )
  assert abs(ours) < 0.02
  # Its line ends at the plain FAD, with all of the bias.
  assert published > 0.07


def test_extrapolation_against_statistics_of_a_large_reference():
  generator = np.random.default_rng(4)
  reference = Statistics.over(
    generator.normal(size=(5000, 8)) for _ in range(4)
  )
  evaluated = generator.normal(size=(900, 8)) + 0.2
  found = fad.extrapolated(reference, evaluated, fixed_reference=True)
  assert found.value == pytest.approx(8 * 0.04, abs=0.06)
  assert found.finite_value > found.value
  again = fad.extrapolated(reference, evaluated, fixed_reference=True)
  assert found == again
  assert json.loads(json.dumps(found.to_dict()))["value"] == found.value
  with pytest.raises(ValueError, match="fixed_reference=True"):
    fad.extrapolated(reference, evaluated)


def test_line_fit_is_exact_where_the_points_are_on_a_line():
  places = 1 / np.arange(500, 525)
  intercept, r_squared, slope, error = fad._fit_line(places, 3 + 70 * places)
  assert (intercept, r_squared) == (pytest.approx(3), pytest.approx(1))
  assert slope == pytest.approx(70) and error == pytest.approx(0, abs=1e-9)


def test_per_song_finds_the_outlier():
  generator = np.random.default_rng(5)
  reference = generator.normal(size=(2000, 6))
  songs = [generator.normal(size=(30 + i, 6)) for i in range(8)]
  songs[3] = songs[3] + 3
  songs[6] = songs[6][:1]
  found = fad.per_song(reference, songs)
  assert np.isnan(found[6]) and np.isfinite(np.delete(found, 6)).all()
  assert np.nanargmax(found) == 3
  assert found[0] == fad.frechet_distance(reference, songs[0])


@pytest.mark.parametrize(
  "call, match",
  [
    (
      lambda x: fad.frechet_distance(x, x[:, :2]),
      "of 2 dimensions: expected 3",
    ),
    (lambda x: fad.frechet_distance(x[:1], x), r"shape \(1, 3\)"),
    (lambda x: fad.frechet_distance(x, x * np.nan), "row 0 has NaN"),
    (lambda x: fad.extrapolated(x, x, num_sizes=2), "num_sizes=2"),
    (lambda x: fad.extrapolated(x, x, smallest_size=20), "smallest_size=20"),
    (lambda x: fad.extrapolated(x[:4], x, smallest_size=3), "at least 2 of 4"),
    (lambda x: Statistics.over([]), "no vectors"),
    (lambda x: Statistics.of(x[:1]).covariance, "count=1"),
    (lambda x: Statistics.of(x).merge(Statistics.of(x[:, :2])), "scatter"),
    (lambda x: Statistics(0, x[0], x[0]), "count=0"),
  ],
)
def test_bad_input_is_named(call, match):
  with pytest.raises(ValueError, match=match):
    call(np.random.default_rng(6).normal(size=(20, 3)))
