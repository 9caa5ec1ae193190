# SPDX-License-Identifier: Apache-2.0
"""Batches of stages straight from token caches, without tf.data.

The seqio task of a stage says what an example is; this reads the same
examples a batch at a time, because one host of a pod needs thousands of them
a second and a task runs several TensorFlow operations for each. Positions
flow in, numpy batches flow out; a test holds both ways equal.
"""

from typing import Any

import numpy as np

from musiclm_jax.data import (
  example_order,
  feature_converters,
  features,
  preprocessors,
  sources,
  token_cache,
)

Batch = dict[str, np.ndarray]


class StageReader:
  """Reads the examples of one stage task."""

  def __init__(
    self,
    source: sources.CacheSource,
    cropper: preprocessors.StageCropper,
    converter: feature_converters.StageConverter,
  ):
    """Takes the parts of the task apart.

    Args:
      source: the token caches.
      cropper: cuts codes.
      converter: codes to model inputs.
    """
    self._source = source
    self._cropper = cropper
    self._converter = converter
    self._names = [
      token_cache.EMBEDDINGS if name == token_cache.MULAN else name
      for name in cropper.stream_names
    ]

  def order(
    self, split: str, seed: int, shuffle: bool
  ) -> example_order.ExampleOrder:
    """Which record is read at which position of a run."""
    return self._source.order(split, seed, shuffle)

  def read(
    self,
    split: str,
    order: example_order.ExampleOrder,
    keys: np.ndarray,
    seed: int,
    shuffle: bool,
  ) -> Batch:
    """The examples at positions `keys` of a run.

    Args:
      split: which records.
      order: of this split, seed and shuffle.
      keys: int64 `[batch]`.
      seed: of the crops.
      shuffle: False for one pass, after which rows have weight 0.

    Returns:
      `decoder_*` arrays `[batch, length]`, `example_ids` int64 `[batch]` and
      `example_weights` float32 `[batch]`.

    Raises:
      UserError: if a record cannot be read.
    """
    positions = order.positions(keys)
    arrays = self._arrays(split, order, positions)
    hashes = example_order.mix_arrays(seed, keys, 1)
    seeds = np.stack([hashes >> np.uint64(33), hashes & 0x7FFFFFFF], axis=1)
    counts = np.array(
      [
        self._cropper.num_starts({k: len(v) for k, v in one.items()})
        for one in arrays
      ]
    )
    starts = preprocessors.draw_ints(seeds, "crop", counts)
    crops = [
      self._cropper.crop(one, int(start)) for one, start in zip(arrays, starts)
    ]
    inputs, targets, weights = self._converter.encode(
      *(
        np.stack([crop[name] for crop in crops])
        for name in self._cropper.stream_names
      )
    )
    is_real = np.ones(len(keys), np.float32)
    if not shuffle:
      is_real = (keys < order.num_examples).astype(np.float32)
    return {
      "decoder_input_tokens": inputs,
      "decoder_target_tokens": targets,
      "decoder_loss_weights": weights * is_real[:, np.newaxis],
      features.EXAMPLE_IDS: positions,
      features.EXAMPLE_WEIGHTS: is_real,
    }

  def _arrays(
    self, split: str, order: example_order.ExampleOrder, positions: np.ndarray
  ) -> list[Any]:
    """Stored arrays of each example; records of a shard are read at once."""
    records = self._source.records(split)
    places = [order.corpus_of(int(position)) for position in positions]
    out: list[Any] = [None] * len(places)
    for corpus in {corpus for corpus, _ in places}:
      rows = [row for row, place in enumerate(places) if place[0] == corpus]
      found = records[corpus].read_arrays(
        [places[row][1] for row in rows], self._names
      )
      for row, arrays in zip(rows, found):
        out[row] = arrays
    return out
