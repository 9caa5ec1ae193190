# SPDX-License-Identifier: Apache-2.0
"""Shares and distances of facets; tempo and key of made-up sounds; the page."""

import numpy as np
import pytest

from musiclm_jax.evaluation import audio_facts, bias, bias_page

RATE_HZ = 22050


def facet(*names, groups=None):
  rows = tuple(one if isinstance(one, tuple) else (one,) for one in names)
  return bias.Facet(rows, tuple(groups or map(str, range(len(rows)))))


def test_items_count_once_and_nameless_ones_not():
  found = bias.describe(facet(("flute", "piano"), "piano", (), "piano"))
  assert found["names"] == ["piano", "flute"]
  side = found["corpus"]
  assert (side["num_items"], side["num_named"]) == (4, 3)
  assert side["shares"]["piano"]["mean"] == pytest.approx(2.5 / 3)
  assert side["shares"]["flute"]["mean"] == pytest.approx(0.5 / 3)
  with pytest.raises(ValueError, match="no item has a name"):
    bias.describe(facet((), ()))
  with pytest.raises(ValueError, match="1 items, 2 groups"):
    facet("a", groups=["1", "2"])


def test_distance_beside_that_of_the_corpus_itself():
  corpus = facet(*["a", "b", "c", "d"] * 50)
  same = bias.compare(corpus, facet(*["a", "b", "c", "d"] * 5))
  assert same["total_variation"]["mean"] == pytest.approx(0)
  assert not same["total_variation"]["above_chance"]
  assert same["total_variation"]["low"] == 0.0
  few = bias.compare(facet(*"aabbccdd"), facet(*"aabbccd"))["total_variation"]
  assert few["low"] <= few["mean"] <= few["high"] < 0.6
  # Twenty clips of four even names lie this far from even, on average:
  # half of 4 * E|Binomial(20, 1/4) - 5| / 20.
  generator = np.random.default_rng(9)
  expected = 2 * np.abs(generator.binomial(20, 0.25, 10**5) - 5).mean() / 20
  assert same["total_variation"]["chance"] == pytest.approx(expected, abs=0.01)
  apart = bias.compare(corpus, facet(*["a"] * 15, *["e"] * 5))
  distance = apart["total_variation"]
  assert distance["mean"] == pytest.approx(0.75)
  assert distance["low"] <= 0.75 <= distance["high"]
  assert distance["above_chance"]
  assert apart["generated"]["shares"]["e"]["mean"] == 0.25
  assert apart["names"] == ["a", "b", "c", "d", "e"]


def test_chance_knows_that_clips_of_one_group_are_alike():
  names = ["a"] * 60 + ["b"] * 60
  works = [str(number // 6) for number in range(120)]
  corpus = facet(*names, groups=works)
  made = ["a"] * 14 + ["b"] * 10
  apart = bias.compare(corpus, facet(*made))["total_variation"]
  prompts = [str(number // 6) for number in range(24)]
  alike = bias.compare(corpus, facet(*made, groups=prompts))["total_variation"]
  # Four groups of six of a kind scatter as four items, not as 24.
  assert alike["chance"] == pytest.approx(6**0.5 * apart["chance"], rel=0.15)
  # Of works that are no kind of their own, groups change nothing.
  mixed = facet(*["a", "b"] * 60, groups=works)
  even = bias.compare(mixed, facet(*made, groups=prompts))["total_variation"]
  assert even["chance"] == pytest.approx(apart["chance"], rel=0.15)


def test_clips_of_one_work_widen_the_interval():
  names = ["a"] * 12 + ["b"] * 12
  alone = bias.describe(facet(*names))["corpus"]["shares"]["a"]
  works = [str(number // 6) for number in range(24)]
  alike = bias.describe(facet(*names, groups=works))["corpus"]["shares"]["a"]
  assert alike["high"] - alike["low"] > 1.5 * (alone["high"] - alone["low"])


def test_judges_are_compared_with_what_is_known():
  known = facet(("flute", "piano"), "piano", (), "drums")
  judged = bias.top_names(np.eye(3)[[0, 1, 2, 1]], ["flute", "piano", "drums"])
  found = bias.agreement(judged, known)
  assert found["mean"] == pytest.approx(2 / 3)
  assert found["commonest"] == pytest.approx(2 / 3)
  assert bias.agreement(judged, facet((), (), (), ())) is None


def chord(*pitches, secs=4.0):
  time = np.arange(round(secs * RATE_HZ)) / RATE_HZ
  hz = 440.0 * 2 ** ((np.array(pitches)[:, None] - 69) / 12)
  return (np.sin(2 * np.pi * hz * time).mean(0) / 2).astype(np.float32)


def test_tempo_and_key_of_known_sounds():
  # A click every 0.6 s: 100 BPM.
  clicks = np.zeros(8 * RATE_HZ, np.float32)
  for start in range(0, len(clicks) - 400, round(0.6 * RATE_HZ)):
    clicks[start : start + 400] = np.hanning(400) * chord(80, secs=1)[:400]
  assert audio_facts.tempo_bpm(clicks, RATE_HZ) == pytest.approx(100, abs=3)
  scale = np.concatenate(
    [chord(62 + step, secs=0.4) for step in (0, 2, 4, 5, 7, 9, 11, 12, 7, 4, 0)]
  )
  silence = np.zeros(RATE_HZ, np.float32)
  found, nothing = audio_facts.facts([scale, silence], RATE_HZ)
  assert (found["key"], found["mode"]) == ("D major", "major")
  assert nothing == {
    "tempo": audio_facts.NO_BEAT,
    "key": audio_facts.NO_KEY,
    "mode": audio_facts.NO_KEY,
  }
  # A minor triad with its tonic doubled.
  profile = np.zeros((1, 12))
  profile[0, [9, 0, 4]] = 3, 2, 2
  assert audio_facts.key(profile) == ("A", "minor")


def test_tempo_names_are_in_order():
  names = [audio_facts.tempo_name(bpm) for bpm in (40, 60, 79, 150, 300)]
  assert names == [
    "below 60 BPM",
    "60 to 80 BPM",
    "60 to 80 BPM",
    "140 to 160 BPM",
    "160 BPM and above",
  ]
  order = audio_facts.tempo_names()
  assert [order.index(name) for name in names] == sorted(
    order.index(name) for name in names
  )


def test_page_needs_nothing_and_escapes(tmp_path):
  one = bias.compare(facet("<b>", "x"), facet("x", "x"))
  report = {
    "corpus": {"name": "small 1.0", "num_clips": 2},
    "prompts": ["Music."],
    "samples": [
      {
        "file": "generated/000.wav",
        "prompt": "<i>",
        "heard": {"key": "C major"},
      }
    ],
    "facets": {
      "heard_key": {"title": "Key", "source": "Estimated.", **one},
      "known_genre": {
        "title": "Genre",
        "source": "Metadata.",
        **bias.describe(facet("jig", ())),
      },
    },
  }
  text = bias_page.write(tmp_path / "index.html", report).read_text()
  assert "&lt;b&gt;" in text and "<b>" not in text and "&lt;i&gt;" in text
  assert "http" not in text and "<script" not in text
  assert "1 of 2 clips" in text and 'src="generated/000.wav"' in text
