# SPDX-License-Identifier: Apache-2.0
"""The MusicCaps table: what is read, what is refused, nothing evaluated."""

import csv

import numpy as np
import pytest

from musiclm_jax.audio import files
from musiclm_jax.core import errors
from musiclm_jax.evaluation import musiccaps, musiccaps_audio

GOOD = {
  "ytid": "-0Gj8-vB1q4",
  "start_s": "30",
  "end_s": "40",
  "audioset_positive_labels": "/m/0140xf,/t/dd00032",
  "aspect_list": "['low quality', \"singer's voice\", 'a, b']",
  "caption": "A slow song,\nwith strings.",
  "author_id": "4",
  "is_balanced_subset": "False",
  "is_audioset_eval": "True",
}


def write(path, *changes, columns=musiccaps.COLUMNS):
  with open(path, "w", newline="") as file:
    writer = csv.DictWriter(file, columns, extrasaction="ignore")
    writer.writeheader()
    for index, change in enumerate(changes):
      writer.writerow({**GOOD, "ytid": f"id{index:09d}", **change})
  return path


def test_a_row_has_types(tmp_path):
  (row,) = musiccaps.read(write(tmp_path / "t.csv", GOOD))
  assert row == musiccaps.Row(
    "-0Gj8-vB1q4",
    30,
    40,
    ("/m/0140xf", "/t/dd00032"),
    ("low quality", "singer's voice", "a, b"),
    "A slow song, with strings.",
    4,
    False,
    True,
  )
  assert row.source == {"ytid": row.ytid, "start_s": "30", "end_s": "40"}
  assert musiccaps.is_table(tmp_path / "t.csv")


def test_subsets(tmp_path):
  balanced = {"is_balanced_subset": "True"}
  train = {"is_audioset_eval": "False"}
  rows = musiccaps.read(write(tmp_path / "t.csv", {}, balanced, train))
  chosen = {s: len(musiccaps.select(rows, s)) for s in musiccaps.SUBSETS}
  assert chosen == {"all": 3, "balanced": 1, "eval": 2, "train": 1}
  assert musiccaps.num_expected("train") == 2663
  with pytest.raises(errors.UserError, match="did you mean 'balanced'"):
    musiccaps.select(rows, "balance")


@pytest.mark.parametrize(
  "change, message",
  [
    ({"ytid": "short"}, "ytid='short': expected 11"),
    ({"ytid": "../../etc/p"}, "ytid='../../etc/p': expected 11"),
    ({"start_s": "3O"}, "start_s='3O': expected a whole number"),
    ({"start_s": "30.5"}, "start_s='30.5': expected a whole number"),
    ({"start_s": "-1"}, "start_s='-1'"),
    ({"end_s": "30"}, "end_s='30': expected more than start_s=30"),
    ({"author_id": "four"}, "author_id='four'"),
    ({"is_balanced_subset": "maybe"}, "is_balanced_subset='maybe': expected"),
    ({"is_audioset_eval": ""}, "is_audioset_eval='': expected True or False"),
    ({"audioset_positive_labels": "rock"}, "audioset_positive_labels='rock'"),
    ({"caption": " \n "}, "the caption is empty"),
  ],
)
def test_bad_fields_name_their_line(tmp_path, change, message):
  path = write(tmp_path / "t.csv", {"caption": "one line"}, change)
  with pytest.raises(errors.UserError) as found:
    musiccaps.read(path)
  (line,) = str(found.value).splitlines()
  assert message in line and f"{path}, line " in line


@pytest.mark.parametrize("column", musiccaps.COLUMNS)
def test_a_missing_column_is_named(tmp_path, column):
  columns = [name for name in musiccaps.COLUMNS if name != column]
  path = write(tmp_path / "t.csv", {}, columns=columns)
  with pytest.raises(errors.UserError, match=f"the column '{column}'"):
    musiccaps.read(path)


@pytest.mark.parametrize(
  "text",
  [
    "__import__('pathlib').Path({path!r}).touch()",
    "[__import__('pathlib').Path({path!r}).touch()]",
    "['a', open({path!r}, 'w')]",
    "[f'{{open({path!r}, 1)}}']",
    "[x for x in ['a'] if open({path!r}, 'w')]",
    "(lambda: open({path!r}, 'w'))()",
    "['a'] + ['b']",
    "[1]",
    "[b'a']",
    "{{'a'}}",
    "'a'",
    "",
    "[" * 3000,
    "-" * 3000 + "1",
    "['a'" + " " * 5000 + "]",
    "['\\x00",
  ],
)
def test_aspects_are_read_and_never_evaluated(tmp_path, text):
  victim = tmp_path / "victim"
  text = text.format(path=str(victim)) if "{" in text else text
  path = write(tmp_path / "t.csv", {"caption": "x", "aspect_list": text})
  with pytest.raises(errors.UserError) as found:
    musiccaps.read(path)
  (line,) = str(found.value).splitlines()
  assert "line 2: aspect_list=" in line and len(line) < 300 + len(str(path))
  assert not victim.exists()


def test_too_many_rows_and_duplicates(tmp_path):
  many = write(tmp_path / "many.csv", *[{"caption": "x"}] * 6000)
  with pytest.raises(errors.UserError, match="line 5523: .* at most 5521 rows"):
    musiccaps.read(many)
  twice = write(
    tmp_path / "twice.csv", *[{"ytid": "-0Gj8-vB1q4", "caption": "x"}] * 2
  )
  with pytest.raises(errors.UserError, match="line 3: .* line 2 already"):
    musiccaps.read(twice)
  with pytest.raises(errors.UserError, match="holds no rows"):
    musiccaps.read(write(tmp_path / "none.csv"))


@pytest.fixture(name="rows")
def _rows(tmp_path):
  return musiccaps.read(write(tmp_path / "t.csv", *[{}] * 4))


def sound(path, secs, value=0.1):
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_wav(path, np.full(round(1000 * secs), value), 1000)


def test_audio_is_found_by_name(rows, tmp_path):
  folder = tmp_path / "audio"
  ids = [row.ytid for row in rows]
  sound(folder / f"{ids[2]}.wav", 10)
  ramp = np.arange(60_000) / 60_000
  files.write_wav(folder / f"{ids[0]}.wav", ramp, 1000)  # the whole video
  sound(folder / "deep" / f"{ids[3]}_30_40.wav", 10)
  found = musiccaps_audio.find(rows, folder)
  assert list(found.clips) == [ids[0], ids[2], ids[3]]
  assert found.missing == (ids[1],) and found.unknown == ()
  about = found.to_dict()
  assert (about["num_available"], about["num_listed"]) == (3, 4)
  assert about["num_public"] == 5521
  lengths, means = {}, {}
  for ytid, clip in found.clips.items():
    waveform, rate_hz = clip.decode(clip.read())
    lengths[ytid] = len(waveform) / rate_hz
    means[ytid] = waveform.mean()
  assert set(lengths.values()) == {10.0}
  assert means[ids[0]] == pytest.approx(35 / 60, abs=1e-3)
  keys = {clip.key(clip.read()) for clip in found.clips.values()}
  assert len(keys) == 2  # two of the files are the same


def test_unknown_and_doubled_audio(rows, tmp_path):
  folder = tmp_path / "audio"
  sound(folder / f"{rows[0].ytid}.wav", 10)
  sound(folder / f"{rows[1].ytid}_99.wav", 10)  # another part of the video
  with pytest.raises(errors.UserError, match="1 of 2 audio files .* no ytid"):
    musiccaps_audio.find(rows, folder)
  found = musiccaps_audio.find(rows, folder, 0.5)
  assert found.unknown == (f"{rows[1].ytid}_99.wav",)
  sound(folder / "b" / f"{rows[0].ytid}_30.wav", 10)
  with pytest.raises(errors.UserError, match="are both named by ytid"):
    musiccaps_audio.find(rows, folder)
  with pytest.raises(errors.UserError, match="no folder of audio"):
    musiccaps_audio.find(rows, tmp_path / "none")


def test_audio_of_rows_outside_a_subset_is_passed_over(rows, tmp_path):
  folder = tmp_path / "audio"
  for row in rows:
    sound(folder / f"{row.ytid}.wav", 10)
  found = musiccaps_audio.find(rows[:1], folder, 0.0, rows)
  assert list(found.clips) == [rows[0].ytid]
  assert found.unknown == () and found.missing == ()
  (folder / f"{rows[0].ytid}.wav").unlink()
  with pytest.raises(errors.UserError, match="3 audio files .* of other rows"):
    musiccaps_audio.find(rows[:1], folder, 0.0, rows)


def test_what_a_system_made_is_not_cut_as_a_recording(rows, tmp_path):
  sound(tmp_path / "a" / f"{rows[0].ytid}.wav", 45)
  found = musiccaps_audio.find(rows, tmp_path / "a", whole_recordings=False)
  (clip,) = found.clips.values()
  waveform, rate_hz = clip.decode(clip.read())
  assert len(waveform) == 45 * rate_hz


def test_a_file_that_is_neither_clip_nor_whole_is_refused(rows, tmp_path):
  sound(tmp_path / "a" / f"{rows[0].ytid}.wav", 20)
  (clip,) = musiccaps_audio.find(rows, tmp_path / "a").clips.values()
  with pytest.raises(errors.UserError, match="has 20.0 s: expected a clip"):
    clip.decode(clip.read())
