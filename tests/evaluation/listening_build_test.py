# SPDX-License-Identifier: Apache-2.0
"""Clips of a test look alike, whatever they come from; nothing names them."""

import hashlib
import itertools
import json
import re

import listening_sets
import numpy as np
import pytest
import soundfile

from musiclm_jax.audio import files, loudness, wav_tags
from musiclm_jax.core import errors
from musiclm_jax.evaluation import (
  listening_build,
  listening_clips,
  listening_files,
)


@pytest.fixture(name="folders", scope="module")
def _folders(tmp_path_factory):
  return listening_sets.write_systems(tmp_path_factory.mktemp("systems"), 4)


@pytest.fixture(name="built", scope="module")
def _built(folders, tmp_path_factory):
  target = tmp_path_factory.mktemp("tests") / "test"
  made = listening_build.build(listening_sets.plan(folders), target)
  return target, made


def clips(target):
  return sorted((target / "public" / "clips").iterdir())


def test_counts(built):
  target, made = built
  test = listening_files.read_test(target)
  key = listening_files.read_key(target, test)
  assert made["num_pairs"] == 3 and made["num_prompts"] == 4
  assert [len(sheet) for sheet in test.sheets] == [8, 8]
  checks = [one for one in key.items.values() if one.is_check]
  assert len(checks) == 4
  assert {one.first for one in checks} == {"", listening_sets.SYSTEMS[0]}
  listening_files.check_clips(target, test)
  assert len(clips(target)) == made["num_clips"] == len(test.clips)


def test_clips_are_alike(built):
  target, _ = built
  for path in clips(target):
    info = soundfile.info(path)
    # The lowest rate and the fewest channels of the systems.
    assert (info.samplerate, info.channels, info.frames) == (8000, 1, 4800)
    waveform, rate_hz = files.read_audio(path)
    level = loudness.integrated_lufs(waveform, rate_hz)
    np.testing.assert_allclose(level, -20.0, atol=0.1)
    # Samples behind a header, and nothing else.
    assert wav_tags.read(path) == {}
    assert path.stat().st_size == 44 + 2 * 4800
    assert path.stat().st_mtime == 0


def test_nothing_public_names_a_system(built, folders):
  target, _ = built
  words = [name.encode() for name in listening_sets.SYSTEMS]
  words += [b"generated_by", b"musiclm_jax", b"made_by", str(target).encode()]
  public = [path for path in (target / "public").rglob("*") if path.is_file()]
  assert len(public) > 10
  for path in public:
    content = path.read_bytes()
    assert not any(word in content for word in words), path
    assert not any(word in str(path).encode() for word in words[:3])
  for path in clips(target):
    assert re.fullmatch("[0-9a-f]{24}.wav", path.name)
  # The key does; and no clip is the file that it was made of.
  assert words[0] in (target / "key.json").read_bytes()
  hashes = [hashlib.sha256(p.read_bytes()).hexdigest() for p in clips(target)]
  assert len(set(hashes)) == len(hashes)


def test_names_tell_nothing_even_to_who_knows_the_seed(folders, tmp_path):
  names = []
  for number in range(2):
    target = tmp_path / str(number)
    listening_build.build(listening_sets.plan(folders), target)
    test = listening_files.read_test(target)
    names.append({item.item for sheet in test.sheets for item in sheet})
    names[-1] |= set(test.clips)
  assert not names[0] & names[1]


def test_clips_are_of_the_right_system(folders, tmp_path):
  # Each source is a tone of a frequency of its own.
  target = tmp_path / "test"
  listening_build.build(listening_sets.plan(folders), target)
  test = listening_files.read_test(target)
  key = listening_files.read_key(target, test)
  for item in itertools.chain(*test.sheets):
    behind = key.items[item.item]
    assert item.caption == behind.prompt
    for name, system in (
      (item.first, behind.first),
      (item.second, behind.second),
    ):
      waveform, _ = files.read_audio(listening_files.clip_path(target, name))
      spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
      loudest = np.argmax(spectrum) * 8000 / len(waveform)
      if not system:
        assert np.median(spectrum) > 0.005 * spectrum.max()  # Noise.
        continue
      number = listening_sets.SYSTEMS.index(system)
      index = int(behind.prompt.split()[-1])
      assert abs(loudest - (200 + 50 * index + 7 * number)) < 2


def test_loudness_may_stay(folders, tmp_path):
  listening_build.build(
    listening_sets.plan(folders, lufs=None, num_checks=0), tmp_path / "test"
  )
  peaks = [
    loudness.peak(files.read_audio(p)[0]) for p in clips(tmp_path / "test")
  ]
  np.testing.assert_allclose(sorted(set(np.round(peaks, 1))), [0.1, 0.4, 0.7])


def test_peaks_make_all_clips_of_their_text_quieter(folders, tmp_path):
  peaky = tmp_path / "peaky"
  peaky.mkdir()
  for path in folders["zyqcodec"].iterdir():
    (peaky / path.name).write_bytes(path.read_bytes())
  victim = peaky / "002_zyqcodec.wav"
  waveform, rate_hz = files.read_audio(victim)
  waveform *= 0.1
  waveform[1000] = 0.9
  files.write_wav(victim, waveform, rate_hz)
  changed = {**folders, "zyqcodec": peaky}
  target = tmp_path / "test"
  plan = listening_sets.plan(changed, comparisons_per_rater=12)
  made = listening_build.build(plan, target)
  low, high = made["lufs"]
  assert high == -20.0 and low < -24.0
  test = listening_files.read_test(target)
  quiet = 0
  for item in itertools.chain(*test.sheets):
    for name in (item.first, item.second):
      waveform, rate_hz = files.read_audio(
        listening_files.clip_path(target, name)
      )
      assert loudness.peak_db(waveform) < -0.9
      expected = low if item.caption == "text number 2" else high
      quiet += expected == low
      level = loudness.integrated_lufs(waveform, rate_hz)
      np.testing.assert_allclose(level, expected, atol=0.1)
  assert quiet >= 12


def test_captions_by_file(folders, tmp_path):
  plain = tmp_path / "plain"
  plain.mkdir()
  records = []
  for path in sorted(folders["zyqtruth"].glob("*.wav")):
    waveform, rate_hz = files.read_audio(path)
    files.write_wav(plain / path.name, waveform, rate_hz)
    prompt = json.loads(path.with_suffix(".json").read_text())["prompt"]
    records.append({"file": path.name, "prompt": prompt})
  with pytest.raises(errors.UserError, match="no audio with a text"):
    listening_clips.find(plain, {})
  captions = tmp_path / "texts.jsonl"
  captions.write_text("".join(json.dumps(one) + "\n" for one in records))
  texts = listening_clips.read_captions(captions)
  assert len(listening_clips.find(plain, texts)[0]) == 4
  (plain / "captions.jsonl").write_text(captions.read_text())
  found, unused = listening_clips.find(plain, {})
  assert sorted(found) == [f"text number {n}" for n in range(4)] and not unused
  captions.write_text('{"file": 3}\n')
  with pytest.raises(errors.UserError, match=r"texts.jsonl:1: expected"):
    listening_clips.read_captions(captions)


def test_captions_of_files_in_folders_of_one_name_each(folders, tmp_path):
  root, records = tmp_path / "sets", []
  source = sorted(folders["zyqtruth"].glob("*.wav"))[0]
  waveform, rate_hz = files.read_audio(source)
  for name in ("jazz/001.wav", "rock/001.wav", "rock/002.wav"):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    files.write_wav(root / name, waveform, rate_hz)
    records.append({"file": name, "prompt": f"text of {name}"})
  captions = root / "captions.jsonl"
  captions.write_text("".join(json.dumps(one) + "\n" for one in records))
  found, unused = listening_clips.find(root, {})
  assert not unused
  assert found == {one["prompt"]: root / one["file"] for one in records}
  # Another system's files, found by stem: one that two texts have is no key.
  texts = listening_clips.read_captions(captions)
  assert "001" not in texts and texts["002"] == "text of rock/002.wav"


def test_the_key_is_for_its_owner(built):
  key = built[0] / listening_files.KEY_NAME
  assert key.stat().st_mode & 0o777 == 0o600


def test_bad_audio_is_named_and_leaves_nothing(folders, tmp_path):
  bad = tmp_path / "bad"
  bad.mkdir()
  for path in folders["zyqmodel"].iterdir():
    (bad / path.name).write_bytes(path.read_bytes())
  changed = {**folders, "zyqmodel": bad}
  target = tmp_path / "test"
  victim = min(bad.glob("*.wav"))
  whole = victim.read_bytes()
  for content, message in (
    (b"no music", "cannot be read as audio"),
    (whole[: len(whole) // 4], r"_zyqmodel.wav has 0.2"),
  ):
    victim.write_bytes(content)
    with pytest.raises(errors.UserError, match=message):
      listening_build.build(listening_sets.plan(changed), target)
    assert not target.exists() and not list(tmp_path.glob(".test*"))
  victim.write_bytes(whole)
  # Which clip is met first is drawn with the test: they have 0.6 to 0.8 s.
  with pytest.raises(
    errors.UserError, match=r"has 0.[678]0 s: expected at least"
  ):
    listening_build.build(listening_sets.plan(changed, seconds=5.0), target)
  with pytest.raises(errors.UserError, match="expected at most 12"):
    listening_build.build(
      listening_sets.plan(changed, comparisons_per_rater=15), target
    )
  target.mkdir()
  with pytest.raises(errors.UserError, match="is there already"):
    listening_build.build(listening_sets.plan(changed), target)


def test_changes_after_building_are_found(folders, tmp_path):
  target = tmp_path / "test"
  listening_build.build(listening_sets.plan(folders), target)
  test = listening_files.read_test(target)
  clip = clips(target)[0]
  clip.write_bytes(clip.read_bytes()[:-2] + b"\1\1")
  with pytest.raises(errors.UserError, match="was changed after the test"):
    listening_files.check_clips(target, test)
  path = target / "public" / "test.json"
  path.write_text(path.read_text().replace("Which clip", "What clip"))
  with pytest.raises(errors.UserError, match="was changed after it was built"):
    listening_files.read_test(target)
  other = tmp_path / "other"
  listening_build.build(listening_sets.plan(folders), other)
  with pytest.raises(errors.UserError, match="is the key to test"):
    listening_files.read_key(target, listening_files.read_test(other))
