# SPDX-License-Identifier: Apache-2.0
"""Music and noise in one batch: the same positions, noise begins anew."""

import itertools

import numpy as np
import pytest

from musiclm_jax.core import errors
from musiclm_jax.data import noise


class Source:
  """What `WithNoise` uses of a loader; values name step and row."""

  eval_split = "validation"

  def __init__(self, offset, num_eval=2, batch_size=4, samples=3):
    self.global_batch_size = batch_size
    self._offset, self._num_eval, self._samples = offset, num_eval, samples

  def _batch(self, step, host, hosts):
    rows = self.global_batch_size // hosts
    first = self._offset + 100 * step + host * rows
    waveform = np.repeat(np.arange(rows)[:, None] + first, self._samples, 1)
    return {"waveform": waveform, "example_ids": waveform[:, 0]}

  def train_batches(self, start_step, host_index, num_hosts):
    for step in itertools.count(start_step):
      yield self._batch(step, host_index, num_hosts)

  def eval_batches(
    self, split=None, host_index=0, num_hosts=1, max_batches=None
  ):
    for step in range(min(self._num_eval, max_batches or 99)):
      yield self._batch(step, host_index, num_hosts)


def test_noise_of_the_same_position_joins():
  both = noise.WithNoise(Source(0), Source(5000))
  batch = next(both.train_batches(7, 1, 2))
  assert batch["waveform"][:, 0].tolist() == [702, 703]
  assert batch["noise"][:, 0].tolist() == [5702, 5703]
  assert batch["example_ids"].tolist() == [702, 703]


def test_evaluation_is_as_long_as_the_music():
  both = noise.WithNoise(Source(0, num_eval=5), Source(5000, num_eval=2))
  batches = list(both.eval_batches())
  assert [b["waveform"][0, 0] for b in batches] == [0, 100, 200, 300, 400]
  assert [b["noise"][0, 0] for b in batches] == [5000, 5100, 5000, 5100, 5000]
  assert len(list(both.eval_batches(max_batches=2))) == 2


@pytest.mark.parametrize("split, name", [(None, "validation"), ("te", "te")])
def test_a_split_without_noise_is_named(split, name):
  both = noise.WithNoise(Source(0), Source(0, num_eval=0))
  with pytest.raises(errors.UserError, match=f"split '{name}' of the noise"):
    next(both.eval_batches(split))


def test_what_does_not_fit_is_named():
  with pytest.raises(ValueError, match="global_batch_size of 2: expected 4"):
    noise.WithNoise(Source(0), Source(0, batch_size=2))
  both = noise.WithNoise(Source(0), Source(0, samples=9))
  with pytest.raises(ValueError, match=r"shape \(4, 9\): expected \(4, 3\)"):
    next(both.train_batches())
