# SPDX-License-Identifier: Apache-2.0
"""Items of different length in shared batches, by token equality."""

import numpy as np
import pytest
import small_bundle

from musiclm_jax.decoding import sampling
from musiclm_jax.systems import continuous_batching, musiclm

SECONDS = [3.5, 1.0, 0.4, 1.0, 1.0]
TEXTS = ["slow piano", "loud brass", "drums", "a flute", "a choir"]


@pytest.fixture(name="system", scope="module")
def _system(tmp_path_factory):
  # The last fine window of an item lies over a part of the one before.
  folder = small_bundle.write(
    tmp_path_factory.mktemp("bundle"), ("mulan",), fine_secs=0.6
  )
  return musiclm.MusicLM.load(folder)


def asked(system, index):
  """The last item is guided."""
  drawn = (1.0, 0.95, 0.4)
  if index == len(SECONDS) - 1:
    drawn = (sampling.SamplingConfig(1.0, guidance=2.0), 0.95, 0.4)
  return system.request(TEXTS[index], SECONDS[index], 7 + index, drawn)


@pytest.fixture(name="alone", scope="module")
def _alone(system):
  return [system.run(asked(system, index)) for index in range(len(SECONDS))]


@pytest.mark.parametrize("sizes", [(2, 4), (1, None)])
def test_items_are_what_they_are_alone(system, alone, sizes):
  batcher = continuous_batching.Batcher(system, *sizes)
  taken = []

  def requests():
    for index in range(len(SECONDS)):
      taken.append(index)
      yield index, lambda index=index: asked(system, index)

  order = []
  for index, made in batcher.run(requests()):
    order.append(index)
    assert made.seeds == (7 + index,)
    assert made.codes.keys() == alone[index].codes.keys()
    for name, codes in made.codes.items():
      np.testing.assert_array_equal(codes, alone[index].codes[name])
    np.testing.assert_allclose(made.waveform, alone[index].waveform, atol=1e-5)
  assert sorted(order) == taken == list(range(len(SECONDS)))
  # Short items, though asked for later, do not wait for the long one.
  assert order[-1] == 0 or sizes == (1, None)
  if sizes == (2, 4):
    counts = batcher.counts
    # 3 semantic windows, then 1 of each other item; coarse ones half overlap;
    # fine ones of 0.6 s side by side.
    assert counts.num_rows == (3 + 4) + (7 + 4) + (7 + 2 * 4)
    assert counts.num_rows + counts.num_filling < 2 * counts.num_rows


def test_a_long_item_is_not_put_off_for_ever(system):
  count = 60

  def requests():
    for index in range(count):
      seconds = 1.0 if index else 2.0
      yield index, lambda s=seconds, i=index: system.request("drums", s, i)

  batcher = continuous_batching.Batcher(system, 2, 4)
  order = [index for index, _ in batcher.run(requests())]
  assert sorted(order) == list(range(count))
  # It has no company: first two by two go some of the others.
  assert 1 < order.index(0) < count - 10
