# SPDX-License-Identifier: Apache-2.0
"""The decode loop on a small step function whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.decoding import autoregressive, sampling

OFFSETS = np.array([2, 7], np.int32)
SIZE = 5


def _run(first_hidden, forced=None, num_forced=0, **parts):
  """Each level's code is (last token + level) mod SIZE, greedily."""

  def step(cache, token):
    return cache + 1, token[:, None].astype(jnp.float32)

  def logits(hidden, level):
    wanted = (hidden[:, 0].astype(jnp.int32) + level) % SIZE
    return jax.nn.one_hot(wanted, SIZE)

  batch = len(first_hidden)
  return autoregressive.decode(
    step,
    logits,
    jnp.int32(0),
    jnp.asarray(first_hidden, jnp.float32)[:, None],
    jax.random.split(jax.random.key(0), batch),
    jnp.zeros(batch, jnp.int32),
    OFFSETS,
    3,
    sampling.SamplingConfig(0.0),
    forced,
    num_forced,
    **parts,
  )


def _expected(hidden):
  codes = []
  for _ in range(3):
    for level in range(2):
      codes.append((hidden + level) % SIZE)
      hidden = codes[-1] + OFFSETS[level]
  return np.reshape(codes, (3, 2))


def test_levels_cycle_and_tokens_carry_level_offsets():
  codes, cache = _run([0, 3])
  np.testing.assert_array_equal(codes, [_expected(0), _expected(3)])
  assert int(cache) == 6


def test_codes_without_repeats_end_and_stay_ended():
  # Row by row, what the network wants at each position; 3 is the end.
  wanted = jnp.array(
    [[3, 1, 1, 1, 3, 0], [2, 2, 2, 3, 1, 1], [0, 3, 0, 1, 2, 0]]
  )

  def logits(hidden, level):
    at = jnp.take_along_axis(wanted, hidden.astype(jnp.int32), axis=1)
    # A second choice: the next code.
    return jax.nn.one_hot(at[:, 0], 4) + 0.5 * jax.nn.one_hot(at[:, 0] + 1, 4)

  codes, _ = autoregressive.decode(
    lambda cache, token: (cache + 1, jnp.full((3, 1), cache + 1.0)),
    logits,
    jnp.int32(0),
    jnp.zeros((3, 1)),
    jax.random.split(jax.random.key(0), 3),
    jnp.zeros(3, jnp.int32),
    OFFSETS[:1],
    6,
    sampling.SamplingConfig(0.0),
    jnp.array([[[1]], [[0]], [[0]]]).repeat(6, 1),
    jnp.array([0, 2, 0]),
    end_code=3,
  )
  # First: the end is not the begin, no code twice. Second: two are given.
  expected = [[0, 1, 2, 1, -1, -1], [0, 0, 2, -1, -1, -1], [0] + [-1] * 5]
  np.testing.assert_array_equal(codes[..., 0], expected)


def test_loops_go_on_where_the_one_before_ended():
  grown = []

  def grow(cache, num_steps):
    grown.append(num_steps)
    return cache

  forced = jnp.full((2, 3, 2), 2)
  whole, _ = _run([0, 3], forced, jnp.int32(2))
  codes, cache = _run([0, 3], forced, jnp.int32(2), parts=(1, 2), grow_fn=grow)
  np.testing.assert_array_equal(codes, whole)
  assert grown == [2, 3] and int(cache) == 6


def test_forced_frames_are_taken_and_continued_from():
  forced = np.zeros((1, 3, 2), np.int32)
  forced[0, 0] = [4, 1]
  codes, _ = _run([0], jnp.asarray(forced), jnp.int32(1))
  np.testing.assert_array_equal(codes[0, 0], [4, 1])
  assert int(codes[0, 1, 0]) == (1 + OFFSETS[1]) % SIZE
