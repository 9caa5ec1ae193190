# SPDX-License-Identifier: Apache-2.0
"""N-gram baselines against chains of known entropy."""

import time

import numpy as np
import pytest

from musiclm_jax.evaluation import ngram


def _chain(transition, num_clips, length, seed):
  """Samples a Markov chain, int32 `[clips, length]`."""
  generator = np.random.default_rng(seed)
  cumulative = transition.cumsum(-1)
  state = generator.integers(0, len(transition), num_clips)
  out = np.empty((num_clips, length), np.int32)
  for index in range(length):
    draw = generator.random((num_clips, 1))
    state = (draw > cumulative[state]).sum(-1).clip(max=len(transition) - 1)
    out[:, index] = state
  return out


def _entropy_rate(transition):
  values, vectors = np.linalg.eig(transition.T)
  stationary = np.real(vectors[:, np.argmax(np.real(values))])
  stationary /= stationary.sum()
  by_state = -(transition * np.log(transition)).sum(-1)
  entropy = -(stationary * np.log(stationary)).sum()
  return float(stationary @ by_state), float(entropy)


def test_bigram_reaches_the_entropy_rate_and_unigram_the_entropy():
  transition = np.random.default_rng(0).dirichlet(np.full(12, 0.3), 12)
  transition = 0.98 * transition + 0.02 / 12
  rate, entropy = _entropy_rate(transition)
  train = _chain(transition, 100, 400, 1)[..., None]
  heldout = _chain(transition, 100, 400, 2)[..., None]
  bigram = ngram.fit_bigram(train, 12)
  unigram = ngram.fit_unigram(train, 12)
  assert ngram.cross_entropy(bigram, heldout) == pytest.approx(rate, abs=0.02)
  assert ngram.cross_entropy(unigram, heldout) == pytest.approx(
    entropy, abs=0.02
  )
  assert rate < entropy - 0.3


def test_context_is_the_level_below_and_then_the_frame_before():
  generator = np.random.default_rng(3)
  # Level 1 copies level 0; level 0 follows the LAST level of the frame before.
  codes = np.empty((60, 50, 2), np.int32)
  codes[:, 0, 0] = generator.integers(0, 8, 60)
  for frame in range(50):
    if frame:
      codes[:, frame, 0] = (codes[:, frame - 1, 1] + 1) % 8
    codes[:, frame, 1] = (codes[:, frame, 0] * 3) % 8
  model = ngram.fit_bigram(codes[:40], 8)
  levels = ngram.cross_entropy_per_level(model, codes[40:])
  assert levels[1] < 0.01
  # Only the first token of a clip is uncertain: ln 8 in 50 tokens.
  assert levels[0] == pytest.approx(np.log(8) / 50, abs=0.02)


@pytest.mark.parametrize("smoothing", list(ngram._BIGRAM_GRID))
def test_probabilities_sum_to_one_in_seen_and_unseen_contexts(smoothing):
  train = np.random.default_rng(4).integers(0, 5, (4, 6, 1)).astype(np.int32)
  train[train == 4] = 3  # Code 4 is never seen: an unseen context.
  train = np.concatenate([train, np.full_like(train, 3)])
  tokens = ngram._flatten(train, 5)[0]
  level = ngram._count(tokens, 5, 0.5)
  for weight in ngram._BIGRAM_GRID[smoothing]:
    for context in range(6):
      row = ngram._Tokens(np.arange(5), np.full(5, context))
      seen = ngram._look_up(level, row, 5)
      total = ngram._interpolate(smoothing, float(weight), *seen).sum()
      assert total == pytest.approx(1.0)


def test_padding_is_neither_token_nor_context():
  codes = np.random.default_rng(5).integers(0, 6, (20, 9, 2)).astype(np.int32)
  padded = np.concatenate([codes, np.full((20, 4, 2), -1, np.int32)], axis=1)
  model = ngram.fit_bigram(codes, 6)
  again = ngram.fit_bigram(padded, 6)
  assert ngram.cross_entropy(model, codes) == pytest.approx(
    ngram.cross_entropy(again, padded)
  )
  ragged = [clip[: 3 + index % 5] for index, clip in enumerate(codes)]
  count = sum(len(level) for level in ngram.token_nats(model, ragged))
  assert count == sum(clip.size for clip in ragged)
  # A clip's first token must not see the clip before it.
  alone = [ngram.token_nats(model, [clip])[0] for clip in ragged]
  np.testing.assert_allclose(
    np.concatenate(alone), ngram.token_nats(model, ragged)[0]
  )


def test_sparse_data_is_smoothed_well_below_uniform_and_never_infinite():
  generator = np.random.default_rng(6)
  train = generator.zipf(1.5, (30, 40, 2)).clip(max=1024) - 1
  heldout = generator.zipf(1.5, (10, 40, 2)).clip(max=1024) - 1
  unigram = ngram.fit_unigram(train, 1024)
  bigram = ngram.fit_bigram(train, 1024, heldout)
  one = ngram.cross_entropy(unigram, heldout)
  two = ngram.cross_entropy(bigram, heldout)
  assert np.isfinite([one, two]).all()
  assert one < 0.75 * np.log(1024)
  # Independent codes: a fair bigram falls back to the unigram.
  assert two == pytest.approx(one, abs=0.1)


def test_a_million_tokens_take_seconds():
  codes = np.random.default_rng(7).integers(0, 1024, (250, 500, 8))
  start = time.monotonic()
  model = ngram.fit_bigram(codes, 1024)
  assert ngram.cross_entropy(model, codes[:20]) > 0
  assert time.monotonic() - start < 30


def test_bad_codes_are_named():
  good = np.zeros((3, 4, 2), np.int32)
  with pytest.raises(ValueError, match="codebook_size=4"):
    ngram.fit_unigram(good + 4, 4)
  with pytest.raises(ValueError, match="at least 1 token"):
    ngram.fit_unigram(good - 1, 4, good)
  with pytest.raises(ValueError, match="at least 2 clips"):
    ngram.fit_unigram(good[:1], 4)
  model = ngram.fit_unigram(good, 4)
  with pytest.raises(ValueError, match="has 2"):
    ngram.cross_entropy(model, good[..., :1])
