# SPDX-License-Identifier: Apache-2.0
"""Passes over the clips of a corpus, for what is fitted at export."""

from collections.abc import Iterator

import jax
import numpy as np

from musiclm_jax.core import progress
from musiclm_jax.data import clips
from musiclm_jax.training import agreement

BATCH_SIZE = 16
_MAX_BLOCKS = 1024


def batches(
  corpus_dir: str,
  split: str,
  name: str,
  num_clips: int | None = None,
  num_channels: int = 1,
) -> Iterator[tuple[np.ndarray, int]]:
  """Waveforms of (the start of) a split, with their rate.

  Yields:
    `[batch, samples]`, or `[batch, samples, channels]` of more than one.
  """
  reader = clips.ClipReader(corpus_dir, split, num_channels)
  num_clips = min(num_clips or len(reader), len(reader))
  with progress.Progress(name, num_clips, unit="clip") as bar:
    for group in reader.batches(0, num_clips, BATCH_SIZE):
      yield np.stack([c.waveform for c in group]), group[0].sample_rate_hz
      bar.update(len(group))


def spread(
  reader: clips.ClipReader, max_clips: int, name: str
) -> Iterator[list[clips.Clip]]:
  """Groups of clips that can be stacked, at most `max_clips` over a split."""
  count = min(max_clips, len(reader))
  indices = [index * len(reader) // count for index in range(count)]
  with progress.Progress(name, count, unit="clip") as bar:
    for group in reader.groups(indices, BATCH_SIZE):
      yield group
      bar.update(len(group))


class Blocks:
  """A split in blocks, dealt to the processes; iterating is a collective.

  What is computed of a block does not depend on who has it. Yields the number
  of the block, the number of the first clip, waveforms `[clips, samples]` and
  their rate; a block may come in several parts.

  Attributes:
    num_blocks: in all processes together.
  """

  def __init__(self, corpus_dir: str, split: str, name: str):
    """Opens the corpus; `name` is for the line of progress."""
    self._reader = clips.ClipReader(corpus_dir, split)
    # Few enough that their sums are nothing to send.
    self._size = max(BATCH_SIZE, -(-len(self._reader) // _MAX_BLOCKS))
    self.num_blocks = -(-len(self._reader) // self._size)
    self._name = name

  def __iter__(self) -> Iterator[tuple[int, int, np.ndarray, int]]:
    mine = range(jax.process_index(), self.num_blocks, jax.process_count())
    with progress.Progress(self._name, len(mine), unit="block") as bar:
      for block in mine:
        first = block * self._size
        end = min(first + self._size, len(self._reader))
        for group in self._reader.batches(first, end, BATCH_SIZE):
          waveform = np.stack([clip.waveform for clip in group])
          yield block, first, waveform, group[0].sample_rate_hz
          first += len(group)
        bar.update()
    # Whoever is first would wait in a collective, which has a time limit.
    agreement.barrier(self._name)
