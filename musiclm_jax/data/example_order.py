# SPDX-License-Identifier: Apache-2.0
"""Which record is read when: (seed, position in the run) to record.

Arithmetic only. A position `k = step * global_batch_size + row` gives its
record at once, so a run resumes at any step without a replay.
"""

import functools
from collections.abc import Sequence

import numpy as np

_MASK = (1 << 64) - 1
# Slots after which a weighted mixture repeats its proportions exactly.
_MIXTURE_BLOCK = 1000
_NUM_FEISTEL_ROUNDS = 4


def mix(*values: int) -> int:
  """A 64-bit hash of integers (splitmix64 finalizer, chained)."""
  state = 0x9E3779B97F4A7C15
  for value in values:
    state = (state ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
    state ^= state >> 31
  return state


def mix_arrays(*values: int | np.ndarray) -> np.ndarray:
  """`mix` of integers and arrays of them, broadcast; uint64."""
  state = np.uint64(0x9E3779B97F4A7C15)
  with np.errstate(over="ignore"):
    for value in values:
      if isinstance(value, np.ndarray):
        value = value.astype(np.uint64)
      else:
        value = np.uint64(value & _MASK)
      state = (state ^ value) + np.uint64(0x9E3779B97F4A7C15)
      state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
      state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
      state = state ^ (state >> np.uint64(31))
  return np.asarray(state)


def permute(index: int, size: int, key: int) -> int:
  """Position of `index` in the permutation of `range(size)` named by `key`.

  A Feistel network on the next power of four, walked until it falls back
  into the range: constant time and no table, whatever the corpus size.
  """
  half_bits = max(1, -(-(size - 1).bit_length() // 2))
  half_mask = (1 << half_bits) - 1
  while True:
    left, right = index >> half_bits, index & half_mask
    for round_number in range(_NUM_FEISTEL_ROUNDS):
      left, right = right, left ^ mix(key, round_number, right) & half_mask
    index = left << half_bits | right
    if index < size:
      return index


def permute_arrays(
  indices: np.ndarray, size: int, keys: np.ndarray
) -> np.ndarray:
  """`permute` of each index by its own key; int64 of the same shape."""
  half_bits = max(1, -(-(size - 1).bit_length() // 2))
  bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
  out = indices.astype(np.uint64)
  todo = np.arange(len(out))
  while len(todo):
    left, right, key = out[todo] >> bits, out[todo] & mask, keys[todo]
    for round_number in range(_NUM_FEISTEL_ROUNDS):
      hashed = mix_arrays(key, round_number, right) & mask
      left, right = right, left ^ hashed
    out[todo] = left << bits | right
    todo = todo[out[todo] >= size]
  return out.astype(np.int64)


class ExampleOrder:
  """Which record is read at position `k` of a run.

  Without weights the corpora are one list, and each epoch is another
  permutation of it. With weights, every block of 1000 positions holds each
  corpus in proportion, in hashed order; each corpus runs through its own
  epochs, so that none of its records is repeated before all were seen.
  """

  def __init__(
    self,
    sizes: Sequence[int],
    seed: int,
    weights: Sequence[float] = (),
    shuffle: bool = True,
  ):
    """Orders corpora of `sizes` records.

    Args:
      sizes: records of each corpus.
      seed: names the order.
      weights: share of each corpus; empty for one pass over all of them.
      shuffle: False reads in corpus order (evaluation), without weights.
    """
    self._sizes = [int(size) for size in sizes]
    self._seed = seed
    self._shuffle = shuffle
    self.num_examples = sum(self._sizes)
    self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
    self._counts = None
    if len(weights) and shuffle:
      share = np.asarray(weights, np.float64) / np.sum(weights)
      ends = np.round(np.cumsum(share) * _MIXTURE_BLOCK).astype(int)
      self._counts = np.diff(ends, prepend=0)
    self._block = functools.lru_cache(maxsize=16)(self._hashed_block)

  def _hashed_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Corpus and rank among that corpus' slots, for each slot of a block."""
    hashes = [mix(self._seed, block, slot) for slot in range(_MIXTURE_BLOCK)]
    order = np.argsort(np.array(hashes, np.uint64), kind="stable")
    corpora = np.repeat(np.arange(len(self._sizes)), self._counts)[order]
    ranks = np.empty_like(corpora)
    for corpus in range(len(self._sizes)):
      chosen = corpora == corpus
      ranks[chosen] = np.arange(chosen.sum())
    return corpora, ranks

  def position(self, k: int) -> int:
    """Index of the record in the concatenation of all corpora."""
    if self._counts is None:
      epoch, index = divmod(k, self.num_examples)
      if not self._shuffle:
        return index
      return permute(index, self.num_examples, mix(self._seed, epoch))
    block, slot = divmod(k, _MIXTURE_BLOCK)
    corpora, ranks = self._block(block)
    corpus = int(corpora[slot])
    count = block * int(self._counts[corpus]) + int(ranks[slot])
    epoch, index = divmod(count, self._sizes[corpus])
    key = mix(self._seed, epoch, corpus)
    index = permute(index, self._sizes[corpus], key)
    return int(self._starts[corpus]) + index

  def positions(self, keys: np.ndarray) -> np.ndarray:
    """`position` of each of int64 `keys`, much faster."""
    if self._counts is not None or not self.num_examples:
      return np.array([self.position(int(k)) for k in keys], np.int64)
    epochs, indices = np.divmod(keys, self.num_examples)
    if not self._shuffle:
      return indices
    hashed = mix_arrays(self._seed, epochs)
    return permute_arrays(indices, self.num_examples, hashed)

  def corpus_of(self, position: int) -> tuple[int, int]:
    """(corpus, index in it) of a position in the concatenation."""
    corpus = int(np.searchsorted(self._starts, position, side="right")) - 1
    return corpus, position - int(self._starts[corpus])
