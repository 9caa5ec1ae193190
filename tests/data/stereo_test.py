# SPDX-License-Identifier: Apache-2.0
"""Two channels from a folder of files to batches, in their order."""

import itertools
import json
import pathlib

import numpy as np
import pytest
import soundfile

from musiclm_jax.audio import files
from musiclm_jax.core import errors
from musiclm_jax.data import audio_source, clips, corpora, loader, tasks

RATE_HZ = 48_000


def _tone(hz, secs=3.0, rate_hz=RATE_HZ):
  return 0.25 * np.sin(
    2 * np.pi * hz * np.arange(round(secs * rate_hz)) / rate_hz
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Five stereo files, left twice as loud as right, and one of mono."""
  root = tmp_path_factory.mktemp("stereo")
  (root / "music").mkdir()
  for number in range(5):
    left = _tone(200 + 100 * number)
    soundfile.write(
      root / f"music/wide{number}.wav", np.stack([left, -left / 2], 1), RATE_HZ
    )
  soundfile.write(root / "music/mono.wav", _tone(900, rate_hz=24_000), 24_000)
  return root


@pytest.fixture(scope="module")
def corpus_dir(folder):
  return _prepare(folder, sample_rate_hz=RATE_HZ, num_channels=2)


def _prepare(folder, **options):
  return corpora.prepare_audio_folder(
    folder / "built",
    folder / "music",
    segment_secs=1.5,
    num_processes=1,
    test_fraction=0.0,
    **options,
  )


def _all_clips(corpus_dir, num_channels):
  readers = [
    clips.ClipReader(corpus_dir, split, num_channels)
    for split in clips.split_names(corpus_dir)
  ]
  found = [reader[n] for reader in readers for n in range(len(reader))]
  return {clip.clip_id: clip for clip in found}


def _is_left_of(waveform):
  """Whether right is half of left, upside down (within 16 bits)."""
  left, right = np.moveaxis(waveform, -1, 0)
  assert np.abs(left).max() > 0.01
  return np.allclose(right, -left / 2, atol=2e-4)


def test_a_corpus_keeps_both_channels_and_their_order(corpus_dir):
  info = json.loads((corpus_dir / "metadata.json").read_text())
  assert (info["num_channels"], info["sample_rate_hz"]) == (2, RATE_HZ)
  found = _all_clips(corpus_dir, 2)
  assert len(found) == 12
  for name, clip in found.items():
    assert clip.waveform.shape == (72_000, 2)
    assert clip.sample_rate_hz == RATE_HZ
    if name.startswith("mono"):
      np.testing.assert_array_equal(*np.moveaxis(clip.waveform, -1, 0))
    else:
      assert _is_left_of(clip.waveform)
  # Who asks for one channel gets the mean.
  for name, clip in _all_clips(corpus_dir, 1).items():
    np.testing.assert_allclose(
      clip.waveform, found[name].waveform.mean(-1), atol=1e-6
    )


def test_a_corpus_without_the_option_is_what_it_was(folder, corpus_dir):
  path = _prepare(folder)
  assert path.parent != corpus_dir.parent
  # Asked for by name it is the same corpus, under the same name.
  assert _prepare(folder, num_channels=1, sample_rate_hz=24_000) == path
  names = set()
  for name, clip in _all_clips(path, 1).items():
    assert clip.waveform.shape == (36_000,), name
    names.add(name)
  assert len(names) == 12
  # And a task doubles its single channel.
  config = tasks.WaveformTaskConfig(str(path), RATE_HZ, 0.5, num_channels=2)
  batch = next(loader.Loader(tasks.waveform_recipe(config), 4).train_batches())
  assert batch["waveform"].shape == (4, 24_000, 2)
  np.testing.assert_array_equal(
    batch["waveform"][..., 0], batch["waveform"][..., 1]
  )


def test_options_of_a_corpus_are_checked(folder):
  with pytest.raises(errors.UserError, match="num_channels=6: expected 1 or 2"):
    _prepare(folder, num_channels=6)
  with pytest.raises(errors.UserError, match="sample_rate_hz=100"):
    _prepare(folder, sample_rate_hz=100)


def _batches(corpus_dir, count, **options):
  config = tasks.WaveformTaskConfig(
    str(corpus_dir), RATE_HZ, 0.5, num_channels=2, **options
  )
  data = loader.Loader(tasks.waveform_recipe(config), 8, seed=1)
  found = list(itertools.islice(data.train_batches(), count))
  return data, np.concatenate([batch["waveform"] for batch in found]), found


def test_crops_have_two_channels_with_one_gain(corpus_dir):
  _, waveform, batches = _batches(corpus_dir, 2, peak=0.9, min_gain_db=-6.0)
  assert waveform.shape == (16, 24_000, 2)
  assert waveform.dtype == np.float32
  assert set(batches[0]) == {"waveform", "num_samples", "example_ids"}
  peaks = np.abs(waveform).max((1, 2))
  assert (peaks <= 0.9001).all() and len(np.unique(peaks.round(3))) > 8
  wide = [not np.array_equal(crop[:, 0], crop[:, 1]) for crop in waveform]
  assert sum(wide) > 8
  for crop in waveform[wide]:
    left, right = crop.T
    # Rounded to 16 bits before the gain, so up to 4 times that apart.
    np.testing.assert_allclose(right, -left / 2, atol=4e-4)


def test_channels_change_places_in_a_share_of_crops(corpus_dir):
  _, plain, _ = _batches(corpus_dir, 5)
  data, mirrored, _ = _batches(corpus_dir, 5, swap_channels_rate=0.5)
  changed = 0
  for one, two in zip(plain, mirrored):
    assert np.array_equal(one, two) or np.array_equal(one[:, ::-1], two)
    changed += not np.array_equal(one, two)
  assert 8 < changed < 30
  # Evaluation draws as well, but always the same.
  first, second = (next(data.eval_batches("train")) for _ in range(2))
  np.testing.assert_array_equal(first["waveform"], second["waveform"])


def test_settings_that_make_no_sense_are_refused(corpus_dir):
  for options, name in (
    ({"num_channels": 3}, "num_channels=3"),
    ({"swap_channels_rate": 0.5}, "swap_channels_rate=0.5"),
    ({"num_channels": 2, "swap_channels_rate": 1.5}, "swap_channels_rate=1.5"),
  ):
    with pytest.raises(ValueError, match=name):
      tasks.WaveformTaskConfig(str(corpus_dir), RATE_HZ, 0.5, **options)
  stereo = tasks.WaveformTaskConfig(
    str(corpus_dir), RATE_HZ, 0.5, num_channels=2
  )
  with pytest.raises(ValueError, match="MuLan hears mono"):
    tasks.CaptionTaskConfig(stereo, "text.model")


@pytest.mark.parametrize("kind", ["corpus", "folder"])
def test_inputs_of_the_tokenize_job_keep_their_channels(
  kind, corpus_dir, folder
):
  path = corpus_dir if kind == "corpus" else folder / "music"
  inputs = audio_source.open_inputs(path, ["train"], 16_000, num_channels=2)
  source = inputs.sources["train"]
  decoded = [source.read(index) for index in range(len(source))]
  assert all(one.reason == "" for one in decoded)
  for one in decoded:
    assert one.waveform.shape[1:] == (2,)
    if pathlib.PurePath(one.clip_id).name.startswith("wide"):
      assert _is_left_of(one.waveform)


def test_channels_become_as_many_as_wanted():
  mono, six = np.arange(4.0), np.arange(24.0).reshape(4, 6)
  for wanted, waveform, expected in (
    (1, mono, mono),
    (1, six, six.mean(-1)),
    (2, mono, np.stack([mono, mono], -1)),
    (2, six[:, :1], six[:, [0, 0]]),
    (2, six[:, :2], six[:, :2]),
    (2, six, np.stack([six.mean(-1)] * 2, -1)),
  ):
    np.testing.assert_array_equal(files.as_channels(waveform, wanted), expected)
