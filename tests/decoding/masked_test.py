# SPDX-License-Identifier: Apache-2.0
"""Masked decoding on a hand-made model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.decoding import masked, sampling

FRAMES, LEVELS, SIZE = 10, 3, 4


def test_the_surest_unknown_frames_become_known():
  confidence = jnp.array([[0.1, 0.9, 0.5, 0.7], [0.3, 0.2, 0.4, 0.1]])
  unknown = jnp.array([[True, False, True, True], [True, True, False, False]])
  found = masked.surest(confidence, unknown, jnp.array([1, 2]))
  np.testing.assert_array_equal(
    found, [[False, False, True, True], [False, False, False, False]]
  )


def test_passes_go_through_the_levels_and_leave_ever_less_unknown():
  counts = []

  def logits(codes, hidden, level):
    jax.debug.callback(
      lambda hidden, level: counts.append((int(level), hidden.sum((0, 1)))),
      hidden,
      level,
      ordered=True,
    )
    return jnp.zeros((*codes.shape[:2], SIZE))

  codes = jnp.zeros((1, FRAMES, LEVELS), jnp.int32)
  known = jnp.zeros(codes.shape, bool).at[:, :2].set(True)
  keys = jax.vmap(jax.random.key)(np.arange(1))
  out = masked.decode(
    logits, codes.at[:, :2].set(3), known, keys, jnp.zeros(1, jnp.int32),
    masked.MaskedSchedule((4, 1, 1)), (sampling.SamplingConfig(),) * 3,
  )  # fmt: skip
  jax.effects_barrier()
  assert [level for level, _ in counts] == [0, 0, 0, 0, 1, 2]
  # Of 8 unknown frames, cos(pi / 2 * i / 4) stay: 7, 5, 3, 0.
  assert [list(left) for _, left in counts] == [
    [8, 8, 8], [7, 8, 8], [5, 8, 8], [3, 8, 8], [0, 8, 8], [0, 0, 8],
  ]  # fmt: skip
  assert (np.asarray(out)[:, :2] == 3).all()


def test_codes_are_drawn_from_the_logits_and_single_passes_are_greedy():
  chances = np.array([0.5, 0.3, 0.15, 0.05])
  logits = jnp.log(jnp.asarray(chances, jnp.float32))
  items = 200
  keys = jax.vmap(jax.random.key)(np.arange(items))
  draw = jax.jit(
    lambda first: masked.decode(
      lambda codes, hidden, level: jnp.broadcast_to(
        logits, (*codes.shape[:2], SIZE)
      ),
      jnp.zeros((items, FRAMES, 2), jnp.int32),
      jnp.zeros((items, FRAMES, 2), bool),
      keys,
      jnp.full(items, first),
      masked.MaskedSchedule((FRAMES, 1), choice_noise=1e9),
      (sampling.SamplingConfig(1.0),) * 2,
    )
  )
  codes = np.asarray(draw(0))
  assert (codes[..., 1] == 0).all()
  # With the choice of frames left to chance, codes are plain samples.
  found = (
    np.bincount(codes[..., 0].ravel(), minlength=SIZE) / codes[..., 0].size
  )
  np.testing.assert_allclose(found, chances, atol=0.03)
  # Frames know where in the item they are.
  assert (np.asarray(draw(5)) != codes).any()


def test_levels_must_agree():
  with pytest.raises(ValueError, match="passes"):
    masked.decode(
      None, np.zeros((1, 2, 3), np.int32), np.zeros((1, 2, 3), bool), None,
      None, masked.MaskedSchedule((1, 1)), (sampling.SamplingConfig(),) * 3,
    )  # fmt: skip
  with pytest.raises(ValueError, match=r"passes=\(0,\)"):
    masked.MaskedSchedule((0,))
  assert sum(masked.published(12).passes) == 27
