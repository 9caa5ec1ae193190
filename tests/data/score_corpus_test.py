# SPDX-License-Identifier: Apache-2.0
"""Demo corpus: pieces, plans, arrangements, sound and words agree."""

import collections
import dataclasses
import importlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from musiclm_jax.data import corpora, worker_pool

worker_pool.register_package(
  "musiclm_jax_builders", [str(corpora.find_builder_dir())]
)


def _module(name):
  return importlib.import_module(f"musiclm_jax_builders.score_corpus.{name}")


works, plans, arrange = _module("works"), _module("plans"), _module("arrange")
render, captions, jobs = _module("render"), _module("captions"), _module("jobs")
instruments, harmony = _module("instruments"), _module("harmony")
drums = _module("drums")


def _scale_piece(work_id="w", steps=(0, 2, 4, 5, 7, 5, 4, 2), **changes):
  """Quarter notes up and down a C major scale, eight bars."""
  pitches = [60 + step for step in steps] * 4
  notes = tuple((float(i), 1.0, pitch) for i, pitch in enumerate(pitches))
  piece = works.Piece(
    work_id, "reel", 0, "major", "4/4", 4.0, 0.0, voices=(notes,)
  )
  return dataclasses.replace(piece, **changes)


def _plan(**changes):
  plan = plans.Plan(
    clip_id="w#0",
    work_id="w",
    arrangement=0,
    split="train",
    ensemble="solo",
    lead="flute",
    partner="",
    tempo="moderate",
    loudness="medium",
    register="high",
    has_drums=False,
    secs=4.0,
    seed=3,
  )
  return dataclasses.replace(plan, **changes)


def _waveform(plan, piece=None):
  tracks, _ = arrange.arrange(piece or _scale_piece(), plan)
  return render.finish(
    render.synthesize(tracks, plan.secs), plan.secs, plan.loudness
  )


def _rms_db(waveform):
  return 10 * np.log10(np.mean(np.square(waveform)))


def test_there_are_scores_enough_for_every_size():
  for size in plans.SIZES.values():
    chosen = works.select_works(size.counts, seed=0)
    assert len(chosen) == sum(size.counts.values()) >= 220
    assert len({work.work_id for work in chosen}) == len(chosen)
  assert works.select_works({"fiddle": 5}, 1) != works.select_works(
    {"fiddle": 5}, 2
  )
  with pytest.raises(ValueError, match="expected 'chorale'"):
    works.list_works("choral")


def test_reads_a_chorale_with_four_voices():
  work = works.Work("bach/bwv66.6", "chorale", "bach/bwv66.6.mxl")
  piece = works.read_piece(work)
  assert len(piece.voices) == 4
  assert (piece.tonic, piece.mode) == (6, "minor")
  assert piece.meter == "4/4"
  assert piece.pickup_quarters == 1.0
  # 'Christ, unser Herr, zum Jordan kam': the soprano as printed.
  assert [note[2] for note in piece.melody[:6]] == [73, 71, 69, 71, 73, 76]


def test_reads_one_tune_of_a_collection():
  work = works.Work(
    "oneills1850/0001-0050/2", "oneill", "oneills1850/0001-0050.abc", 2
  )
  piece = works.read_piece(work)
  assert (piece.tonic, piece.mode, piece.meter) == (2, "major", "2/4")
  assert len(piece.voices) == 1
  # f-g | a3-b g3-a: quavers in sixteenths, the f sharp of D major.
  assert [note[2] for note in piece.melody[:4]] == [78, 79, 81, 83]


def test_unusable_score_is_named():
  work = works.Work("x/none", "fiddle", "ryansMammoth/none.abc")
  assert "x/none" in jobs.parse(work)


def test_pieces_that_share_a_melody_stay_in_one_split():
  rng = np.random.default_rng(0)
  pieces = [
    _scale_piece(f"w{i}", steps=rng.permutation(12)[:8]) for i in range(12)
  ]
  copy = dataclasses.replace(
    pieces[3],
    work_id="copy",
    voices=(tuple((o, d, p + 5) for o, d, p in pieces[3].voices[0]),),
  )
  pieces.append(copy)
  groups = works.melody_groups(pieces)
  assert groups[-1] == groups[3] == 3
  assert len(set(groups)) == 12
  size = dataclasses.replace(
    plans.SIZES["tiny"], num_test_works=4, num_validation_works=2
  )
  for seed in range(8):
    splits = plans.split_works(pieces, size, seed)
    split_of = {w: name for name, ids in splits.items() for w in ids}
    assert len(split_of) == 13
    assert split_of["copy"] == split_of["w3"]
    assert len(splits["test"]) == 4


def test_plans_are_balanced_and_repeatable():
  rng = np.random.default_rng(0)
  pieces = [
    _scale_piece(f"w{i}", steps=rng.integers(0, 12, 16)) for i in range(230)
  ]
  size = plans.SIZES["tiny"]
  made = plans.make_plans(pieces, size, seed=0)
  assert made == plans.make_plans(pieces, size, seed=0)
  by_split = collections.Counter(plan.split for plan in made)
  assert by_split == {"train": 198, "validation": 20, "test": 135}
  assert len({plan.clip_id for plan in made}) == len(made)
  train = [plan for plan in made if plan.split == "train"]
  leads = collections.Counter(plan.lead for plan in train)
  assert min(leads.values()) >= 8 and len(leads) == 19
  tempos = collections.Counter(plan.tempo for plan in train)
  assert max(tempos.values()) - min(tempos.values()) <= 1
  assert 0.35 < np.mean([plan.has_drums for plan in train]) < 0.45
  test = collections.defaultdict(list)
  for plan in made:
    if plan.split == "test":
      test[plan.work_id].append(plan)
  assert all(len({p.lead for p in group}) == 3 for group in test.values())
  assert all(p.partner != p.lead for p in made)


@pytest.mark.parametrize("register", ["low", "middle", "high"])
def test_arrangement_keeps_what_the_plan_says(register):
  plan = _plan(lead="piano", register=register, has_drums=True)
  tracks, facts = arrange.arrange(_scale_piece(), plan)
  assert facts.register == register
  assert [track.role for track in tracks] == ["lead", "drums"]
  assert min(note[0] for track in tracks for note in track.notes) == 0
  assert max(note[0] + note[1] for note in tracks[0].notes) >= plan.secs


def test_transposes_key_and_notes_alike():
  piece = _scale_piece()
  tracks, facts = arrange.arrange(piece, _plan())
  classes = {note[2] % 12 for note in tracks[0].notes}
  assert classes <= {(facts.tonic + step) % 12 for step in (0, 2, 4, 5, 7)}


def test_tempos_are_apart_in_notes_per_second():
  rates = {}
  for tempo in plans.TEMPOS:
    tracks, _ = arrange.arrange(_scale_piece(), _plan(tempo=tempo, secs=8.0))
    onsets = [note[0] for note in tracks[0].notes if note[0] < 8.0]
    rates[tempo] = len(onsets) / 8.0
  assert rates["moderate"] > 1.5 * rates["slow"]
  assert rates["fast"] > 1.5 * rates["moderate"]


def test_short_pieces_go_round_and_stay_in_the_bar():
  short = _scale_piece(
    voices=(tuple((float(i), 1.0, 60 + i) for i in range(8)),)
  )
  tracks, _ = arrange.arrange(short, _plan(tempo="fast", secs=10.0))
  assert len(tracks[0].notes) > 24
  gaps = np.diff([note[0] for note in tracks[0].notes])
  np.testing.assert_allclose(gaps, gaps[0], rtol=1e-6)


def test_quartet_of_a_single_melody_has_four_voices_in_range():
  plan = _plan(ensemble="quartet", lead="string quartet")
  tracks, facts = arrange.arrange(_scale_piece(), plan)
  quartet = instruments.QUARTETS_BY_NAME["string quartet"]
  assert tuple(track.program for track in tracks) == quartet.programs
  for track, low, high in zip(tracks, quartet.lowest, quartet.highest):
    assert all(low <= note[2] <= high for note in track.notes)
  means = [np.mean([note[2] for note in track.notes]) for track in tracks]
  assert means[0] > means[1] >= means[2] > means[3]
  assert facts.texture == "four voices"


def test_chords_fit_their_notes():
  key = harmony.Key(0, "major")
  tonic = [(0.0, 2.0, 60), (2.0, 1.0, 64), (3.0, 1.0, 67)]
  dominant = [(4.0, 2.0, 67), (6.0, 1.0, 71), (7.0, 1.0, 74)]
  chords = harmony.choose_chords(tonic + dominant, key, 4.0)
  assert chords == [(0, 4, 7), (7, 11, 2)]
  assert harmony.Key(9, "minor").triad(4) == (4, 8, 11)
  with pytest.raises(ValueError, match="texture='strum'"):
    harmony.accompany(tonic, key, 4.0, "strum", False)


@pytest.mark.parametrize(
  "meter, quarters", [("4/4", 4), ("3/4", 3), ("6/8", 3)]
)
def test_drums_fill_every_bar(meter, quarters):
  hits = drums.pattern(meter, float(quarters), 2.0 * quarters, "moderate")
  first = [hit for hit in hits if hit[0] < quarters]
  second = [(o - quarters, k, s) for o, k, s in hits if o >= quarters]
  np.testing.assert_allclose(first, second)
  assert first[0][0] == 0 and {36, 38, 42} == {key for _, key, _ in first}


def test_sound_has_its_length_level_and_no_leading_silence():
  for loudness, level in render.RMS_DB.items():
    waveform = _waveform(_plan(loudness=loudness))
    assert waveform.shape == (96_000,)
    assert waveform.dtype == np.float32
    assert abs(_rms_db(waveform) - level) < 1.5
    assert np.abs(waveform).max() < 0.99
    assert _rms_db(waveform[:2400]) > level - 20


def test_instruments_and_drums_are_heard():
  def spectrum(waveform):
    blocks = waveform[: 1024 * 93].reshape(-1, 1024) * np.hanning(1024)
    power = np.square(np.abs(np.fft.rfft(blocks))).mean(0)[:512]
    bands = np.log10(power.reshape(32, 16).mean(1) + 1e-7)
    return bands - bands.mean()

  changes = {"register": "middle"}
  flute = spectrum(_waveform(_plan(**changes)))
  again = spectrum(_waveform(_plan(**changes)))
  np.testing.assert_array_equal(flute, again)
  trumpet = spectrum(_waveform(_plan(lead="trumpet", **changes)))
  organ = spectrum(_waveform(_plan(lead="church organ", **changes)))
  beaten = spectrum(_waveform(_plan(has_drums=True, **changes)))
  for other in (trumpet, organ, beaten):
    assert np.abs(flute - other).mean() > 0.2


def test_silence_is_refused():
  with pytest.raises(ValueError, match="silent"):
    render.finish(np.zeros(100, np.float32), 1.0, "soft")


def test_captions_name_the_facts_and_nothing_of_the_file():
  plan = _plan(
    ensemble="duo", lead="trumpet", partner="piano", has_drums=True,
    tempo="fast", loudness="loud",
  )  # fmt: skip
  _, facts = arrange.arrange(_scale_piece("SecretName"), plan)
  made = captions.captions(facts, seed=1)
  assert len(made) == len(set(made)) == 5
  assert made == captions.captions(facts, seed=1)
  assert made != captions.captions(facts, seed=2)
  for text in made:
    lower = text.lower()
    assert "trumpet" in lower and "piano" in lower
    assert "drum" in lower and "no drum" not in lower
    assert any(word in lower for word in ("fast", "quick", "rapid"))
    assert any(w in lower for w in ("loud", "forceful", "powerful"))
    assert "secret" not in lower
  tags = captions.aspects(facts)
  assert tags[:4] == ["trumpet", "piano accompaniment", "drums", "fast tempo"]
  assert "high register" in tags and "major key" in tags


def test_clips_are_flac_at_24_khz():
  clip = jobs.make_clip((_scale_piece(), _plan(secs=1.5)))
  waveform, rate = soundfile.read(io.BytesIO(clip["audio"]), dtype="float32")
  assert (
    (rate, len(waveform)) == (24_000, clip["num_samples"]) == (24_000, 36_000)
  )
  assert soundfile.info(io.BytesIO(clip["audio"])).subtype == "PCM_16"
  assert (
    clip["audio"] == jobs.make_clip((_scale_piece(), _plan(secs=1.5)))["audio"]
  )


_ALL_PITCHES = """
import importlib, sys
from musiclm_jax.data import corpora, worker_pool
worker_pool.register_package("b", [str(corpora.find_builder_dir())])
arrange, instruments, render = (
  importlib.import_module(f"b.score_corpus.{name}")
  for name in ("arrange", "instruments", "render")
)
ranges = [(i.program, i.lowest, i.highest) for i in instruments.INSTRUMENTS]
for quartet in instruments.QUARTETS:
  ranges += zip(quartet.programs, quartet.lowest, quartet.highest)
for program, lowest, highest in ranges:
  print(program, lowest, highest, flush=True)
  notes = [(0.02 * p, 0.1, p, 90) for p in range(lowest, highest + 1)]
  track = arrange.Track(program, "lead", notes)
  assert abs(render.synthesize([track], 1.0)).max() > 0
"""


def test_synthesizer_ends_for_every_pitch_of_every_instrument():
  # It loops for ever on some: not to be tried in this process.
  subprocess.run(
    [sys.executable, "-c", _ALL_PITCHES],
    check=True,
    timeout=120,
    env={**os.environ, "PYTHONPATH": os.getcwd()},
  )
