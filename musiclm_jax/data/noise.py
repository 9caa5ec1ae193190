# SPDX-License-Identifier: Apache-2.0
"""Batches of music and batches of noise in; batches with both out.

For a codec that learns to denoise (`models/denoising.py`): recordings of noise
are a corpus like any other, and are mixed in on the device.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from musiclm_jax.core import errors
from musiclm_jax.data import loader

FEATURE = "noise"


class WithNoise:
  """A loader whose batches also hold the waveforms of another.

  Attributes:
    global_batch_size: rows over all hosts.
  """

  def __init__(self, data: loader.Loader, noise: loader.Loader):
    """Joins two loaders with equal batches and crops.

    Args:
      data: of the music.
      noise: of the noise; another seed than that of `data` is not needed, for
        the corpora differ.

    Raises:
      ValueError: if their batches differ.
    """
    if data.global_batch_size != noise.global_batch_size:
      raise ValueError(
        f"noise has a global_batch_size of {noise.global_batch_size}: expected "
        f"{data.global_batch_size}, that of the data"
      )
    self._data, self._noise = data, noise
    self.global_batch_size = data.global_batch_size

  def train_batches(
    self, start_step: int = 0, host_index: int = 0, num_hosts: int = 1
  ) -> Iterator[loader.Batch]:
    """As `Loader.train_batches`, with 'noise' float32 `[batch, samples]`."""
    position = (start_step, host_index, num_hosts)
    yield from _joined(
      self._data.train_batches(*position), self._noise.train_batches(*position)
    )

  def num_eval_batches(self, split: str | None = None) -> int:
    """As `Loader.num_eval_batches`."""
    return self._data.num_eval_batches(split)

  def eval_batches(
    self,
    split: str | None = None,
    host_index: int = 0,
    num_hosts: int = 1,
    max_batches: int | None = None,
  ) -> Iterator[loader.Batch]:
    """As `Loader.eval_batches`; noise begins anew where there is less of it.

    Raises:
      UserError: if there is no noise in the split.
    """

    def noise() -> Iterator[loader.Batch]:
      while True:
        batch = None
        for batch in self._noise.eval_batches(split, host_index, num_hosts):
          yield batch
        if batch is None:
          name = self._noise.eval_split if split is None else split
          raise errors.UserError(
            f"split {name!r} of the noise is empty: expected recordings"
          )

    yield from _joined(
      self._data.eval_batches(split, host_index, num_hosts, max_batches),
      noise(),
    )

  def describe(
    self, example_ids: Sequence[int], split: str | None = None
  ) -> list[str]:
    """Names the clips of music behind `example_ids`, for alarms."""
    return self._data.describe(example_ids, split)


def _joined(data: Any, noise: Any) -> Iterator[loader.Batch]:
  for batch, more in zip(data, noise):
    if more["waveform"].shape != batch["waveform"].shape:
      raise ValueError(
        f"noise has crops of shape {more['waveform'].shape}: expected "
        f"{batch['waveform'].shape}, that of the data"
      )
    yield {**batch, FEATURE: more["waveform"]}
