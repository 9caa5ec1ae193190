# SPDX-License-Identifier: Apache-2.0
"""The loader: a recipe in, batches of numpy arrays for one host out.

Background threads read ahead: our own for stages, those of tf.data for audio.
Batch `step` is the same however
often the run was restarted, and the hosts' rows together are the same batch
whatever their number.
"""

import atexit
import contextlib
import hashlib
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from musiclm_jax.core import errors
from musiclm_jax.data import features, read_ahead, sources, tasks

Batch = dict[str, np.ndarray]


class _Running:
  """Holds the only reference to an iterator with reader threads."""

  def __init__(self, iterator: Iterator[Batch]):
    self.iterator = iterator

  def close(self) -> None:
    """Stops the readers and waits for them."""
    self.iterator = None


_RUNNING: "weakref.WeakSet[_Running]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
  # Readers call Python; once the interpreter is being torn down they never
  # get its lock, and TensorFlow would wait for them for ever.
  for running in list(_RUNNING):
    running.close()


class Loader:
  """Deterministic batches of one split of a recipe."""

  def __init__(
    self,
    recipe: tasks.Recipe,
    global_batch_size: int,
    seed: int = 0,
    train_split: str = "train",
    eval_split: str = "validation",
    num_prefetch: int = 4,
  ):
    """Prepares batches; nothing is read yet.

    Args:
      recipe: from `tasks`.
      global_batch_size: rows over all hosts.
      seed: names the order and the crops of training.
      train_split: split of `train_batches`.
      eval_split: split of `eval_batches`.
      num_prefetch: host batches made ahead of their use.
    """
    if global_batch_size < 1:
      raise ValueError(f"global_batch_size={global_batch_size}: expected >= 1")
    self._recipe = recipe
    self._batch_size = global_batch_size
    self._seed = seed
    self._train_split = train_split
    self._eval_split = eval_split
    self._num_prefetch = num_prefetch
    # TensorFlow must not take the memory of an accelerator JAX uses; it
    # refuses once it runs, and then it is too late.
    with contextlib.suppress(RuntimeError):
      tf.config.set_visible_devices([], "GPU")

  @property
  def global_batch_size(self) -> int:
    """Rows over all hosts."""
    return self._batch_size

  @property
  def eval_split(self) -> str:
    """Split of `eval_batches`, where none is named."""
    return self._eval_split

  @property
  def num_train_examples(self) -> int:
    """Records of the train split, over all corpora."""
    return self._recipe.task.source.num_input_examples(self._train_split)

  @property
  def num_text_ids(self) -> int:
    """Ids of the text vocabulary, 0 where batches hold no text."""
    text = self._recipe.task.output_features.get("text_tokens")
    return text.vocabulary.vocab_size if text else 0

  def num_eval_batches(self, split: str | None = None) -> int:
    """Batches of one pass over an evaluation split."""
    split = self._eval_split if split is None else split
    records = self._recipe.task.source.records(split)
    return -(-sum(len(entry) for entry in records) // self._num_examples)

  @property
  def _num_examples(self) -> int:
    """Examples of a global batch: several in a row, where rows are packed."""
    num_packed = getattr(self._recipe.converter, "num_packed", 1)
    return self._batch_size * num_packed

  def train_batches(
    self, start_step: int = 0, host_index: int = 0, num_hosts: int = 1
  ) -> Iterator[Batch]:
    """Endless batches from `start_step` on.

    Args:
      start_step: first optimizer step; reached at once.
      host_index: this host.
      num_hosts: hosts that share a global batch.

    Yields:
      Rows `[host_index * b, (host_index + 1) * b)` of the global batch, `b =
      global_batch_size / num_hosts`, with `example_ids` int64 `[b]`.

    Raises:
      UserError: if the batch does not divide by the hosts, or a record
        cannot be read.
    """
    shard = self._shard(host_index, num_hosts, start_step, None)
    for batch in self._batches(self._train_split, shard, self._seed, True):
      batch.pop(features.EXAMPLE_WEIGHTS)
      yield batch

  def eval_batches(
    self,
    split: str | None = None,
    host_index: int = 0,
    num_hosts: int = 1,
    max_batches: int | None = None,
  ) -> Iterator[Batch]:
    """One pass over a split, the same for every seed.

    Args:
      split: other than the `eval_split`.
      host_index: this host.
      num_hosts: hosts that share a global batch.
      max_batches: stop early.

    Yields:
      Batches as in training, with `example_weights` float32 `[b]`: 0 on rows
      that fill the last batch, whose loss weights are 0 too. Every host gets
      equally many.
    """
    split = self._eval_split if split is None else split
    num_batches = self.num_eval_batches(split)
    if max_batches is not None:
      num_batches = min(num_batches, max_batches)
    shard = self._shard(host_index, num_hosts, 0, num_batches)
    # Weights are shares of training; evaluation reads everything once.
    yield from self._batches(split, shard, 0, False)

  def train_dataset(
    self, start_step: int = 0, host_index: int = 0, num_hosts: int = 1
  ) -> tf.data.Dataset:
    """What `train_batches` yields, without ids, for loops of others."""
    shard = self._shard(host_index, num_hosts, start_step, None)
    dataset = self._dataset(self._train_split, shard, self._seed, True)
    return dataset.map(_without_bookkeeping)

  def eval_dataset(
    self, host_index: int = 0, num_hosts: int = 1, max_batches: int = 0
  ) -> tf.data.Dataset:
    """What `eval_batches` yields, without ids, for loops of others."""
    num_batches = self.num_eval_batches()
    if max_batches:
      num_batches = min(num_batches, max_batches)
    shard = self._shard(host_index, num_hosts, 0, num_batches)
    dataset = self._dataset(self._eval_split, shard, 0, False)
    return dataset.map(_without_bookkeeping)

  def describe(
    self, example_ids: Sequence[int], split: str | None = None
  ) -> list[str]:
    """Names the clips behind `example_ids`, for alarms."""
    split = self._train_split if split is None else split
    source = self._recipe.task.source
    return [source.describe(split, int(position)) for position in example_ids]

  def _shard(
    self, host_index: int, num_hosts: int, start_step: int, num_steps
  ) -> sources.BatchShard:
    if self._batch_size % num_hosts:
      raise errors.UserError(
        f"global_batch_size={self._batch_size}: expected a multiple of the "
        f"{num_hosts} hosts"
      )
    return sources.BatchShard(
      index=host_index,
      num_shards=num_hosts,
      global_batch_size=self._num_examples,
      start_step=start_step,
      num_steps=num_steps,
    )

  def _dataset(
    self, split: str, shard: sources.BatchShard, seed: int, shuffle: bool
  ) -> tf.data.Dataset:
    recipe = self._recipe
    dataset = recipe.task.get_dataset(
      sequence_length=None,
      split=split,
      shuffle=shuffle,
      seed=seed,
      shard_info=shard,
      num_epochs=1,
      try_in_mem_cache=False,
    )
    dataset = recipe.converter(dataset, recipe.feature_lengths)
    rows = self._batch_size // shard.num_shards
    dataset = dataset.batch(rows, drop_remainder=True)
    dataset = dataset.prefetch(self._num_prefetch)
    # Its thread sleeps up to a minute, and the iterator's end waits for it.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)

  def _read(
    self, split: str, shard: sources.BatchShard, seed: int, shuffle: bool
  ) -> Iterator[Batch]:
    """Batches by the reader of the recipe, in this thread."""
    reader = self._recipe.reader
    order = reader.order(split, seed, shuffle)
    step = shard.start_step
    while shard.num_steps is None or step < shard.start_step + shard.num_steps:
      keys = shard.step_keys(step)
      yield reader.read(split, order, keys, seed, shuffle)
      step += 1

  def _batches(
    self, split: str, shard: sources.BatchShard, seed: int, shuffle: bool
  ) -> Iterator[Batch]:
    if self._recipe.reader is not None:
      batches = self._read(split, shard, seed, shuffle)
      yield from read_ahead.read_ahead(batches, self._num_prefetch)
      return
    dataset = self._dataset(split, shard, seed, shuffle)
    running = _Running(dataset.as_numpy_iterator())
    _RUNNING.add(running)
    try:
      while running.iterator is not None:
        try:
          batch = next(running.iterator)
        except StopIteration:
          return
        except tf.errors.OpError as error:
          raise _as_user_error(error, self._recipe.task.name) from error
        yield dict(batch)
    finally:
      running.close()


def _without_bookkeeping(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  names = (features.EXAMPLE_IDS, features.EXAMPLE_WEIGHTS)
  return {name: x for name, x in batch.items() if name not in names}


def _as_user_error(error: tf.errors.OpError, task: str) -> Exception:
  """Our own error again, out of the text tf.data wraps it in."""
  message = str(error)
  found = re.search(r"^\s*(?:\w+\.)*UserError: (.*)$", message, re.MULTILINE)
  if found:
    return errors.UserError(found.group(1))
  return RuntimeError(f"task {task}: {message}")


def batch_hash(batches: Sequence[Mapping[str, np.ndarray]]) -> str:
  """Hex hash of a global batch from its hosts' rows, in host order."""
  digest = hashlib.sha256()
  for name in sorted(batches[0]):
    array = np.concatenate([batch[name] for batch in batches])
    array = np.ascontiguousarray(array)
    digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()[:16]
