# SPDX-License-Identifier: Apache-2.0
"""Ranks of melodies against numbers worked out by hand."""

import numpy as np
import pytest

from musiclm_jax.evaluation import melody_retrieval


def _unit(rows):
  rows = np.asarray(rows, np.float32)
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_ranks_by_hand():
  references = np.eye(3, dtype=np.float32)
  queries = _unit([[1, 0, 0], [0.9, 0.8, 0.1], [0.5, 0.6, 0.1]])
  np.testing.assert_allclose(
    melody_retrieval.reciprocal_ranks(queries, references), [1, 1 / 2, 1 / 3]
  )
  found = melody_retrieval.score({"reference": references, "hum": queries})
  row = found["transformations"]["hum"]
  assert row["mrr"]["mean"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
  assert row["mrr"]["low"] < row["mrr"]["mean"] < row["mrr"]["high"]
  assert row["recall_at_1"] == pytest.approx(1 / 3)
  assert row["confused_with"] == pytest.approx(
    {"2-5": 2 / 3, "6-20": 0.0, "beyond": 0.0}
  )
  own = np.mean([queries[i, i] for i in range(3)])
  assert row["similarity"] == pytest.approx(own)
  others = (queries.sum() - 3 * own) / 6
  assert row["similarity_others"] == pytest.approx(others, abs=1e-6)
  assert found["chance"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_a_collapsed_embedder_is_last_everywhere():
  same = np.ones((10, 4), np.float32) / 2
  np.testing.assert_allclose(melody_retrieval.reciprocal_ranks(same, same), 0.1)


def test_random_embeddings_are_at_chance():
  rng = np.random.default_rng(0)
  one, two = (_unit(rng.normal(size=(400, 64))) for _ in range(2))
  mean = melody_retrieval.reciprocal_ranks(one, two).mean()
  assert abs(mean - melody_retrieval.chance(400)) < 0.01


def test_table_compares_embedders():
  references = np.eye(4, dtype=np.float32)
  good = {"reference": references, "hum": references}
  bad = {"reference": references, "hum": references[::-1]}
  text = melody_retrieval.table(
    {name: melody_retrieval.score(e) for name, e in
     (("learnt", good), ("chroma", bad))}
  )  # fmt: skip
  row = next(line for line in text.splitlines() if line.startswith("| hum"))
  assert "1.000 (1.000-1.000)" in row and "0.250 (0.250-0.250)" in row
  assert "4 works; chance 0.521" in text


def test_bad_input_names_what_was_expected():
  rows = np.eye(3)
  with pytest.raises(ValueError, match=r"\(3, 3\).*\(2, 3\)"):
    melody_retrieval.reciprocal_ranks(rows, rows[:2])
  with pytest.raises(ValueError, match="reference='plain'"):
    melody_retrieval.score({"hum": rows}, "plain")
