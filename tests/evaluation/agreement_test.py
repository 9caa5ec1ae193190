# SPDX-License-Identifier: Apache-2.0
"""Krippendorff's alpha of data whose alpha is published."""

import numpy as np
import pytest

from musiclm_jax.evaluation import agreement

_ = np.nan
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example D.
RATINGS = np.array(
  [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
  ]
)


@pytest.mark.parametrize(
  "metric, expected",
  [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)],
)
def test_published_example(metric, expected):
  value = agreement.krippendorff_alpha(RATINGS, metric)
  np.testing.assert_allclose(value, expected, atol=5e-4)


def test_extremes():
  same = np.array([[1, 2, 3], [1, 2, 3]])
  np.testing.assert_allclose(agreement.krippendorff_alpha(same), 1.0)
  assert agreement.krippendorff_alpha(np.array([[1, 3], [3, 1]])) < 0
  random = np.random.default_rng(0).integers(-2, 3, (3, 4000))
  assert abs(agreement.krippendorff_alpha(random)) < 0.03
  # Nobody shares a unit; nobody differs.
  assert np.isnan(agreement.krippendorff_alpha(np.array([[1, _], [_, 2]])))
  assert np.isnan(agreement.krippendorff_alpha(np.ones((2, 3))))


def test_refuses():
  with pytest.raises(ValueError, match="metric='ratio'"):
    agreement.krippendorff_alpha(RATINGS, "ratio")
  with pytest.raises(ValueError, match="2 axes"):
    agreement.krippendorff_alpha(RATINGS[0])
