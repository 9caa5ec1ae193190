# SPDX-License-Identifier: Apache-2.0
"""Corpus of melodies: versions keep the melody, and change what they say."""

import collections
import dataclasses
import importlib
import json
import pathlib

import numpy as np
import pytest

from musiclm_jax.data import corpora, worker_pool

worker_pool.register_package(
  "musiclm_jax_builders", [str(corpora.find_builder_dir())]
)


def _module(corpus, name):
  return importlib.import_module(f"musiclm_jax_builders.{corpus}.{name}")


versions, jobs = (_module("melody_pairs", n) for n in ("versions", "jobs"))
voices = _module("melody_pairs", "voices")
works, plans = (_module("score_corpus", n) for n in ("works", "plans"))

STEPS = (0, 4, 7, 12, 7, 4, 2, 0)


def _piece(work_id="w", steps=STEPS):
  """Quarter notes, eight bars in C major, that begin on C5."""
  pitches = [72 + step for step in steps] * 4
  notes = tuple((float(i), 1.0, pitch) for i, pitch in enumerate(pitches))
  return works.Piece(
    work_id, "reel", 0, "major", "4/4", 4.0, 0.0, voices=(notes,)
  )


def _heard(waveform, quarter_secs, num_notes):
  """Pitch class of the harmonic tone that sounds in each quarter note."""
  rate, length, harmonics = jobs.SAMPLE_RATE_HZ, 1 << 15, np.arange(1, 7)
  pitches = np.arange(36, 100)
  hz = 440 * 2 ** ((pitches - 69) / 12) * harmonics[:, None]
  bins = np.minimum(np.round(hz * length / rate).astype(int), length // 2)
  found = []
  for note in range(num_notes):
    middle = round((note + 0.5) * quarter_secs * rate)
    part = waveform[middle - 2000 : middle + 2000] * np.hanning(4000)
    spectrum = np.sqrt(np.abs(np.fft.rfft(part, length)))
    # Not quite in tune: the loudest nearby.
    near = np.max([np.roll(spectrum, s) for s in range(-4, 5)], axis=0)
    score = (near[bins] * (0.8**harmonics)[:, None]).sum(0)
    found.append(int(pitches[score.argmax()] % 12))
  return found


@pytest.mark.parametrize(
  "change",
  [
    {},
    {"lead": "clarinet"},
    {"lead": "trombone", "octave": 0.0},
    {"voice": "hum", "lead": ""},
    {"voice": "whistle", "lead": ""},
    {"tempo_ratio": 1.25},
    {"tempo_ratio": 0.8, "semitones": 5},
    {"voice": "hum", "lead": "", "semitones": -2},
  ],
)
def test_every_version_plays_the_same_melody(change):
  piece = _piece()
  # The work's seed begins at the first bar, or one that sounds the same.
  version = versions.Version("w", "test", 0, "x", score_secs=8.0, **change)
  waveform = jobs.render_version(piece, version)
  ratio, shift = version.tempo_ratio, version.semitones
  assert len(waveform) == round(8.0 / ratio * jobs.SAMPLE_RATE_HZ)
  assert np.abs(waveform).max() < 1
  quarter_secs = 60 / jobs.middle_qpm(piece) / ratio
  heard = _heard(waveform, quarter_secs, 12)
  expected = [(step + shift) % 12 for step in STEPS] * 3
  offsets = (0, 4)  # it begins at a bar line: with either half
  assert heard in [[*expected[o:], *expected[:o]][:12] for o in offsets]


def test_accompaniment_is_added_below():
  piece = _piece()
  alone = versions.Version("w", "test", 0, "x", score_secs=6.0)
  for texture in versions.TEXTURES:
    together = dataclasses.replace(
      alone, partner="church organ", texture=texture, has_drums=True
    )
    waveforms = [jobs.render_version(piece, v) for v in (alone, together)]
    low = [np.abs(np.fft.rfft(w))[: 6 * 250].sum() for w in waveforms]
    assert low[1] > 1.5 * low[0], texture


def test_plans_hold_each_transformation_once_and_split_as_the_scores():
  rng = np.random.default_rng(0)
  pieces = [_piece(f"w{i}", rng.integers(0, 12, 16)) for i in range(230)]
  made = versions.make_versions(pieces, "tiny", seed=3)
  assert made == versions.make_versions(pieces, "tiny", seed=3)
  splits = plans.split_works(pieces, plans.SIZES["tiny"], 3)
  for split, work_ids in splits.items():
    of_split = [v for v in made if v.split == split]
    count = versions.NUM_VERSIONS[split]
    assert [v.work_id for v in of_split] == [
      work_id for work_id in work_ids for _ in range(count)
    ]
    assert [v.index for v in of_split] == list(range(count)) * len(work_ids)
    for version in of_split:
      in_key = version.index < versions.NUM_SAME_KEY[split]
      assert (version.semitones == 0) == in_key
      assert 0.8 <= version.tempo_ratio <= 1.25
  heldout = [v for v in made if v.split == "test"]
  names = [v.transformation for v in heldout[:10]]
  assert names == list(versions.TRANSFORMATIONS)
  plain = heldout[0]
  other = next(v for v in heldout if v.transformation == "instrument")
  assert other.lead != plain.lead
  assert (other.tempo_ratio, other.texture) == (1.0, "")
  leads = collections.Counter(v.lead for v in made if v.split == "train")
  assert len(leads) == 28  # all 27 instruments, and voices


def test_whole_melodies_move_by_octaves():
  notes = [(0.0, 1.0, 60), (1.0, 1.0, 67), (2.0, 1.0, 64)]
  for octave, first in ((0.0, 36), (0.5, 60), (1.0, 84)):
    moved = jobs._octaves(notes, 36, 96, octave)
    assert [p - moved[0][2] for _, _, p in moved] == [0, 7, 4]
    assert moved[0][2] == first


def test_voices_refuse_what_they_cannot_sing():
  with pytest.raises(ValueError, match="voice='yodel'"):
    voices.sing([(0.0, 1.0, 60)], 1.0, "yodel", 8000, 0)
  with pytest.raises(ValueError, match="within 1.0 s"):
    voices.sing([(2.0, 1.0, 60)], 1.0, "hum", 8000, 0)
  with pytest.raises(ValueError, match="size='huge'"):
    versions.get_size("huge")


def test_builds_in_order_with_what_its_reader_needs(tmp_path):
  path = corpora.prepare_melody_pairs(
    tmp_path, "tiny", num_processes=1, share=0.004
  )
  metadata = json.loads((pathlib.Path(path) / "metadata.json").read_text())
  from musiclm_jax.data import clip_source

  for split in ("train", "test"):
    records = clip_source.corpus_builder(path).as_data_source(split)
    count = metadata["versions_per_melody"][split]
    assert len(records) % count == 0 and len(records)
    for index in range(len(records)):
      record = records[index]
      assert record["arrangement"] == index % count
      first = records[index - index % count]
      assert record["work_id"] == first["work_id"]
