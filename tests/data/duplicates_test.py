# SPDX-License-Identifier: Apache-2.0
"""Copies are found among files, marked, and never straddle splits."""

import collections
import importlib
import importlib.util
import json

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
import tunes

from musiclm_jax.audio import files
from musiclm_jax.core import errors
from musiclm_jax.data import corpora, doctor, duplicates

_RATE_HZ = 22_050


def _tune(seed):
  return tunes.tune(seed, 8.0, _RATE_HZ)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
  """Twelve tunes; copies of three of them, and two files with a shared half."""
  root = tmp_path_factory.mktemp("planted")
  songs = [_tune(seed) for seed in range(12)]
  for index, waveform in enumerate(songs):
    soundfile.write(root / f"tune{index:02d}.flac", waveform, _RATE_HZ)
  soundfile.write(
    root / "a_copy.mp3", songs[3], _RATE_HZ, compression_level=0.9
  )
  slow = files.resample(songs[5], _RATE_HZ, 16_000)
  soundfile.write(root / "b_copy.ogg", 0.5 * slow, 16_000)
  soundfile.write(root / "z_copy.wav", songs[7][_RATE_HZ // 2 :], _RATE_HZ)
  for name, seed in (("medley1.wav", 90), ("medley2.wav", 91)):
    medley = np.concatenate([_tune(50), _tune(seed)])
    soundfile.write(root / name, medley, _RATE_HZ)
  return root


_COPIES = {
  "a_copy.mp3": "tune03.flac",
  "b_copy.ogg": "tune05.flac",
  "z_copy.wav": "tune07.flac",
}


def _splits(path):
  """Splits by file, and the doctor's report."""
  builder = tfds.builder_from_directory(path)
  found = collections.defaultdict(set)
  for split in builder.info.splits:
    for example in builder.as_data_source(split):
      found[example["id"].decode().split("#")[0]].add(split)
  return dict(found), json.loads((path.parent / "doctor.json").read_text())


def test_copies_are_left_out_and_parts_kept_together(planted, tmp_path):
  path = corpora.prepare_audio_folder(
    tmp_path, planted, num_processes=1, validation_fraction=0.3
  )
  splits, report = _splits(path)
  status = {item["file"]: item for item in report["files"]}
  for copy, original in _COPIES.items():
    assert status[copy]["status"] == doctor.NEAR_DUPLICATE
    assert status[copy]["duplicate_of"] == original
  assert set(splits) == set(status) - set(_COPIES)
  assert len(splits) == 14
  assert report["groups"] == {
    "medley1.wav": "medley1.wav",
    "medley2.wav": "medley1.wav",
  }
  assert splits["medley1.wav"] == splits["medley2.wav"]
  text = (path.parent / "doctor.txt").read_text()
  assert "a_copy.mp3: same recording as tune03.flac (" in text


def test_search_can_be_turned_off(planted, tmp_path):
  path = corpora.prepare_audio_folder(
    tmp_path, planted, num_processes=1, near_duplicates=False
  )
  splits, report = _splits(path)
  assert len(splits) == 17 and not report["groups"]


def test_find_pairs_equals_its_steps_one_by_one(planted):
  prints = {}
  for name in doctor.list_audio(planted):
    _, prints[name] = doctor.examine_and_print(
      (str(planted), name, doctor.Limits())
    )
  places = collections.defaultdict(list)
  for name, item in prints.items():
    for key, frame in zip(item.keys.tolist(), item.key_frames.tolist()):
      places[key].append((name, frame))
  offsets = collections.defaultdict(list)
  for entries in places.values():
    for names, offset in duplicates.vote_offsets(entries[::-1]):
      offsets[names].append(offset)
  found = [
    duplicates.judge(
      names,
      (prints[names[0]], prints[names[1]]),
      duplicates.top_offsets(votes),
    )
    for names, votes in offsets.items()
  ]
  pairs = duplicates.find_pairs(prints)
  assert pairs == sorted(pair for pair in found if pair)
  assert [(pair.a, pair.b) for pair in pairs] == [
    ("a_copy.mp3", "tune03.flac"),
    ("b_copy.ogg", "tune05.flac"),
    ("medley1.wav", "medley2.wav"),
    ("tune07.flac", "z_copy.wav"),
  ]


def _pair(a, b, share_a=1.0, share_b=1.0):
  return duplicates.Pair(a, b, 10.0, share_a, share_b, 0.0, 0.8)


def _finding(file, secs=100.0, rate=44_100):
  return doctor.Finding(file, doctor.OK, secs=secs, sample_rate_hz=rate)


def test_keeps_the_longest_then_the_best():
  findings = [
    _finding("a.mp3"),
    _finding("b.wav", rate=22_050),
    _finding("c.wav"),
    _finding("part.wav", secs=20.0, rate=96_000),
    _finding("other.wav"),
  ]
  pairs = [
    _pair("a.mp3", "b.wav"),
    _pair("b.wav", "c.wav"),
    _pair("a.mp3", "part.wav", share_a=0.2),
  ]
  marked, groups = duplicates.mark_near_duplicates(findings, pairs)
  assert {item.file: item.duplicate_of for item in marked} == {
    "a.mp3": "c.wav",
    "b.wav": "c.wav",
    "c.wav": "",
    "part.wav": "c.wav",
    "other.wav": "",
  }
  assert not groups


def test_what_a_dropped_copy_shares_ties_as_well():
  findings = [
    _finding("mix1.wav", secs=900.0),
    _finding("mix2.wav", secs=800.0),
    _finding("song.wav"),
  ]
  pairs = [
    _pair("mix1.wav", "song.wav", share_a=0.1),
    _pair("mix2.wav", "song.wav", share_a=0.1),
  ]
  marked, groups = duplicates.mark_near_duplicates(findings, pairs)
  assert [item.status for item in marked] == ["ok", "ok", "near_duplicate"]
  assert groups == {"mix1.wav": "mix1.wav", "mix2.wav": "mix1.wav"}


def test_works_that_share_a_part_get_one_split():
  plan = importlib.import_module("musiclm_jax_builders.audio_folder.plan")
  works = {f"{i}.wav": f"work{i // 2}" for i in range(8)}
  tied = plan._tied_works(works, {"1.wav": "1.wav", "6.wav": "1.wav"})
  assert tied == {
    "work0": "work0",
    "work1": "work1",
    "work2": "work2",
    "work3": "work0",
  }


def test_common_keys_do_not_vote():
  places = [(f"{i}.wav", 0) for i in range(duplicates.MAX_PLACES)]
  assert len(duplicates.vote_offsets(places)) == 50 * 49 // 2
  assert not duplicates.vote_offsets([*places, ("x.wav", 0)])
  votes = [5, 5, 6, 40, 40, 41, 41, 90, 200, 200]
  assert duplicates.top_offsets(votes) == [(4, 40), (3, 5)]


def test_beam_without_beam_is_a_clear_error(planted, tmp_path, monkeypatch):
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *rest: None if name == "apache_beam" else find_spec(name),
  )
  with pytest.raises(errors.UserError, match="constraints-beam.txt"):
    corpora.prepare_audio_folder(tmp_path, planted, use_beam=True)
