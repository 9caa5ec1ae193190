# SPDX-License-Identifier: Apache-2.0
"""Runs become one code, and what is left out becomes padding."""

import itertools

import numpy as np
import pytest

from musiclm_jax.core import unique_codes

SIZE, END = 3, 3


def _expected(row, end_code, pad_in_front):
  """By groups of equal neighbours."""
  kept = [code for code, _ in itertools.groupby(row) if 0 <= code < SIZE]
  if end_code is not None and len(kept) < len(row):
    kept.append(end_code)
  padding = [-1] * (len(row) - len(kept))
  return padding + kept if pad_in_front else kept + padding


@pytest.mark.parametrize(
  "end_code, pad_in_front", [(None, False), (END, False), (None, True)]
)
def test_runs_become_one_code(end_code, pad_in_front):
  rows = np.random.default_rng(0).integers(0, SIZE, (2, 20, 9), np.int32)
  rows[:, :5, 6:] = -1  # Clips that end before the crop does.
  rows[:, 5] = [0, 1, 0, 1, 0, 1, 0, 1, 0]  # No room for an end.
  rows[:, 6] = 2
  rows[:, 7] = -1
  found = unique_codes.collapse(
    rows[..., np.newaxis], SIZE, end_code, pad_in_front
  )
  expected = [
    [_expected(row, end_code, pad_in_front) for row in part] for part in rows
  ]
  np.testing.assert_array_equal(found[..., 0], expected)
  assert found.dtype == np.int32
  again = unique_codes.collapse(found, SIZE, end_code, pad_in_front)
  np.testing.assert_array_equal(again, found)
  if end_code is None and not pad_in_front:
    np.testing.assert_array_equal(
      unique_codes.lengths(found), (np.array(expected) >= 0).sum(-1)
    )
