# SPDX-License-Identifier: Apache-2.0
"""Tokens of long files do not depend on windows, cuts, batches or devices."""

import dataclasses

import jax
import numpy as np
import pytest
import tokenizer_artifacts as small

from musiclm_jax.core import errors
from musiclm_jax.networks import soundstream
from musiclm_jax.systems import device_feed, tokenizers, window_programs

WINDOWS = (1.0, 2.0, 0.4)  # codec; semantic and its halo


@pytest.fixture(scope="module")
def artifact_dir(tmp_path_factory):
  return small.write(tmp_path_factory.mktemp("artifacts"), is_fitted=True)


@pytest.fixture(scope="module")
def feed(artifact_dir):
  programs = window_programs.load(artifact_dir, *WINDOWS)
  return device_feed.DeviceFeed(programs), programs


def tokenize(feed, *waveforms):
  """Arrays of each waveform, through one feed."""
  feed, programs = feed
  items = []
  for index, waveform in enumerate(waveforms):
    audio = window_programs.Audio(waveform, small.RATE_HZ)
    cuts = {program.name: program.cut(audio) for program in programs}
    items.append(device_feed.Item(index // 2, index, cuts))
  found = {}
  for row in feed.collect(feed.dispatch(items)):
    if isinstance(row, device_feed.Row):
      found[row.item.index, row.program, row.window] = row.result
  return [
    {
      name: cut.join(
        [found[item.index, name, n] for n in range(item.num_rows[name])]
      )
      for name, cut in item.cuts.items()
    }
    for item in items
  ]


def test_reach_of_the_encoder_is_what_its_config_says():
  config = soundstream.SoundStreamConfig(
    channels=2,
    strides=(2, 3),
    dilations=(1, 3),
    kernel_size=5,
    code_dim=4,
    num_codebooks=1,
    codebook_size=4,
    init="random",
  )
  network = soundstream.SoundStream(config)
  frames = 40
  waveform = np.random.default_rng(0).normal(size=(1, frames * 6))
  variables = small.random_values(
    jax.eval_shape(network.init, jax.random.key(0), waveform), 0
  )

  def last(x):
    return network.apply(variables, x, method=network.latents)[0, -1].sum()

  gradient = np.asarray(jax.jit(jax.grad(last))(waveform.astype(np.float32)))[0]
  assert frames * 6 - np.flatnonzero(gradient)[0] == (
    window_programs.encoder_reach(config)
  )


def test_codec_windows_give_the_codes_of_the_whole_file(artifact_dir, feed):
  codec = tokenizers.SoundStreamTokenizer.load(artifact_dir / "soundstream")
  waveform = small.music(5.37, 0)
  whole = codec.encode(waveform[None])[0]
  codes = tokenize(feed, waveform)[0]["acoustic"]
  assert len(feed[1][0].windows.plan(len(codes))) == 6
  assert len(np.unique(codes)) > 8
  np.testing.assert_array_equal(codes, whole)


def test_semantic_tokens_do_not_depend_on_where_the_file_was_cut(feed):
  program = feed[1][1]
  assert (program.windows.stride, program.windows.left) == (30, 10)
  waveform = small.music(8.0, 1)
  grid, length = round(1.2 * small.RATE_HZ), round(2.0 * small.RATE_HZ)
  # Cut at two points of the grid. The first piece ends with a window; behind
  # its middle, frames belong to the next, which the piece does not hold.
  part = waveform[grid : 3 * grid + length]
  other = waveform[2 * grid :]
  whole, first, second = (
    one["semantic"] for one in tokenize(feed, waveform, part, other)
  )
  assert len(np.unique(whole)) > 4
  np.testing.assert_array_equal(first[10:100], whole[40:130])
  np.testing.assert_array_equal(second[10:], whole[70:])


def test_mulan_windows_are_those_of_the_embedder(artifact_dir, feed):
  embedder = tokenizers.MuLanTokenizer.load(artifact_dir / "mulan")
  waveform = small.music(4.5, 2)
  vectors = tokenize(feed, waveform)[0]["mulan_embeddings"]
  expected = embedder.embed_windows(waveform[None], small.RATE_HZ)[0]
  assert vectors.shape == (3, 16)
  np.testing.assert_allclose(vectors, expected, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)


def test_company_in_a_batch_changes_no_bit(feed):
  waveforms = [small.music(secs, 3) for secs in (2.9, 0.6, 4.1)]
  together = tokenize(feed, *waveforms)
  for waveform, expected in zip(waveforms, together):
    (alone,) = tokenize(feed, waveform)
    for name, array in expected.items():
      assert array.tobytes() == alone[name].tobytes(), name


def test_devices_are_timed(feed):
  before = dataclasses.replace(feed[0].times)
  tokenize(feed, small.music(2.0, 5))
  after = feed[0].times
  assert after.busy_secs > before.busy_secs
  assert after.num_rows - before.num_rows == 4  # 2 codec, 1 semantic, 1 MuLan


def test_windows_must_fit_the_frames(artifact_dir):
  with pytest.raises(errors.UserError, match="semantic_window_secs"):
    window_programs.load(artifact_dir, 1.0, 2.01, 0.4)
  with pytest.raises(errors.UserError, match="less than half"):
    window_programs.load(artifact_dir, 1.0, 2.0, 1.0)
