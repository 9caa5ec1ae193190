# SPDX-License-Identifier: Apache-2.0
"""Modes of the generate job, and files that grow."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from musiclm_jax.cli import generation_modes, jobs, streamed_output
from musiclm_jax.core import errors

RATE_HZ = 8000


def job(tmp_path, **fields):
  """A job on a bundle of which only the header is there."""
  folder = tmp_path / "bundle"
  folder.mkdir(exist_ok=True)
  parts = {"soundstream": {}, "mulan": {}}
  (folder / "bundle.json").write_text(json.dumps({"parts": parts}))
  return jobs.GenerateJob(bundle=str(folder), **fields)


def write_story(tmp_path):
  path = tmp_path / "story.yaml"
  path.write_text("- {at: 0, text: calm}\n- {at: 1:30, text: drums}\n")
  return str(path)


def write_tone(tmp_path, secs):
  path = tmp_path / "in.wav"
  soundfile.write(path, np.full(round(secs * RATE_HZ), 0.1), RATE_HZ)
  return str(path)


def test_sidecars_tell_of_the_mode(tmp_path):
  mode = generation_modes.read(job(tmp_path, prompt=("a",)))
  assert (mode.name, mode.needs_text, mode.about) == ("text", True, {})
  mode = generation_modes.read(job(tmp_path, story=write_story(tmp_path)))
  assert mode.default_text == "calm / drums"
  assert [scene["at"] for scene in mode.about["story"]] == [0.0, 90.0]
  # The same story in other words of YAML.
  (tmp_path / "story.yaml").write_text(json.dumps(mode.about["story"]))
  again = generation_modes.read(job(tmp_path, story=write_story(tmp_path)))
  assert again.about == mode.about
  path = write_tone(tmp_path, 1.0)
  mode = generation_modes.read(job(tmp_path, continue_from=path))
  assert not mode.needs_text and mode.default_text == ""
  assert len(mode.about["continue_from_sha256"]) == 64


def test_without_mulan_no_text_is_needed(tmp_path):
  header = {"parts": {"soundstream": {}}}
  without = job(tmp_path)
  (tmp_path / "bundle/bundle.json").write_text(json.dumps(header))
  assert not generation_modes.read(without).needs_text


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"story": "s", "continue_from": "c"}, "--story and --continue_from"),
    ({"resynthesize": "r", "melody": "m"}, "--resynthesize and --melody"),
    ({"continue_from": "none.wav"}, "no audio file at none.wav"),
    ({"story": "none.yaml"}, "no story at none.yaml"),
  ],
)
def test_what_does_not_go_is_said(tmp_path, fields, message):
  with pytest.raises(errors.UserError, match=message):
    generation_modes.read(job(tmp_path, **fields))


def test_a_story_brings_its_own_texts(tmp_path):
  told = job(tmp_path, story=write_story(tmp_path), prompt=("a flute",))
  with pytest.raises(errors.UserError, match="the texts in the story"):
    generation_modes.read(told)
  assert generation_modes.read(dataclasses.replace(told, prompt=()))


@pytest.mark.parametrize("channels", [1, 2])
def test_growing_file_is_whole_after_each_piece(tmp_path, channels):
  tail = () if channels == 1 else (channels,)
  generator = np.random.default_rng(0)
  pieces = [
    generator.uniform(-1, 1, (length, *tail)).astype(np.float32)
    for length in (100, 1, 2500)
  ]
  path = tmp_path / "new" / "out.wav"
  with streamed_output.GrowingWav(path, RATE_HZ, channels) as file:
    for count, piece in enumerate(pieces, 1):
      file.write(piece)
      found, rate = soundfile.read(path, dtype="float32")
      assert rate == RATE_HZ
      np.testing.assert_allclose(
        found, np.concatenate(pieces[:count]), atol=1e-4
      )
  # Killed between the samples and the header that counts them.
  with path.open("ab") as file:
    file.write(b"\1\2" * 7)
  found, _ = soundfile.read(path, dtype="float32")
  np.testing.assert_allclose(found, np.concatenate(pieces), atol=1e-4)


def test_unwritable_target_is_a_user_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(errors.UserError, match="cannot write"):
    streamed_output.GrowingWav(tmp_path / "file" / "out.wav", RATE_HZ)
