# SPDX-License-Identifier: Apache-2.0
"""What the RVQ loses and how far text is from audio, on known vectors."""

import numpy as np
import pytest

from musiclm_jax.evaluation import modality_gap

# Two directions, then what is left along two others.
CODEBOOKS = np.array(
  [
    [[1, 0, 0, 0], [0, 1, 0, 0]],
    [[0, 0, 0.5, 0], [0, 0, 0, 0.5]],
  ],
  np.float32,
)


def test_quantization_by_level():
  codes = np.array([[0, 0], [0, 1], [1, 0], [0, 0]])
  vectors = CODEBOOKS[0][codes[:, 0]] + CODEBOOKS[1][codes[:, 1]]
  found = modality_gap.quantization(vectors, CODEBOOKS)
  assert found["cosine"] == pytest.approx([1 / 1.25**0.5, 1.0])
  variance = ((vectors - vectors.mean(0)) ** 2).sum(-1).mean()
  assert found["variance_left"] == pytest.approx([0.25 / variance, 0.0])
  assert found["entries_used"] == [2, 2]
  # Shares 3/4 and 1/4 at both levels.
  assert found["perplexity"] == pytest.approx([4 / 3**0.75] * 2)
  with pytest.raises(ValueError, match="embeddings"):
    modality_gap.quantization(vectors[:0], CODEBOOKS)


def test_agreement_by_level_and_its_chance():
  audio = np.array(
    [[1, 0, 0.5, 0], [1, 0, 0, 0.5], [0, 1, 0.5, 0], [0, 1, 0, 0.5]],
    np.float32,
  )
  # First levels agree but for the last, second levels in the first two.
  text = np.array(
    [[1, 0, 0.5, 0], [1, 0, 0, 0.5], [0, 1, 0, 0.5], [1, 0, 0.5, 0]],
    np.float32,
  )
  found = modality_gap.Pairs(text, audio, [0, 0, 1, 1], CODEBOOKS).report()
  assert found["agreement"] == [0.75, 0.5]
  assert found["prefix_agreement"] == [0.75, 0.5]
  assert found["chance"] == [0.5, 0.5]
  assert found["cosine"]["mean"] == pytest.approx((1 + 1 + 0.8 + 0) / 4)
  assert found["cosine_quantized"] == found["cosine"]
  assert found["text_cosine_quantized"] == pytest.approx(1.0)
  distance = np.linalg.norm(text.mean(0) - audio.mean(0))
  assert found["mean_distance"] == pytest.approx(distance)
  assert (found["num_pairs"], found["num_works"]) == (4, 2)
  same = modality_gap.Pairs(audio, audio, range(4), CODEBOOKS).report()
  assert same["agreement"] == same["prefix_agreement"] == [1.0, 1.0]
  assert same["mean_distance"] == 0.0
  with pytest.raises(ValueError, match="groups"):
    modality_gap.Pairs(text, audio, [0], CODEBOOKS)


def test_effect_is_paired_and_counts_each_work_once():
  audio = np.tile(np.array([[1, 0, 0.5, 0]], np.float32), (9, 1))
  text = np.tile(np.array([[0, 1, 0, 0.5]], np.float32), (9, 1))
  mapped = text.copy()
  mapped[:8] = audio[:8]  # all of work 0, nothing of work 1
  works = [0] * 8 + [1]
  plain = modality_gap.Pairs(text, audio, works, CODEBOOKS)
  effect = plain.effect(modality_gap.Pairs(mapped, audio, works, CODEBOOKS))
  for name in ("cosine", "cosine_quantized", "agreement", "first_agreement"):
    assert effect[name]["mean"] == pytest.approx(0.5), name
    ends = effect[name]["low"], effect[name]["high"]
    assert ends == pytest.approx((0.0, 1.0))
  assert effect["prefix_length"]["mean"] == pytest.approx(1.0)


def test_retrieval_of_mapped_text_is_compared_query_by_query():
  audio = np.eye(24, dtype=np.float32)
  # Half of the texts find their clip, the others rank it last of all.
  text = np.where(np.arange(24)[:, None] < 12, audio, -audio)
  captions = [f"clip {index:02d}" for index in range(24)]
  found = modality_gap.retrieval_effect(text, audio, audio, captions)
  for way in ("text_to_audio", "audio_to_text"):
    before, after = found["plain"][way], found["mapped"][way]
    change = found["difference"][way]
    assert after["recall_at_10"] == 1.0
    assert change["mean"] == pytest.approx(1.0 - before["recall_at_10"])
  change = found["difference"]["text_to_audio"]
  assert change["mean"] == 0.5 and 0.25 < change["low"] < change["high"] < 0.75
  same = modality_gap.retrieval_effect(text, text, audio, captions)
  assert same["difference"]["text_to_audio"]["high"] == 0.0


def test_description_has_every_level():
  audio = np.eye(4, dtype=np.float32)
  pairs = modality_gap.Pairs(audio, audio, range(4), CODEBOOKS)
  text = modality_gap.describe(
    {
      "rvq": {"training": modality_gap.quantization(audio, CODEBOOKS)},
      "modality_gap": pairs.report(),
      "effect": pairs.effect(pairs),
    }
  )
  lines = {line[:21].strip(): line[21:].split() for line in text.splitlines()}
  assert lines["codes agree"] == ["1.000", "1.000"]
  assert len(lines["perplexity"]) == 2
  assert "mapper changes cosine by +0.000 (+0.000 to +0.000)" in text
