# SPDX-License-Identifier: Apache-2.0
"""Labels of windows, from scores."""

import json

import pytest

from musiclm_jax.core import errors
from musiclm_jax.data import score_labels


@pytest.fixture(scope="module")
def labels():
  return score_labels.labels_module()


def score(labels, melody, notes=()):
  return labels.ClipScore(
    "c", "w", (), tuple(melody), (*melody, *notes), "flute", "slow", 60.0
  )


def test_melody_pitch_class_is_the_note_that_prevails(labels):
  tune = score(labels, [(0.0, 1.0, 60), (1.0, 0.5, 64), (1.5, 0.5, 67)])
  at = labels.melody_pitch_class
  assert at(tune, 0.2, 0.8) == 0
  assert at(tune, 1.0, 1.4) == 4
  assert at(tune, 1.25, 1.75) == -1  # half and half
  assert at(tune, 3.0, 3.5) == -1  # nothing sounds


def test_chord_names_root_and_mode(labels):
  def chord(*pitches):
    notes = [(0.0, 1.0, pitch) for pitch in pitches]
    found = labels.chord(score(labels, notes), 0.0, 1.0)
    return labels.CHORD_NAMES[found] if found >= 0 else None

  assert chord(60, 64, 67) == "C"
  assert chord(57, 60, 64) == "Am"
  assert chord(62, 66, 69, 74) == "D"
  # Of two triads with two common notes the bass says which.
  assert chord(45, 60, 64, 67) == "Am"
  assert chord(48, 57, 64, 67) == "C"
  assert chord(60, 67) is None
  assert chord(60, 61, 62, 63, 64, 65) is None


def test_scores_are_those_of_the_built_clips(labels):
  """What the builder renders and what labels describe is one arrangement."""
  works = score_labels._module("works")
  plans = score_labels._module("plans")
  jobs = score_labels._module("jobs")
  arrange = score_labels._module("arrange")
  tune = [(0.5 * i, 0.5, 60 + 2 * (i % 5)) for i in range(64)]
  piece = works.Piece(
    "w/1", "reel", 0, "major", "4/4", 4.0, 0.0, (tuple(tune),)
  )
  size = plans.SizeSpec({}, 0, 0, 3, 1, 1, 5.0, False)
  chosen = plans.make_plans([piece], size, 0)
  assert len(chosen) == 3
  for plan in chosen:
    found = labels.clip_score(piece, plan)
    built = jobs.make_clip((piece, plan))
    assert found.captions == tuple(built["captions"])
    assert (found.clip_id, found.work_id) == (built["id"], built["work_id"])
    tracks, _ = arrange.arrange(piece, plan)
    assert found.lead == plan.lead and found.tempo == plan.tempo
    assert min(note[0] for note in found.notes) < 0.5
    pitched = [t for t in tracks if t.role != "drums"]
    assert len(found.notes) == sum(len(track.notes) for track in pitched)


def test_other_corpora_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match="no corpus"):
    score_labels.read(tmp_path)
  (tmp_path / "dataset_info.json").write_text(json.dumps({"name": "mine"}))
  with pytest.raises(errors.UserError, match="'mine'.*score_corpus"):
    score_labels.read(tmp_path)
