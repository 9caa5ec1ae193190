# SPDX-License-Identifier: Apache-2.0
"""Runs of tokens that sequences have in common, found by their n-grams.

Query sequences go in once; then any number of clips, one after the other, each
of which is asked for the longest run of tokens that it shares with each query.
Time grows with the tokens of the clips, not with the number of queries.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class SharedRun(NamedTuple):
  """What a query and a clip have in common.

  Attributes:
    query: number of the query.
    length: tokens of the longest common run.
    query_start: its first token in the query; the first of equal ones.
    clip_start: in the clip.
    containment: share of the query's n-grams that the clip has too.
  """

  query: int
  length: int
  query_start: int
  clip_start: int
  containment: float


def _ngrams(tokens: np.ndarray, length: int) -> np.ndarray:
  """Views `[ngrams, length]`; none of a sequence that is shorter."""
  if len(tokens) < length:
    return np.zeros((0, length), tokens.dtype)
  return np.lib.stride_tricks.sliding_window_view(tokens, length)


class TokenQueries:
  """Queries that clips are compared with.

  Attributes:
    length: tokens of an n-gram; shorter common runs are not found.
    num_queries: how many.
  """

  def __init__(self, queries: Sequence[np.ndarray], length: int):
    """Sorts all n-grams of the queries by their hash.

    Args:
      queries: int `[frames]` each.
      length: of an n-gram, at least 1.
    """
    if length < 1:
      raise ValueError(f"length={length}: expected >= 1")
    self.length, self.num_queries = length, len(queries)
    self._queries = [np.asarray(query, np.int64) for query in queries]
    with np.errstate(over="ignore"):
      self._powers = np.cumprod(np.full(length, _FACTOR))
    counts = [max(0, len(query) - length + 1) for query in self._queries]
    self._num_ngrams = np.array(counts, np.int64)
    hashes = np.concatenate(
      [np.zeros(0, np.uint64), *map(self._hashes, self._queries)]
    )
    order = np.argsort(hashes, kind="stable")
    self._sorted = hashes[order]
    self._query_of = np.repeat(np.arange(len(counts)), counts)[order]
    places = [np.zeros(0, np.int64), *map(np.arange, counts)]
    self._place_of = np.concatenate(places)[order]

  def _hashes(self, tokens: np.ndarray) -> np.ndarray:
    """A number for each n-gram; equal n-grams have equal ones."""
    with np.errstate(over="ignore"):
      mixed = (tokens.astype(np.uint64) + np.uint64(1)) * _FACTOR
      mixed ^= mixed >> np.uint64(29)
      return _ngrams(mixed, self.length) @ self._powers

  def _hits(self, tokens: np.ndarray) -> tuple[np.ndarray, ...]:
    """Query, place in it and place in the clip of each common n-gram."""
    hashes = self._hashes(tokens)
    first = np.searchsorted(self._sorted, hashes, side="left")
    end = np.searchsorted(self._sorted, hashes, side="right")
    counts = end - first
    clip_place = np.repeat(np.arange(len(hashes)), counts)
    # Position of each hit among those of its n-gram.
    before = np.repeat(counts.cumsum() - counts, counts)
    row = np.repeat(first, counts) + np.arange(len(clip_place)) - before
    return self._query_of[row], self._place_of[row], clip_place

  def find(self, tokens: np.ndarray) -> list[SharedRun]:
    """What a clip shares with each query that shares an n-gram with it.

    Args:
      tokens: int `[frames]` of a clip.

    Returns:
      By query, in order; exact: hashes only propose, tokens are compared.
    """
    tokens = np.asarray(tokens, np.int64)
    query, place, clip_place = self._hits(tokens)
    found = []
    clip_grams = _ngrams(tokens, self.length)
    for number in np.unique(query):
      rows = query == number
      here, there = place[rows], clip_place[rows]
      grams = _ngrams(self._queries[number], self.length)
      is_equal = (grams[here] == clip_grams[there]).all(1)
      here, there = here[is_equal], there[is_equal]
      if not len(here):
        continue
      found.append(self._longest(int(number), here, there))
    return found

  def _longest(
    self, number: int, here: np.ndarray, there: np.ndarray
  ) -> SharedRun:
    """The longest run of n-grams that follow each other in both."""
    diagonal = here - there
    order = np.lexsort((here, diagonal))
    here, there, diagonal = here[order], there[order], diagonal[order]
    follows = (np.diff(here) == 1) & (np.diff(diagonal) == 0)
    begins = np.flatnonzero(np.concatenate([[True], ~follows]))
    lengths = np.diff(np.append(begins, len(here)))
    # Of equal ones the first in the query, then in the clip.
    best = begins[np.lexsort((there[begins], here[begins], -lengths))[0]]
    length = int(lengths[np.searchsorted(begins, best)])
    return SharedRun(
      number,
      length + self.length - 1,
      int(here[best]),
      int(there[best]),
      len(np.unique(here)) / int(self._num_ngrams[number]),
    )
