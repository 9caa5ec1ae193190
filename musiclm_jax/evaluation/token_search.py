# SPDX-License-Identifier: Apache-2.0
"""Runs of tokens that sequences have in common, found by their n-grams.

Query sequences go in once; then any number of clips, one after the other, each
of which is asked for the longest run of tokens that it shares with each query.
Time grows with the tokens of the clips and with what they share, not with the
number of queries.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Pairs of common n-grams, beyond which a query is laid along the clip instead:
# those of a held note are as many as the product of both lengths.
_MAX_PAIRS = 20_000
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


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Numbers from each start on, so many of each, one after the other."""
  before = np.repeat(counts.cumsum() - counts, counts)
  return np.repeat(starts, counts) + np.arange(counts.sum()) - before


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

  def _common(
    self, hashes: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """N-grams of the queries that a clip has, and where it has them.

    Returns:
      Rows of the sorted n-grams, of each the first and the number of its places
      in a list of places in the clip, and that list.
    """
    places = np.argsort(hashes, kind="stable")
    different, starts, counts = np.unique(
      hashes[places], return_index=True, return_counts=True
    )
    first = np.searchsorted(self._sorted, different, side="left")
    end = np.searchsorted(self._sorted, different, side="right")
    which = np.repeat(np.arange(len(different)), end - first)
    rows = _ranges(first, end - first)
    return rows, starts[which], counts[which], places

  def find(self, tokens: np.ndarray) -> list[SharedRun]:
    """What a clip shares with each query that shares an n-gram with it.

    Args:
      tokens: int `[frames]` of a clip.

    Returns:
      By query, in order; exact: hashes only propose, tokens are compared.
    """
    tokens = np.asarray(tokens, np.int64)
    rows, starts, counts, places = self._common(self._hashes(tokens))
    order = np.argsort(self._query_of[rows], kind="stable")
    numbers, begins = np.unique(self._query_of[rows[order]], return_index=True)
    found = []
    clip_grams = _ngrams(tokens, self.length)
    for number, mine in zip(numbers, np.split(order, begins[1:])):
      if counts[mine].sum() > _MAX_PAIRS:
        run = self._along(int(number), tokens)
      else:
        here = np.repeat(self._place_of[rows[mine]], counts[mine])
        there = places[_ranges(starts[mine], counts[mine])]
        grams = _ngrams(self._queries[number], self.length)
        is_equal = (grams[here] == clip_grams[there]).all(1)
        run = self._longest(int(number), here[is_equal], there[is_equal])
      if run is not None:
        found.append(run)
    return found

  def _along(self, number: int, tokens: np.ndarray) -> SharedRun | None:
    """The longest common run, token of the query by token: in little memory."""
    query = self._queries[number]
    lengths = np.zeros(len(tokens), np.int64)
    best, num_common = None, 0
    for place, token in enumerate(query):
      # How many tokens up to here and there are the same.
      lengths = np.where(
        tokens == token, np.concatenate([[0], lengths[:-1]]) + 1, 0
      )
      end = int(lengths.argmax())
      length = int(lengths[end])
      num_common += length >= self.length
      if length >= self.length and (best is None or length > best.length):
        start = place - length + 1, end - length + 1
        best = SharedRun(number, length, *start, 0.0)
    if best is None:
      return None
    share = num_common / int(self._num_ngrams[number])
    return best._replace(containment=share)

  def _longest(
    self, number: int, here: np.ndarray, there: np.ndarray
  ) -> SharedRun | None:
    """The longest run of n-grams that follow each other in both."""
    if not len(here):
      return None
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
