# SPDX-License-Identifier: Apache-2.0
"""What the studio makes of wishes, with a small bundle of random weights."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
import small_bundle
import soundfile

from musiclm_jax.cli import studio_queue, studio_session, studio_wishes
from musiclm_jax.core import errors
from musiclm_jax.systems import musiclm, provenance, watched

RATE_HZ = 8000
FORM = studio_wishes.Form(prompt="a flute", secs=2, seed=7)
SECS = 300.0


@pytest.fixture(autouse=True, scope="module")
def compile_lightly():
  jax.config.update("jax_disable_most_optimizations", True)
  batch_size = studio_session.BATCH_SIZE
  studio_session.BATCH_SIZE = 1  # One shape for one and for many candidates.
  yield
  studio_session.BATCH_SIZE = batch_size
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(name="system", scope="module")
def _system(tmp_path_factory, compile_lightly):
  folder = tmp_path_factory.mktemp("small")
  return musiclm.MusicLM.load(small_bundle.write(folder))


@pytest.fixture(name="studio", scope="module")
def _studio(tmp_path_factory, system):
  return studio_session.Studio(system, tmp_path_factory.mktemp("work"))


def write_upload(studio, name, waveform, rate_hz=RATE_HZ):
  path = studio.uploads_dir / name
  soundfile.write(path, waveform, rate_hz)
  return str(path)


def tone(secs, hz=440.0):
  times = np.arange(round(secs * RATE_HZ)) / RATE_HZ
  return 0.3 * np.sin(2 * np.pi * hz * times)


def make(studio, watcher=None, **fields):
  plan = studio.plan(dataclasses.replace(FORM, **fields))
  return studio.make(plan, watcher or watched.Watcher(watched.Speed()))


def sound(take):
  return soundfile.read(take.path, dtype="int16")[0]


def test_takes_are_what_the_system_makes_of_their_seeds(studio, system):
  watcher = watched.Watcher(watched.Speed())
  takes = make(studio, watcher, num_candidates=3)
  assert watcher.fraction == 1.0 and watcher.secs_left == 0.0
  assert [take.score for take in takes] == sorted(
    (take.score for take in takes), reverse=True
  )
  assert len({take.seed for take in takes}) == 3
  assert 7 in {take.seed for take in takes}
  for take in takes[:2]:
    alone = system.generate("a flute", 2, take.seed)
    expected = np.round(alone.waveform[0] * 32767)
    np.testing.assert_allclose(sound(take), expected, atol=1)
    told = provenance.read(take.path)
    assert (told["prompt"], told["seed"]) == ("a flute", take.seed)
    assert told["candidate"]["mulan_score"] == pytest.approx(
      take.score, abs=1e-5
    )
    assert told["bundle_fingerprint"]
    assert take.spectrogram.startswith("<svg")


def test_a_story_and_a_continuation_are_made(studio):
  story = make(studio, mode="Story", story="0 a flute\n0:01 drums")
  assert len(sound(story[0])) == 2 * RATE_HZ
  told = provenance.read(story[0].path)
  assert [scene["at"] for scene in told["story"]] == [0.0, 1.0]
  assert told["prompt"] == "a flute / drums"
  path = write_upload(studio, "hum.wav", tone(1.2))
  longer = make(studio, mode="Continue", prompt="", continuation=path)
  assert len(sound(longer[0])) == 2 * RATE_HZ
  assert provenance.read(longer[0].path)["continue_from"] == "hum.wav"


def test_visitors_get_their_own_seeds(studio):
  queue = studio_queue.Queue()
  plans = {
    seed: studio.plan(dataclasses.replace(FORM, seed=seed)) for seed in range(4)
  }
  tasks = {
    seed: queue.submit(f"visitor {seed}", lambda w, p=plan: studio.make(p, w))
    for seed, plan in plans.items()
  }
  assert all(queue.wait(task, SECS) for task in tasks.values())
  queue.close()
  sounds = {}
  for seed, task in tasks.items():
    (take,) = task.result
    assert take.seed == take.settings["seed"] == seed
    sounds[seed] = sound(take)
  (again,) = make(studio, seed=2)
  np.testing.assert_array_equal(sound(again), sounds[2])
  assert not np.array_equal(sounds[1], sounds[2])


def test_stopping_ends_work_between_windows(studio):
  watcher = watched.Watcher(watched.Speed())
  watcher.is_stopped = True
  before = list(studio.results_dir.iterdir())
  with pytest.raises(watched.Stopped):
    make(studio, watcher)
  assert list(studio.results_dir.iterdir()) == before


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"prompt": "  "}, "the prompt is empty"),
    ({"guidance": 3.0}, "guidance=3 of the semantic stage"),
    ({"melody": "none.wav"}, "has no"),
    ({"mode": "Continue", "continuation": "/etc/passwd"}, "not uploaded here"),
    ({"mode": "Continue", "continuation": "../x.wav"}, "not uploaded here"),
    ({"negative": "drums"}, "a negative prompt needs guidance"),
  ],
)
def test_what_does_not_go_is_said_before_it_is_queued(studio, fields, message):
  with pytest.raises(errors.UserError, match=message):
    studio.plan(dataclasses.replace(FORM, **fields))


@pytest.mark.parametrize(
  "waveform, message",
  [
    (np.zeros(RATE_HZ * 2), "silent"),
    (tone(0.2), "expected at least"),
    (tone(5.0), "expected less than the length"),
    (tone(70.0), "longer than 60 s"),
  ],
)
def test_uploads_that_cannot_be_continued(studio, waveform, message):
  path = write_upload(studio, "in.wav", waveform)
  with pytest.raises(errors.UserError, match=message):
    make(studio, mode="Continue", continuation=path)


def test_old_results_are_deleted(tmp_path, system, monkeypatch):
  monkeypatch.setattr(studio_session, "MAX_RESULTS", 2)
  studio = studio_session.Studio(system, tmp_path / "work")
  takes = make(studio, num_candidates=3)
  there = [take.path.exists() for take in takes]
  assert there == [False, True, True]
  assert all(tmp_path in take.path.parents for take in takes)


def test_unwritable_folder_is_a_user_error(tmp_path, system):
  pathlib.Path(tmp_path / "file").write_text("")
  with pytest.raises(errors.UserError, match="cannot write to"):
    studio_session.Studio(system, tmp_path / "file")
