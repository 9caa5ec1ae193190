# SPDX-License-Identifier: Apache-2.0
"""Text mappers on pairs whose gap is known."""

import numpy as np
import pytest

from musiclm_jax.core import errors
from musiclm_jax.systems import text_mapper


def _pairs(num_works=60, per_work=4, dim=12, noise=0.05, seed=0):
  """Text is audio, turned by a fixed matrix and moved, with noise."""
  generator = np.random.default_rng(seed)
  turn = np.random.default_rng(99).normal(size=(dim, dim)) / dim**0.5
  offset = np.random.default_rng(98).normal(size=dim)
  audio = text_mapper.unit(
    generator.normal(size=(num_works, dim)).repeat(per_work, 0) + 1.0
  )
  text = audio @ turn + offset + noise * generator.normal(size=audio.shape)
  works = np.repeat([f"work {index}" for index in range(num_works)], per_work)
  return text_mapper.unit(text), audio, works


def _cosine(first, second):
  return float((first * second).sum(-1).mean())


def test_mappers_close_a_known_gap_on_other_works():
  text, audio, works = _pairs()
  other_text, other_audio, _ = _pairs(seed=1)
  plain = _cosine(other_text, other_audio)
  shift, report = text_mapper.fit("shift", text, audio, works)
  assert report == {"kind": "shift", "num_pairs": 240}
  shifted = shift(other_text)
  np.testing.assert_allclose(np.linalg.norm(shifted, axis=-1), 1, rtol=1e-5)
  ridge, report = text_mapper.fit("ridge", text, audio, works)
  assert report["strength"] <= 0.1 and shifted.dtype == np.float32
  assert plain < 0.3 < _cosine(shifted, other_audio) - 0.3
  assert (
    _cosine(ridge(other_text), other_audio)
    > _cosine(shifted, other_audio) + 0.05
  )


def test_strong_penalty_is_the_shift_and_none_is_least_squares():
  text, audio, works = _pairs()
  shift, _ = text_mapper.fit("shift", text, audio, works)
  strong, _ = text_mapper.fit("ridge", text, audio, works, strength=1e9)
  np.testing.assert_allclose(strong(text), shift(text), atol=1e-4)
  free, _ = text_mapper.fit("ridge", text, audio, works, strength=1e-9)
  padded = np.concatenate([text, np.ones((len(text), 1))], 1)
  solution = np.linalg.lstsq(padded, audio, rcond=None)[0]
  np.testing.assert_allclose(
    free(text), text_mapper.unit(padded @ solution), atol=1e-3
  )


def test_few_works_get_a_stronger_penalty():
  many = text_mapper.fit("ridge", *_pairs(60, 4, noise=0.3))[1]
  # Copies of the same few works are no more evidence than the works.
  few = text_mapper.fit("ridge", *_pairs(4, 60, noise=0.3))[1]
  assert few["strength"] > many["strength"]


def test_arrays_round_trip_and_bad_input():
  text, audio, works = _pairs()
  for kind in ("shift", "ridge"):
    mapper, _ = text_mapper.fit(kind, text, audio, works)
    again = text_mapper.TextMapper.from_arrays(mapper.to_arrays())
    np.testing.assert_array_equal(again(text), mapper(text))
  assert text_mapper.fit("none", text, audio, works)[0] is None
  with pytest.raises(ValueError, match="text_mapper='affine'"):
    text_mapper.fit("affine", text, audio, works)
  with pytest.raises(ValueError, match="strength=-1"):
    text_mapper.fit("ridge", text, audio, works, -1)
  with pytest.raises(errors.UserError, match="3 pairs"):
    text_mapper.fit("shift", text[:3], audio[:3], works[:3])
  with pytest.raises(ValueError, match="kernel"):
    text_mapper.TextMapper(np.zeros(3), np.zeros((3, 2)))
  with pytest.raises(ValueError, match="NaN"):
    text_mapper.TextMapper(np.array([np.nan]))
