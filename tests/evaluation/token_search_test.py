# SPDX-License-Identifier: Apache-2.0
"""Common runs of tokens, against the definition tried out place by place."""

import time

import numpy as np
import pytest

from musiclm_jax.evaluation import token_search

LENGTH = 4


def brute(query, clip):
  """Longest common run, its places, and the share of n-grams in common."""
  best = (0, 0, 0)
  for i in range(len(query)):
    for j in range(len(clip)):
      length = 0
      while (
        i + length < len(query)
        and j + length < len(clip)
        and query[i + length] == clip[j + length]
      ):
        length += 1
      if length > best[0]:
        best = (length, i, j)
  grams = [tuple(query[i : i + LENGTH]) for i in range(len(query) - LENGTH + 1)]
  known = {tuple(clip[j : j + LENGTH]) for j in range(len(clip) - LENGTH + 1)}
  shared = sum(gram in known for gram in grams) / max(len(grams), 1)
  return best, shared


@pytest.mark.parametrize("max_pairs", [0, 50, 20_000])
@pytest.mark.parametrize("num_codes", [2, 3, 8])
def test_runs_are_those_of_the_definition(num_codes, max_pairs, monkeypatch):
  monkeypatch.setattr(token_search, "_MAX_PAIRS", max_pairs)
  rng = np.random.default_rng(num_codes)
  queries = [rng.integers(0, num_codes, n) for n in (30, 3, 4, 45)]
  finder = token_search.TokenQueries(queries, LENGTH)
  num_found = 0
  for size in (60, 4, 2, 0, 33):
    clip = rng.integers(0, num_codes, size)
    if size == 33:
      clip[10:25] = queries[3][20:35]
    found = {run.query: run for run in finder.find(clip)}
    for number, query in enumerate(queries):
      (length, here, there), shared = brute(query, clip)
      if length < LENGTH:
        assert number not in found
        continue
      num_found += 1
      run = found[number]
      assert (run.length, run.query_start, run.clip_start) == (
        length,
        here,
        there,
      )
      assert run.containment == pytest.approx(shared)
  assert num_found


def test_a_copy_is_found_whole_among_many_queries():
  rng = np.random.default_rng(0)
  queries = [rng.integers(0, 256, 250) for _ in range(100)]
  found = token_search.TokenQueries(queries, 10).find(queries[42])
  assert found == [token_search.SharedRun(42, 250, 0, 0, 1.0)]


def test_constant_sequences_and_nothing_at_all():
  finder = token_search.TokenQueries([np.full(20, 7)], 5)
  assert finder.find(np.full(12, 7)) == [
    token_search.SharedRun(0, 12, 0, 0, 1.0)
  ]
  # Held notes: as many pairs of n-grams as the product of all lengths.
  silent = [np.zeros(750, int)] * 60
  started = time.process_time()
  found = token_search.TokenQueries(silent, 10).find(np.zeros(750, int))
  assert time.process_time() - started < 5
  assert [run.length for run in found] == [750] * 60
  assert token_search.TokenQueries([], 5).find(np.arange(9)) == []
  with pytest.raises(ValueError, match="length=0"):
    token_search.TokenQueries([], 0)
