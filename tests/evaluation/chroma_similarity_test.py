# SPDX-License-Identifier: Apache-2.0
"""Chroma scores on tones whose pitch is known."""

import numpy as np
import pytest

from musiclm_jax.evaluation import bootstrap, chroma_similarity

RATE_HZ = 24000


def tune(notes, secs=0.5, timbre=(1.0,)):
  """A tone per MIDI note, with partials of given strength."""
  at = np.arange(round(secs * RATE_HZ)) / RATE_HZ
  parts = []
  for note in notes:
    hz = 440 * 2 ** ((note - 69) / 12)
    parts.append(
      sum(
        a * np.sin(2 * np.pi * hz * (n + 1) * at) for n, a in enumerate(timbre)
      )
    )
  return (0.2 * np.concatenate(parts)).astype(np.float32)


def chroma(*args, **kwargs):
  return chroma_similarity.chromagram(tune(*args, **kwargs), RATE_HZ)


def test_chromagram_finds_the_pitch_class():
  found = chroma([60, 64, 67, 69], secs=1.0)
  rate_hz = chroma_similarity.FRAME_RATE_HZ
  assert len(found) == pytest.approx(4 * rate_hz, abs=2)
  for second, pitch_class in enumerate([0, 4, 7, 9]):
    frame = found[round((second + 0.5) * rate_hz)]
    assert frame.argmax() == pitch_class and frame.max() == pytest.approx(1)


def test_silent_frames_count_for_nothing():
  waveform = tune([60, 64])
  padded = np.concatenate([waveform, np.zeros(2 * RATE_HZ, np.float32)])
  found = chroma_similarity.chromagram(padded, RATE_HZ)
  assert not found[-5:].any()
  other = np.concatenate([waveform, tune([61] * 4)])
  other = chroma_similarity.chromagram(other, RATE_HZ)
  assert chroma_similarity.similarity(found, other) > 0.9
  assert chroma_similarity.similarity(found * 0, other) == 0.0


def test_same_tune_in_another_timbre_is_closer_than_another_tune():
  notes = [60, 62, 64, 65, 67, 69, 71, 72]
  melody = chroma(notes)
  same = chroma([n + 12 for n in notes], timbre=(1.0, 0.5, 0.2))
  other = chroma([n + 1 for n in notes])
  assert chroma_similarity.similarity(melody, same) > 0.7
  assert chroma_similarity.similarity(melody, other) < 0.5
  # Another tune to the ear of one who hears keys, the same to who does not.
  assert chroma_similarity.transposed_similarity(melody, other) > 0.9


def scores(results, plain, text, plain_text, melody_of=(0, 1, 2, 0, 1, 2)):
  melodies = [np.eye(12)[[n, n + 1, n + 2, n]] for n in (0, 3, 6)]
  make = {"own": lambda m: melodies[m], "none": lambda m: np.eye(12)[[11] * 4]}
  return chroma_similarity.melody_scores(
    melodies,
    [make[results](m) for m in melody_of],
    [make[plain](m) for m in melody_of],
    melody_of,
    np.array(text),
    np.array(plain_text),
    [0, 0, 1, 1, 2, 2],
  )


TEXT = [0.3, 0.4, 0.2, 0.3, 0.5, 0.1]


def test_scores_tell_melodies_that_are_taken():
  found = scores("own", "none", TEXT, TEXT)
  assert found["chroma"]["given"]["mean"] == pytest.approx(1)
  assert found["chroma"]["shuffled"]["mean"] == pytest.approx(0, abs=1e-6)
  assert found["chroma"]["given_minus_plain"]["mean"] == pytest.approx(1)
  # In any key, all three tunes are one.
  transposed = found["chroma"]["transposed_given_minus_shuffled"]
  assert transposed["mean"] == pytest.approx(0, abs=1e-6)
  assert found["verdicts"] == {"takes_melody": True, "keeps_text": True}
  assert (found["num_items"], found["num_melodies"]) == (6, 3)
  assert found["items"][4]["melody"] == 1
  ignored = scores("none", "none", TEXT, TEXT)
  assert not ignored["verdicts"]["takes_melody"]


def test_a_lost_text_is_told():
  worse = [score - 0.1 for score in TEXT]
  found = scores("own", "none", worse, TEXT)
  assert found["text"]["melody_minus_plain"]["mean"] == pytest.approx(-0.1)
  assert not found["verdicts"]["keeps_text"]


def test_bad_lists_are_refused():
  with pytest.raises(ValueError, match="at least 2 melodies"):
    scores("own", "none", TEXT, TEXT, (0,) * 6)
  with pytest.raises(ValueError, match="equal lengths"):
    scores("own", "none", TEXT[:4], TEXT)


def test_what_melody_and_result_have_by_themselves_is_taken_out():
  generator = np.random.default_rng(0)
  num, held, wide = 40, 0, []
  for _ in range(100):
    # Nobody listens to the melody given; all differ in how near they are to
    # anything.
    pairs = 0.1 * generator.normal(size=(num, 1))
    pairs = pairs + 0.1 * generator.normal(size=(1, num))
    pairs = pairs + 0.02 * generator.normal(size=(num, num))
    own, others, difference = chroma_similarity.given_and_shuffled(
      pairs, range(num)
    )
    assert difference.mean() == pytest.approx((own - others).mean())
    found = bootstrap.mean_interval(difference, 500)
    held += found.low <= 0 <= found.high
    wide.append((difference.std(), (own - others).std()))
  assert held >= 85  # Of 95 that the interval promises.
  assert np.mean([one < other / 3 for one, other in wide]) == 1
  # A melody that is taken stands out by as much as it is nearer.
  *_, difference = chroma_similarity.given_and_shuffled(
    pairs + 0.05 * np.eye(num), range(num)
  )
  assert bootstrap.mean_interval(difference, 500).low > 0.03
