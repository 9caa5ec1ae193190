# SPDX-License-Identifier: Apache-2.0
"""Retrieval with intervals over works: embeddings in, tables out.

Protocol and ranks are those of `retrieval.py`; here each query keeps its own
rank, so that works can be drawn again, and two sets of texts compared clip by
clip.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from musiclm_jax.evaluation import bootstrap, retrieval

RECALLS = (1, 5, 10)
DEPTH = 10
# Queries whose scores are held at once.
_QUERIES = 512


class Queries(NamedTuple):
  """What one direction found, query by query.

  Attributes:
    rank: int64 `[queries]` of the best hit, from 1.
    average_precision: float64 `[queries]`, at depth 10, in [0, 1].
    num_hits: int64 `[queries]`, candidates that are hits.
    num_items: candidates.
  """

  rank: np.ndarray
  average_precision: np.ndarray
  num_hits: np.ndarray
  num_items: int


class Found(NamedTuple):
  """Both directions of one set of texts.

  Attributes:
    text_to_audio: queries are the different texts.
    audio_to_text: queries are the clips.
    group: int64 `[clips]`, which of the different texts a clip has.
    first: int64 `[texts]`, the first clip with each.
  """

  text_to_audio: Queries
  audio_to_text: Queries
  group: np.ndarray
  first: np.ndarray


def average_precision(
  scores: np.ndarray, relevant: np.ndarray, depth: int = DEPTH
) -> np.ndarray:
  """Average precision at a depth, ties counted against hits.

  The precision at each hit among the first `depth` candidates, summed, over
  the most hits that could be there.

  Args:
    scores: float `[queries, candidates]`, higher is nearer.
    relevant: bool, same shape, at least one True per query.
    depth: candidates looked at.

  Returns:
    float64 `[queries]` in [0, 1].
  """
  found = []
  for row, hits in zip(scores, relevant):
    best = np.sort(row[hits])[::-1][:depth]
    before = (row[~hits][None] >= best[:, None]).sum(1)
    number = np.arange(1, len(best) + 1)
    rank = number + before
    precision = np.where(rank <= depth, number / rank, 0.0)
    found.append(precision.sum() / min(depth, hits.sum()))
  return np.array(found)


def _search(
  queries: np.ndarray,
  items: np.ndarray,
  query_groups: np.ndarray,
  item_groups: np.ndarray,
) -> Queries:
  """Ranks all items for each query; equal groups are hits."""
  parts = []
  for start in range(0, len(queries), _QUERIES):
    part = slice(start, start + _QUERIES)
    scores = queries[part] @ items.T
    hits = query_groups[part, None] == item_groups[None]
    rank = retrieval.ranks(scores, hits)
    parts.append((rank, average_precision(scores, hits), hits.sum(1)))
  return Queries(*map(np.concatenate, zip(*parts)), len(items))


def search(
  text_embeddings: np.ndarray,
  audio_embeddings: np.ndarray,
  texts: Sequence[str],
) -> Found:
  """Ranks both ways.

  Args:
    text_embeddings: float `[clips, embed]`, unit length.
    audio_embeddings: float `[clips, embed]`, unit length.
    texts: of each clip; may repeat.

  Raises:
    ValueError: if shapes or lengths do not fit.
  """
  text = np.asarray(text_embeddings, np.float32)
  audio = np.asarray(audio_embeddings, np.float32)
  if (
    text.ndim != 2
    or text.shape != audio.shape
    or len(texts) != len(text)
    or not len(text)
  ):
    raise ValueError(
      f"text_embeddings of shape {text.shape}, audio_embeddings of shape "
      f"{audio.shape}, {len(texts)} texts: expected one [clips >= 1, embed] "
      "and as many texts"
    )
  _, first, group = np.unique(
    list(map(str, texts)), return_index=True, return_inverse=True
  )
  number = np.arange(len(first))
  return Found(
    _search(text[first], audio, number, group),
    _search(audio, text[first], group, number),
    group,
    first,
  )


def _scores(queries: Queries, works: Sequence[str], **draw: int) -> dict:
  counts = bootstrap.resample_groups(works, **draw)
  found: dict[str, Any] = {
    f"recall_at_{k}": bootstrap.grouped_mean(queries.rank <= k, counts)
    for k in RECALLS
  }
  found["median_rank"] = bootstrap.grouped_median(queries.rank, counts)
  found[f"map_at_{DEPTH}"] = bootstrap.grouped_mean(
    queries.average_precision, counts
  )
  found = {name: interval.to_dict() for name, interval in found.items()}
  for k in RECALLS:
    found[f"chance_at_{k}"] = retrieval.chance_at(
      k, queries.num_items, queries.num_hits
    )
  return {
    **found,
    "num_items": queries.num_items,
    "num_queries": len(queries.rank),
  }


def table(
  found: Found,
  works: Sequence[str],
  num_resamples: int = 1000,
  seed: int = 0,
) -> dict[str, dict[str, Any]]:
  """Scores of both directions, with 95 % intervals over works.

  A text that several works have belongs to that of its first clip.

  Args:
    found: of `search`.
    works: of each clip.
    num_resamples: bootstrap draws of works.
    seed: of the draws.

  Returns:
    {'text_to_audio', 'audio_to_text'}, each with 'recall_at_1', 'recall_at_5',
    'recall_at_10', 'median_rank' and 'map_at_10', each {'mean', 'low',
    'high'} (of 'median_rank', 'mean' is the median); 'chance_at_1' and so on,
    'num_items' (candidates) and 'num_queries'.
  """
  draw = {"num_resamples": num_resamples, "seed": seed}
  works = np.asarray(works, str)
  return {
    "text_to_audio": _scores(found.text_to_audio, works[found.first], **draw),
    "audio_to_text": _scores(found.audio_to_text, works, **draw),
  }


def difference(
  one: Found,
  other: Found,
  works: Sequence[str],
  num_resamples: int = 1000,
  seed: int = 0,
) -> dict[str, dict[str, Any]]:
  """Scores of one set of texts minus those of another, clip by clip.

  Args:
    one: of `search`.
    other: of `search` with other texts of the same clips.
    works: of each clip.
    num_resamples: bootstrap draws of works.
    seed: of the draws.

  Returns:
    As `table`, without medians, chance and numbers. Here a text counts once
    for each clip that has it.
  """
  counts = bootstrap.resample_groups(works, num_resamples, seed)
  result = {}
  for direction in ("text_to_audio", "audio_to_text"):
    values = []
    for found in (one, other):
      queries = getattr(found, direction)
      place = slice(None)
      if direction == "text_to_audio":
        place = found.group
      rows = {f"recall_at_{k}": (queries.rank <= k)[place] for k in RECALLS}
      rows[f"map_at_{DEPTH}"] = queries.average_precision[place]
      values.append(rows)
    result[direction] = {
      name: bootstrap.grouped_mean(
        values[0][name].astype(float) - values[1][name], counts
      ).to_dict()
      for name in values[0]
    }
  return result
