# SPDX-License-Identifier: Apache-2.0
"""Text vocabularies: determinism, ids, errors."""

import numpy as np
import pytest
import sentencepiece

from musiclm_jax.core import errors, vocabularies
from musiclm_jax.data import text_vocabulary

_CAPTIONS = [
  f"A {mood} {instrument} plays a {speed} melody in {key}"
  for mood in ("calm", "Happy", "sad")
  for instrument in ("piano", "guitar", "flute")
  for speed in ("slow", "fast")
  for key in ("C major", "A minor")
]


def test_training_is_deterministic_and_shrinks_for_few_captions(tmp_path):
  one = text_vocabulary.train(_CAPTIONS, tmp_path / "one", 512)
  two = text_vocabulary.train(_CAPTIONS, tmp_path / "two", 512)
  assert one.read_bytes() == two.read_bytes()
  assert 30 < vocabularies.load(one).num_tokens < 512
  small = text_vocabulary.train(_CAPTIONS, tmp_path / "small", 40)
  assert vocabularies.load(small).num_tokens <= 40
  assert [p.name for p in (tmp_path / "one").iterdir()] == ["text.model"]


def test_ids_are_those_of_plain_sentencepiece(tmp_path):
  path = text_vocabulary.train(_CAPTIONS, tmp_path, 128)
  plain = sentencepiece.SentencePieceProcessor(model_file=str(path))
  vocabulary = vocabularies.load(path)
  for text in ["Happy PIANO in c Major", "sad flute", "zebra?", ""]:
    ids = plain.EncodeAsIds(text.lower())
    tokens = vocabulary.encode(text, 64)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens[: len(ids)], ids)
    assert not tokens[len(ids) :].any()
    cut = vocabulary.encode(text, 2)
    np.testing.assert_array_equal(cut, tokens[:2])
  assert 0 not in plain.EncodeAsIds("happy piano zebra?")


def test_errors_name_the_cause(tmp_path):
  with pytest.raises(errors.UserError, match="captions"):
    text_vocabulary.train(["", " "], tmp_path, 64)
  with pytest.raises(errors.UserError, match="vocab_size=8"):
    text_vocabulary.train(_CAPTIONS, tmp_path, 8)
  with pytest.raises(errors.UserError, match="missing"):
    vocabularies.load(tmp_path / "text.model")
  (tmp_path / "text.model").write_bytes(b"not a model")
  with pytest.raises(errors.UserError, match="expected a SentencePiece"):
    vocabularies.load(tmp_path / "text.model")
