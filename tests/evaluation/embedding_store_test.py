# SPDX-License-Identifier: Apache-2.0
"""What was heard is kept: killed at any moment, a shard is lost at most."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import statistics_listener

from musiclm_jax.core import errors
from musiclm_jax.evaluation import clip_files, embedding_store, hearing

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_CLIPS, SHARD_SIZE = 120, 8
# Hears slowly, so that it can be killed in the middle.
SLOW = """
import sys, time
import statistics_listener
from musiclm_jax.evaluation import clip_files, hearing
clips = clip_files.of_folder(sys.argv[1])
keys, _ = clip_files.survey(clips)
ear = statistics_listener.Statistics()
store = hearing.open_store(sys.argv[2], ear, "embed", 8)
def listen(waveforms, rate):
  time.sleep(0.02)
  return ear.embed_audio_windows(waveforms, rate)
hearing.fill(store, listen, clips, keys, 4)
"""


def open_store(folder, ear=None, task=hearing.EMBED):
  ear = ear or statistics_listener.Statistics()
  return hearing.open_store(folder, ear, task, SHARD_SIZE)


def hear(folder, clips, keys):
  ear = statistics_listener.Statistics()
  store = open_store(folder, ear)
  heard = hearing.fill(store, ear.embed_audio_windows, clips, keys, 4)
  return store, heard


@pytest.fixture(name="clips", scope="module")
def _clips(tmp_path_factory):
  folder = tmp_path_factory.mktemp("clips")
  statistics_listener.write_clips(folder, NUM_CLIPS)
  return clip_files.of_folder(folder)


def test_a_killed_process_loses_a_shard_at_most(clips, tmp_path):
  keys, bad = clip_files.survey(clips)
  assert not bad and len(set(keys.values())) == NUM_CLIPS
  environment = {
    **os.environ,
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}",
  }
  process = subprocess.Popen(
    [sys.executable, "-c", SLOW, str(clips[0].path.parent), str(tmp_path)],
    env=environment,
  )
  until = time.monotonic() + 300
  while len(list(tmp_path.glob("*/*.npz"))) < 3:
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  kept = len(open_store(tmp_path))
  assert kept >= 3 * SHARD_SIZE and kept % SHARD_SIZE == 0

  resumed, heard = hear(tmp_path, clips, keys)
  assert (heard.num_known, heard.num_new) == (kept, NUM_CLIPS - kept)
  whole, _ = hear(tmp_path / "other", clips, keys)
  order = list(keys.values())
  for one, other in zip(resumed.read(order), whole.read(order)):
    np.testing.assert_array_equal(one, other)
  _, again = hear(tmp_path, clips, keys)
  assert (again.num_known, again.num_new) == (NUM_CLIPS, 0)
  assert not list(tmp_path.glob("*/.*.writing"))


def test_arrays_depend_on_the_clip_alone(clips, tmp_path):
  keys, _ = clip_files.survey(clips)
  store, _ = hear(tmp_path, clips, keys)
  ear = statistics_listener.Statistics()
  for clip in clips[:7]:
    waveform, rate_hz = clip.decode(clip.read())
    (alone,) = ear.embed_audio_windows(waveform[None], rate_hz)
    (kept,) = store.read([keys[clip.name]])
    np.testing.assert_array_equal(kept, alone)


def test_bad_clips_are_left_out_and_named(clips, tmp_path):
  broken = tmp_path / "broken.wav"
  broken.write_bytes(b"RIFF and nothing else")
  some = [*clips[:3], clip_files.of_path(broken)]
  some.append(clip_files.of_path(tmp_path / "gone.wav"))
  keys, bad = clip_files.survey(some)
  assert [one.name for one in bad] == ["gone.wav"]
  store, heard = hear(tmp_path / "store", some, keys)
  assert [one.name for one in heard.bad] == ["broken.wav"]
  assert len(store) == 3
  # Clips of one content are tried once, and all of them are named.
  same = tmp_path / "same.wav"
  same.write_bytes(broken.read_bytes())
  some.append(clip_files.of_path(same))
  keys, _ = clip_files.survey(some)
  _, heard = hear(tmp_path / "store", some, keys)
  assert [one.name for one in heard.bad] == ["broken.wav", "same.wav"]
  with pytest.raises(errors.UserError, match="2 of 6 reference clips cannot"):
    clip_files.check_bad(heard.bad, 6, 0.1, "reference")
  clip_files.check_bad(heard.bad, 6, 0.4, "reference")


def test_clips_that_a_listener_refuses_are_left_out(clips, tmp_path):
  short = tmp_path / "short.wav"
  statistics_listener.files.write_wav(short, np.zeros(3), 8000)
  some = [*clips[:3], clip_files.of_path(short), *clips[3:5]]
  keys, _ = clip_files.survey(some)
  ear = statistics_listener.Statistics()

  def listen(waveforms, rate_hz):
    if waveforms.shape[1] < 10:
      raise errors.UserError("nothing is left at this rate")
    return ear.embed_audio_windows(waveforms, rate_hz)

  store = open_store(tmp_path / "store", ear)
  heard = hearing.fill(store, listen, some, keys, 4)
  assert len(store) == heard.num_new == 5
  (bad,) = heard.bad
  assert bad == ("short.wav", "short.wav: nothing is left at this rate")


def test_other_listeners_have_other_stores(tmp_path):
  ear = statistics_listener.Statistics()
  store = open_store(tmp_path, ear)
  store.add("a", np.zeros((2, 3)))
  store.flush()
  other = statistics_listener.Statistics()
  other.fingerprint = "fedcba"
  assert "a" in open_store(tmp_path, ear)
  assert "a" not in open_store(tmp_path, other)
  assert "a" not in open_store(tmp_path, ear, hearing.CLASSIFY)
  (folder, *_) = [path.parent for path in tmp_path.glob("*/*.npz")]
  with pytest.raises(errors.UserError, match="holds embeddings of"):
    embedding_store.EmbeddingStore(folder, {"name": "another"})


def test_damaged_shards_are_named(tmp_path):
  store = open_store(tmp_path)
  store.add("a", np.zeros((2, 3)))
  store.flush()
  (path,) = tmp_path.glob("*/*.npz")
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(errors.UserError, match="damaged shard .*: delete it"):
    open_store(tmp_path)
