# SPDX-License-Identifier: Apache-2.0
"""Residual vector quantization with fixed codebooks."""

import numpy as np

from musiclm_jax.core import rvq


def test_error_falls_with_levels_and_codes_are_nearest():
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(50, 4)).astype(np.float32)
  codebooks = np.stack(
    [rng.normal(size=(64, 4)) / 2.0**level for level in range(5)]
  ).astype(np.float32)
  codebooks[:, 0] = 0  # a level may always add nothing
  codes = rvq.encode(vectors, codebooks)
  assert codes.shape == (50, 5) and codes.dtype == np.int32
  errors = [
    np.square(vectors - rvq.decode(codes[:, :n], codebooks)).mean()
    for n in range(1, 6)
  ]
  assert all(b <= a for a, b in zip(errors, errors[1:]))
  assert errors[-1] < 0.2 * errors[0]
  distance = np.square(vectors[:, None] - codebooks[0]).sum(-1)
  np.testing.assert_array_equal(codes[:, 0], distance.argmin(-1))


def test_planted_codes_are_recovered():
  rng = np.random.default_rng(1)
  codebooks = np.stack(
    [rng.normal(size=(8, 16)) * 0.05**level for level in range(3)]
  ).astype(np.float32)
  codes = rng.integers(0, 8, (20, 3), dtype=np.int32)
  np.testing.assert_array_equal(
    rvq.encode(rvq.decode(codes, codebooks), codebooks), codes
  )
