# SPDX-License-Identifier: Apache-2.0
"""Held-out phrasings of a demo corpus's clips, with tags: for evaluation.

A prepared `score_corpus` flows in; per clip its caption, a paraphrase in words
that no caption has, and tags flow out. They follow from the stored aspects
(`data/score_corpus/paraphrases.py`), so no score is read.
"""

import os
from typing import Any

from musiclm_jax.core import errors
from musiclm_jax.data import clips, corpora


def descriptions(
  corpus_dir: str | os.PathLike, split: str
) -> list[dict[str, Any]]:
  """Caption, paraphrase and tags of all clips of a split.

  Args:
    corpus_dir: folder of a prepared `score_corpus`.
    split: of it.

  Returns:
    One dict per clip, in the order of the corpus: `clip_id`, `work_id`,
    `caption` (the first, most complete one), `paraphrase` (the same in every
    call), `tags` (by kind a name, and for `instrument` a list of names).

  Raises:
    UserError: if corpus or split is missing, or it is another corpus.
  """
  worded = corpora.load_builder_part("score_corpus", "paraphrases")
  reader = clips.ClipReader(corpus_dir, split)
  rows = []
  for index in range(len(reader)):
    texts = reader.texts(index)
    try:
      facts = worded.read_aspects(texts.aspects)
      caption = texts.captions[0]
    except (ValueError, IndexError) as error:
      raise errors.UserError(
        f"{corpus_dir} is of another corpus than score_corpus: clip "
        f"{texts.clip_id!r} has no caption and aspects of its kind"
      ) from error
    rows.append(
      {
        "clip_id": texts.clip_id,
        "work_id": texts.work_id,
        "caption": caption,
        "paraphrase": worded.paraphrase(facts, texts.clip_id),
        "tags": worded.tags(facts),
      }
    )
  return rows


def paraphrases(corpus_dir: str | os.PathLike, split: str) -> dict[str, str]:
  """The paraphrase of each clip of a split, by clip id.

  Raises:
    UserError: as `descriptions`.
  """
  return {
    row["clip_id"]: row["paraphrase"] for row in descriptions(corpus_dir, split)
  }
