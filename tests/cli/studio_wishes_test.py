# SPDX-License-Identifier: Apache-2.0
"""Forms of the studio: what is taken, and that the rest is said in one line."""

import dataclasses

import numpy as np
import pytest

from musiclm_jax.cli import studio_wishes
from musiclm_jax.core import errors

LIMITS = studio_wishes.Limits(max_secs=30, max_candidates=4, max_chars=50)
FORM = studio_wishes.Form(prompt=" a flute ", secs=5, seed=3.0)


def read(**fields):
  return studio_wishes.read(dataclasses.replace(FORM, **fields), LIMITS)


def test_a_prompt():
  wish = read()
  assert (wish.prompt, wish.secs, wish.seed) == ("a flute", 5.0, 3)
  assert isinstance(wish.seed, int) and isinstance(wish.secs, float)
  assert wish.story is None and wish.melody is None


def test_a_story_of_lines():
  story = read(
    mode="Story",
    story="0 calm flute\n\n 0:02.5  loud brass, 3 horns\n4s: drums",
    transition_secs=1,
  ).story
  assert story.texts == ("calm flute", "loud brass, 3 horns", "drums")
  assert [scene.at for scene in story.scenes] == [0.0, 2.5, 4.0]
  assert [scene.transition_secs for scene in story.scenes] == [0.0, 1.0, 1.0]


def test_fields_of_other_modes_are_left_out():
  wish = read(melody="m.wav", continuation="c.wav", story="nonsense")
  assert (wish.melody, wish.continuation, wish.story) == ("m.wav", None, None)
  wish = read(mode="Continue", melody="m.wav", continuation="c.wav")
  assert (wish.melody, wish.continuation) == (None, "c.wav")


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"mode": "x"}, "mode: expected one of Prompt, Story, Continue"),
    ({"mode": []}, "mode: expected one of"),
    ({"prompt": 3}, "the prompt: expected a text"),
    ({"prompt": "x" * 51}, "the prompt has 51 characters"),
    ({"prompt": "\ud800"}, "the prompt is no text"),
    ({"secs": None}, "length: expected a number from 1 to 30"),
    ({"secs": "5"}, "length: expected"),
    ({"secs": float("nan")}, "length is out of range: expected"),
    ({"secs": 31}, "length is 31: expected"),
    ({"secs": 10**400}, "length is out of range"),
    ({"secs": True}, "length: expected"),
    ({"seed": 1.5}, "seed is 1.5: expected a whole number"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**31}, "seed is"),
    ({"num_candidates": 5}, "candidates is 5"),
    ({"guidance": -1}, "guidance is -1"),
    ({"negative": {}}, "the negative prompt: expected a text"),
    ({"melody": ["a"]}, "melody: expected an uploaded file"),
    ({"mode": "Continue"}, "no audio to continue"),
    ({"mode": "Story", "story": ""}, "holds no prompt"),
    ({"mode": "Story", "story": "flute"}, "line 1 of the story: expected"),
    ({"mode": "Story", "story": "1 flute"}, "expected at 0"),
    ({"mode": "Story", "story": "0 a\n9 b"}, "at 9 s: expected before the end"),
    ({"mode": "Story", "story": "0 a\n" * 17}, "17 lines: expected at most"),
    ({"mode": "Story", "story": "0 " + "a" * 51}, "has 51 characters"),
  ],
)
def test_what_does_not_go_is_said(fields, message):
  with pytest.raises(errors.UserError, match=message) as found:
    read(**fields)
  assert "\n" not in str(found.value)


def test_anything_at_all_is_a_wish_or_a_user_error():
  generator = np.random.default_rng(0)
  values = [
    *(None, True, -1, 0, 1, 2.5, 1e308, float("inf"), float("nan"), 10**500),
    *("", "0 a", "0 a\n1 b", "../x", "\0", "\ud800", "x" * 10**5, "٣ a"),
    *([], {}, {"path": "/etc/passwd"}, ["a"], b"a"),
    *studio_wishes.MODES,
  ]
  fields = [field.name for field in dataclasses.fields(studio_wishes.Form)]
  taken = 0
  for _ in range(500):
    some = generator.choice(fields, 2, replace=False)
    form = {name: values[generator.integers(len(values))] for name in some}
    try:
      read(**form)
      taken += 1
    except errors.UserError as error:
      assert len(str(error)) < 300
  assert 10 < taken < 400


def test_limits_are_positive():
  with pytest.raises(ValueError, match="max_candidates=0: expected >= 1"):
    studio_wishes.Limits(max_candidates=0)
