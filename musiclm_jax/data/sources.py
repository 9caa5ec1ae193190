# SPDX-License-Identifier: Apache-2.0
"""Seqio data sources with random access: positions in, records out.

The example at position `k = step * global_batch_size + row` of a run is a pure
function of (seed, k). A host reads its own rows of each global batch, so the
global batches do not depend on the number of hosts, and a run resumes at any
step at once. Nothing is shuffled in a buffer.
"""

import abc
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from musiclm_jax.core import errors
from musiclm_jax.data import (
  example_order,
  features,
  token_cache,
)


@dataclasses.dataclass(frozen=True)
class BatchShard(seqio.ShardInfo):
  """Seqio shard info that names this host's rows of each global batch.

  Attributes:
    global_batch_size: rows over all hosts.
    start_step: first global batch.
    num_steps: batches to read, or None for endless training.
  """

  global_batch_size: int = 1
  start_step: int = 0
  num_steps: int | None = None

  @property
  def host_batch_size(self) -> int:
    return self.global_batch_size // self.num_shards

  def step_keys(self, step: int) -> np.ndarray:
    """Positions of this host's rows of global batch `step`, int64."""
    first = step * self.global_batch_size + self.index * self.host_batch_size
    return np.arange(first, first + self.host_batch_size, dtype=np.int64)

  def keys(self) -> tf.data.Dataset:
    """Positions `k` in the order this host reads them."""
    rows = self.host_batch_size
    start = self.start_step * rows
    count = tf.int64.max // self.global_batch_size - start
    if self.num_steps is not None:
      count = self.num_steps * rows

    def to_key(item: tf.Tensor) -> tf.Tensor:
      step, row = item // rows, item % rows
      return step * self.global_batch_size + self.index * rows + row

    return tf.data.Dataset.range(start, start + count).map(to_key)


class IndexedSource(seqio.DataSource, abc.ABC):
  """A source over the records of one or more directories.

  Subclasses open the records of one (directory, split) and read one of them.
  `get_dataset` takes a `BatchShard` from our loader, or a plain
  `seqio.ShardInfo` (or None), for which it reads one epoch.
  """

  def __init__(
    self,
    directories: Sequence[str],
    signature: Mapping[str, tf.TensorSpec],
    weights: Sequence[float] = (),
    num_threads: int = 4,
  ):
    """Reads the sizes of all splits.

    Args:
      directories: corpora or token caches.
      signature: features `read` returns.
      weights: share of each directory, empty for one pass over all of them.
      num_threads: reader threads of one dataset.

    Raises:
      UserError: if a directory is missing or has no split.
    """
    self.directories = tuple(str(directory) for directory in directories)
    if not self.directories:
      raise errors.UserError("corpus or cache directories: expected at least 1")
    if len(weights) and len(weights) != len(self.directories):
      raise errors.UserError(
        f"weights={tuple(weights)}: expected one per directory of "
        f"{self.directories}"
      )
    if any(not weight > 0 for weight in weights):
      raise errors.UserError(f"weights={tuple(weights)}: expected all > 0")
    self._signature = dict(signature)
    self._weights = tuple(weights)
    self._num_threads = num_threads
    self._opened: dict[str, list[Any]] = {}
    self._lock = threading.Lock()
    sizes = [self.split_sizes(directory) for directory in self.directories]
    common = set.intersection(*(set(size) for size in sizes))
    super().__init__(
      splits=tuple(sorted(common)),
      num_input_examples={
        split: sum(size[split] for size in sizes) for split in common
      },
      caching_permitted=False,
      performs_internal_shuffling=True,
    )

  @abc.abstractmethod
  def split_sizes(self, directory: str) -> dict[str, int]:
    """Records by split of one directory."""

  @abc.abstractmethod
  def open_records(self, directory: str, split: str) -> Any:
    """A sequence of the records of one split, random access."""

  @abc.abstractmethod
  def read(self, records: Any, index: int) -> dict[str, np.ndarray]:
    """The features of one record, as the signature says."""

  def drawn(self, order: Any, k: int) -> dict[str, np.ndarray]:
    """More features, of a position in the run and not of its record."""
    del order, k
    return {}

  def describe(self, split: str, position: int) -> str:
    """Names the record at `position`, for alarms."""
    order = example_order.ExampleOrder([len(r) for r in self.records(split)], 0)
    corpus, index = order.corpus_of(position)
    return f"record {index} of split {split!r} in {self.directories[corpus]}"

  def records(self, split: str) -> list[Any]:
    """Opened records of `split`, one per directory, non-empty."""
    if split not in self.splits:
      raise errors.UserError(
        f"split {split!r} of {self.directories}: expected one of "
        f"{list(self.splits)}{errors.nearest(split, self.splits)}"
      )
    with self._lock:
      if split not in self._opened:
        opened = [self.open_records(d, split) for d in self.directories]
        for directory, records in zip(self.directories, opened):
          if not len(records):
            raise errors.UserError(
              f"split {split!r} of {directory} is empty: expected records"
            )
        self._opened[split] = opened
      return self._opened[split]

  def order(
    self, split: str, seed: int, shuffle: bool
  ) -> example_order.ExampleOrder:
    """Which record is read at which position of a run."""
    sizes = [len(entry) for entry in self.records(split)]
    return example_order.ExampleOrder(sizes, seed, self._weights, shuffle)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    return [split]

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused: Any,
  ) -> tf.data.Dataset:
    """Examples at the positions `shard_info` names.

    Args:
      split: which records.
      shuffle: False for corpus order without repeats.
      seed: of order and crops; None is 0.
      shard_info: `BatchShard`, `seqio.ShardInfo` or None.
      **unused: arguments of other seqio sources.

    Returns:
      A dataset of the source's signature and `features.BOOKKEEPING`.
    """
    records = self.records(split)
    seed = 0 if seed is None else int(seed)
    order = self.order(split, seed, shuffle)
    if isinstance(shard_info, BatchShard):
      keys = shard_info.keys()
    else:
      keys = tf.data.Dataset.range(order.num_examples)
      if shard_info is not None:
        keys = keys.shard(shard_info.num_shards, shard_info.index)
    reader = self._reader(records, order, seed, shuffle)
    signature = {**self._signature, **features.BOOKKEEPING}
    names = list(signature)

    def load(key: tf.Tensor) -> dict[str, tf.Tensor]:
      dtypes = [signature[name].dtype for name in names]
      values = tf.numpy_function(reader, [key], dtypes)
      for name, value in zip(names, values):
        value.set_shape(signature[name].shape)
      return dict(zip(names, values))

    return keys.map(
      load, num_parallel_calls=self._num_threads, deterministic=True
    )

  def _reader(
    self,
    records: Sequence[Any],
    order: example_order.ExampleOrder,
    seed: int,
    shuffle: bool,
  ) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The function of a position that tf.data calls."""
    names = list(self._signature)

    def read_key(key: np.ndarray) -> list[np.ndarray]:
      k = int(key)
      # In order, positions past the end only fill the last batch.
      is_real = shuffle or k < order.num_examples
      position = order.position(k)
      corpus, index = order.corpus_of(position)
      example = {**self.read(records[corpus], index), **self.drawn(order, k)}
      crop_hash = example_order.mix(seed, k, 1)
      crop_seed = [crop_hash >> 33, crop_hash & 0x7FFFFFFF]
      return [example[name] for name in names] + [
        np.asarray(position, np.int64),
        np.asarray(is_real, np.float32),
        np.asarray(crop_seed, np.int32),
      ]

    return read_key


class CacheSource(IndexedSource):
  """Codes of token caches: one feature per stream, embeddings for MuLan."""

  def __init__(
    self,
    cache_dirs: Sequence[str],
    stream_names: Sequence[str],
    weights: Sequence[float] = (),
    num_threads: int = 2,
  ):
    """Opens token caches made by the same tokenizers.

    Args:
      cache_dirs: token caches; all must have the same streams and
        fingerprints.
      stream_names: streams to read; 'mulan' gives `mulan_embeddings`.
      weights: share of each cache, see `IndexedSource`.
      num_threads: reader threads.

    Raises:
      UserError: if a cache is missing or caches do not fit together.
    """
    self.config = token_cache.read_config(cache_dirs[0])
    for directory in cache_dirs[1:]:
      token_cache.check_same_tokenizers(
        directory, token_cache.read_config(directory), self.config
      )
    signature = {}
    for name in stream_names:
      if name == token_cache.MULAN:
        signature[token_cache.EMBEDDINGS] = tf.TensorSpec(
          [None, None], tf.float32
        )
      else:
        stream = self.config.stream(name)
        signature[name] = features.codes_spec(stream.num_codebooks)
    super().__init__(cache_dirs, signature, weights, num_threads)

  def split_sizes(self, directory: str) -> dict[str, int]:
    return token_cache.TokenCacheReader(directory).sizes

  def open_records(self, directory: str, split: str) -> Any:
    return token_cache.TokenCacheReader(directory)[split]

  def read(self, records: Any, index: int) -> dict[str, np.ndarray]:
    return records[index].arrays

  def describe(self, split: str, position: int) -> str:
    """Names the clip at `position` by its id."""
    records = self.records(split)
    order = example_order.ExampleOrder([len(entry) for entry in records], 0)
    corpus, index = order.corpus_of(position)
    return (
      f"clip {records[corpus][index].clip_id!r} of "
      + (self.directories[corpus])
    )
