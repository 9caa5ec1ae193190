# SPDX-License-Identifier: Apache-2.0
"""Which version of which melody is read when: arithmetic only.

A *row* is a version of a melody. The rows of a melody stand side by side in a
corpus, so its number is a division. In training `group_size` positions in a
row of the global batch share a melody; as in `example_order.py`, what stands
at a position is a function of seed and position alone.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from musiclm_jax.data import example_order


@dataclasses.dataclass(frozen=True)
class MelodyCounts:
  """One corpus.

  Attributes:
    num_melodies: melodies in it.
    num_rows: versions of each.
  """

  num_melodies: int
  num_rows: int


class MelodyOrder:
  """Rows by position of a run; used like `example_order.ExampleOrder`."""

  def __init__(
    self,
    counts: Sequence[MelodyCounts],
    seed: int,
    group_size: int,
    weights: Sequence[float] = (),
    shuffle: bool = True,
  ):
    """Orders the rows of corpora.

    Args:
      counts: of each corpus.
      seed: names the order.
      group_size: positions that share a melody in training.
      weights: share of each corpus; empty for one pass over all melodies.
      shuffle: False reads row after row.
    """
    self._counts = list(counts)
    self._seed = seed
    self._group_size = group_size
    self._shuffle = shuffle
    self._melodies = example_order.ExampleOrder(
      [entry.num_melodies for entry in counts], seed, weights, shuffle
    )
    sizes = [entry.num_melodies * entry.num_rows for entry in counts]
    self._starts = np.concatenate([[0], np.cumsum(sizes)])
    self.num_examples = int(self._starts[-1])

  def position(self, k: int) -> int:
    """Index of the row in the concatenation of all corpora."""
    if not self._shuffle:
      return k % self.num_examples
    group, place = divmod(k, self._group_size)
    corpus, melody = self._melodies.corpus_of(self._melodies.position(group))
    num_rows = self._counts[corpus].num_rows
    # All versions before one comes again.
    pack, card = divmod(place, num_rows)
    key = example_order.mix(self._seed, group, pack, 2)
    row = example_order.permute(card, num_rows, key)
    return int(self._starts[corpus]) + melody * num_rows + row

  def corpus_of(self, position: int) -> tuple[int, int]:
    """(corpus, row in it) of a position in the concatenation."""
    corpus = int(np.searchsorted(self._starts, position, side="right")) - 1
    return corpus, position - int(self._starts[corpus])

  def melody(self, position: int) -> int:
    """Number of the melody at a position, over all corpora."""
    corpus, row = self.corpus_of(position)
    before = sum(entry.num_melodies for entry in self._counts[:corpus])
    return before + row // self._counts[corpus].num_rows

  def group_seed(self, k: int) -> int:
    """63-bit hash that the rows of a melody share at position `k`."""
    if self._shuffle:
      group = k // self._group_size
    else:
      group = self.melody(self.position(k))
    return example_order.mix(self._seed, group, 3) >> 1
