# SPDX-License-Identifier: Apache-2.0
"""Text-audio retrieval: matched unit embeddings in, recall and rank out.

Protocol. Clips may share a caption word for word, so captions are made unique:
text-to-audio asks each DIFFERENT caption once, among all clips, and any clip
with that caption is a hit; audio-to-text asks each clip once, among the
different captions, and exactly one is a hit. The rank of a query is that of
its best hit. Candidates with an equal score that are no hits count as ranked
before it, so a collapsed model scores 0 and not 1.
"""

import math
from collections.abc import Sequence

import numpy as np


def retrieval(
  text_embeddings: np.ndarray,
  audio_embeddings: np.ndarray,
  texts: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
  """Scores both directions.

  Args:
    text_embeddings: float `[items, embed]`, unit length.
    audio_embeddings: float `[items, embed]`, unit length; row i belongs to
      text i.
    texts: captions; by default all count as different.

  Returns:
    {'text_to_audio', 'audio_to_text'}, each with 'recall_at_1',
    'recall_at_10', 'chance_at_1', 'chance_at_10' (in [0, 1]), 'median_rank'
    (1 is best), 'num_items' (candidates) and 'num_queries'. Chance is exact:
    the expected recall of a uniformly random order of the candidates.

  Raises:
    ValueError: if shapes or lengths do not fit.
  """
  text_embeddings = np.asarray(text_embeddings, np.float32)
  audio_embeddings = np.asarray(audio_embeddings, np.float32)
  if (
    text_embeddings.ndim != 2
    or text_embeddings.shape != audio_embeddings.shape
    or not len(text_embeddings)
  ):
    raise ValueError(
      f"text_embeddings of shape {text_embeddings.shape}, audio_embeddings "
      f"of shape {audio_embeddings.shape}: expected one [items >= 1, embed]"
    )
  texts = list(
    map(str, range(len(text_embeddings)) if texts is None else texts)
  )
  if len(texts) != len(text_embeddings):
    raise ValueError(
      f"{len(texts)} texts: expected {len(text_embeddings)}, one per embedding"
    )
  first, relevant = relevance(texts)
  scores = text_embeddings[first] @ audio_embeddings.T
  return {
    "text_to_audio": _scores(scores, relevant),
    "audio_to_text": _scores(scores.T, relevant.T),
  }


def relevance(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Which clips are hits of which caption.

  Args:
    texts: the caption of each clip.

  Returns:
    int64 `[captions]`, the first clip of each different caption, and bool
    `[captions, clips]`.
  """
  _, first, group = np.unique(texts, return_index=True, return_inverse=True)
  return first, np.arange(len(first))[:, None] == group[None, :]


def ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
  """Rank of each query's best hit, ties counted against it.

  Args:
    scores: float `[queries, candidates]`, higher is nearer.
    relevant: bool, same shape, at least one True per query.

  Returns:
    int64 `[queries]`, from 1.
  """
  best = np.where(relevant, scores, -np.inf).max(-1, keepdims=True)
  return 1 + ((scores >= best) & ~relevant).sum(-1)


def chance_at(k: int, num_items: int, num_relevant: np.ndarray) -> float:
  """Expected recall at k of a random order, mean over queries.

  Args:
    k: candidates looked at.
    num_items: candidates in all.
    num_relevant: hits per query, int `[queries]`.

  Returns:
    mean of 1 - C(items - hits, k) / C(items, k), in [0, 1].
  """
  k = min(k, num_items)
  total = math.comb(num_items, k)
  values, counts = np.unique(num_relevant, return_counts=True)
  found = [1 - math.comb(num_items - int(hits), k) / total for hits in values]
  return float(np.average(found, weights=counts))


def _scores(scores: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
  rank = ranks(scores, relevant)
  num_items, hits = scores.shape[1], relevant.sum(-1)
  return {
    "recall_at_1": float((rank <= 1).mean()),
    "recall_at_10": float((rank <= 10).mean()),
    "chance_at_1": chance_at(1, num_items, hits),
    "chance_at_10": chance_at(10, num_items, hits),
    "median_rank": float(np.median(rank)),
    "num_items": int(num_items),
    "num_queries": int(scores.shape[0]),
  }
