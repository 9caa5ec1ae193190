# SPDX-License-Identifier: Apache-2.0
"""Order of examples, mixtures, and errors of sources."""

import io

import numpy as np
import pytest
import seqio
import soundfile

from musiclm_jax.core import errors
from musiclm_jax.data import clip_source, example_order, sources


@pytest.mark.parametrize("size", [1, 2, 13, 64, 1000])
def test_permute_is_a_bijection_and_depends_on_key(size):
  orders = [
    [example_order.permute(index, size, key) for index in range(size)]
    for key in (1, 2)
  ]
  for order in orders:
    assert sorted(order) == list(range(size))
  if size > 10:
    assert orders[0] != orders[1]
    assert orders[0] != list(range(size))


def test_each_epoch_reads_every_record_once_in_another_order():
  order = example_order.ExampleOrder([7, 6], seed=3)
  epochs = [
    [order.position(k) for k in range(13 * epoch, 13 * epoch + 13)]
    for epoch in range(3)
  ]
  for epoch in epochs:
    assert sorted(epoch) == list(range(13))
  assert epochs[0] != epochs[1] != epochs[2]
  assert [order.corpus_of(i) for i in (0, 6, 7, 12)] == [
    (0, 0),
    (0, 6),
    (1, 0),
    (1, 5),
  ]


def test_mixture_keeps_shares_and_sees_all_before_repeating():
  order = example_order.ExampleOrder([50, 400], seed=3, weights=[3, 1])
  positions = [order.position(k) for k in range(2000)]
  corpora = np.array([order.corpus_of(p)[0] for p in positions])
  assert (corpora[:1000] == 0).sum() == 750
  assert 0.6 < (corpora[:200] == 0).mean() < 0.9  # Mixed, not in runs.
  small = [p for p in positions if p < 50]
  assert sorted(small[:50]) == sorted(small[50:100]) == list(range(50))
  large = [p for p in positions if p >= 50]
  assert sorted(large[:400]) == list(range(50, 450))
  # A position does not depend on what was asked for before.
  fresh = example_order.ExampleOrder([50, 400], seed=3, weights=[3, 1])
  assert fresh.position(1999) == positions[1999]


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_hosts_share_the_keys_of_each_global_batch(num_hosts):
  hosts = []
  for host in range(num_hosts):
    shard = sources.BatchShard(
      host, num_hosts, global_batch_size=8, start_step=5, num_steps=2
    )
    keys = np.array(list(shard.keys().as_numpy_iterator()))
    hosts.append(keys.reshape(2, -1))
  expected = np.arange(40, 56).reshape(2, 8)
  np.testing.assert_array_equal(np.concatenate(hosts, axis=1), expected)


def test_plain_seqio_sharding_reads_one_epoch(small_corpus):
  source = clip_source.ClipSource([small_corpus], 8000)
  assert source.num_input_examples("train") == 13
  found = []
  for index in range(2):
    dataset = source.get_dataset(
      "train", seed=1, shard_info=seqio.ShardInfo(index, 2)
    )
    found += [int(row["example_ids"]) for row in dataset]
  assert sorted(found) == list(range(13))


def test_clips_are_decoded_exactly_and_kept_up_to_the_limit(small_corpus):
  limit = 5 * 24000  # Bytes of five clips of 1.5 s.
  source = clip_source.ClipSource([small_corpus], 8000, max_ram_bytes=limit)
  records = source.records("train")[0]
  first = [source.read(records, index)["waveform"] for index in range(13)]
  again = [source.read(records, index)["waveform"] for index in range(13)]
  for one, two in zip(first, again, strict=True):
    np.testing.assert_array_equal(one, two)
  number = int(records.clip_id(2).removeprefix("clip"))
  if number != 3:
    position = np.arange(12000)
    ramp = (number * 2000 + position // 10 + 1).astype(np.int16) / 32768.0
    np.testing.assert_array_equal(first[2], ramp.astype(np.float32))
  assert records.num_kept_bytes <= limit
  assert records.num_kept_bytes > limit - 24000


def test_audio_is_mixed_down_and_resampled():
  time = np.arange(16000) / 16000
  tone = 0.5 * np.sin(2 * np.pi * 440 * time)
  content = io.BytesIO()
  stereo = np.stack([tone, np.zeros_like(tone)], axis=1)
  soundfile.write(content, stereo, 16000, format="FLAC")
  samples = clip_source.decode_audio(content.getvalue(), 8000)
  assert samples.shape == (8000,)
  expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
  error = samples / 32768.0 - expected
  assert np.abs(error[500:-500]).max() < 1e-3


def test_missing_corpus_names_folder_and_command(tmp_path):
  with pytest.raises(errors.UserError, match="musiclm prepare") as caught:
    clip_source.ClipSource([str(tmp_path / "absent")], 8000)
  assert "absent" in str(caught.value)


def test_unknown_split_and_wrong_weights_are_user_errors(small_corpus):
  source = clip_source.ClipSource([small_corpus], 8000)
  with pytest.raises(errors.UserError, match="did you mean 'train'"):
    source.records("trian")
  with pytest.raises(errors.UserError, match="weights"):
    clip_source.ClipSource([small_corpus], 8000, weights=(1.0, 2.0))
