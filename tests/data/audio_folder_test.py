# SPDX-License-Identifier: Apache-2.0
"""Bring your own audio: doctor, captions file, segments, splits."""

import importlib
import io
import json

import numpy as np
import pytest
import soundfile

from musiclm_jax.core import errors
from musiclm_jax.data import corpora, doctor, worker_pool

worker_pool.register_package(
  "musiclm_jax_builders", [str(corpora.find_builder_dir())]
)
captions_file = importlib.import_module(
  "musiclm_jax_builders.audio_folder.captions_file"
)
segments = importlib.import_module("musiclm_jax_builders.audio_folder.segments")


def _tone(secs, rate=24_000, hz=440.0, level=0.3):
  times = np.arange(round(secs * rate)) / rate
  return (level * np.sin(2 * np.pi * hz * times)).astype(np.float32)


def _write(path, waveform, rate=24_000, **kwargs):
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, waveform, rate, **kwargs)


@pytest.fixture
def sick_folder(tmp_path):
  _write(tmp_path / "a/good.wav", _tone(2))
  _write(
    tmp_path / "a/stereo.flac", np.stack([_tone(2, 44_100)] * 2, 1), 44_100
  )
  _write(tmp_path / "b/song.ogg", _tone(2, hz=300))
  _write(tmp_path / "b/song.mp3", _tone(2, hz=350))
  samples, _ = soundfile.read(tmp_path / "a/good.wav", dtype="int16")
  _write(tmp_path / "copy.flac", samples)
  _write(tmp_path / "silent.wav", np.zeros(48_000, np.float32))
  _write(tmp_path / "short.wav", _tone(0.2))
  loud = np.clip(_tone(2, level=3.0), -1, 1)
  _write(tmp_path / "clipped.wav", loud)
  (tmp_path / "text.wav").write_text("not audio")
  (tmp_path / "empty.mp3").touch()
  (tmp_path / "notes.txt").write_text("not looked at")
  nans = _tone(2)
  nans[7] = np.nan
  _write(tmp_path / "nan.wav", nans, subtype="FLOAT")
  return tmp_path


def _report(folder, limits):
  names = doctor.list_audio(folder)
  findings = [doctor.examine((str(folder), name, limits)) for name in names]
  findings = doctor.mark_duplicates(findings)
  return doctor.make_report(folder, findings, limits)


def test_doctor_finds_what_ails_each_file(sick_folder):
  report = _report(sick_folder, doctor.Limits())
  status = {item["file"]: item["status"] for item in report["files"]}
  assert status == {
    "a/good.wav": "ok",
    "a/stereo.flac": "ok",
    "b/song.ogg": "ok",
    "b/song.mp3": "ok",
    "clipped.wav": "clipped",
    "copy.flac": "duplicate",
    "empty.mp3": "unreadable",
    "nan.wav": "unreadable",
    "short.wav": "too_short",
    "silent.wav": "silent",
    "text.wav": "unreadable",
  }
  assert report["num_kept"] == 5 and report["num_bad"] == 5
  stereo = next(f for f in report["files"] if f["file"] == "a/stereo.flac")
  assert (stereo["sample_rate_hz"], stereo["num_channels"]) == (44_100, 2)
  assert stereo["secs"] == 2.0


def test_odd_files_are_named_and_kept(tmp_path):
  _write(tmp_path / "a.wav", np.stack([_tone(2)] * 7, 1))
  _write(tmp_path / "b.wav", _tone(2), subtype="PCM_U8")
  _write(tmp_path / "b2.wav", _tone(2), subtype="ULAW")
  _write(tmp_path / "c.flac", _tone(2, 192_000), 192_000)
  _write(tmp_path / "c2.flac", _tone(2, 8_000), 8_000)
  (tmp_path / "d.wav").mkdir()
  (tmp_path / "e.wav").symlink_to(tmp_path / "none.wav")
  cut = (tmp_path / "c.flac").read_bytes()
  (tmp_path / "f.flac").write_bytes(cut[: len(cut) // 2])
  report = _report(tmp_path, doctor.Limits())
  found = {item["file"]: item for item in report["files"]}
  assert [found[name]["status"] for name in sorted(found)] == (
    ["unusual"] * 5 + ["unreadable"] * 3
  )
  assert found["a.wav"]["detail"] == "7 channels, averaged to one"
  assert found["b.wav"]["detail"] == "samples of 8 bits"
  assert found["b2.wav"]["detail"] == "samples of 8 bits"
  assert found["c.flac"]["detail"] == "192000 Hz"
  assert found["c2.flac"]["detail"] == "8000 Hz"
  assert "is not a file" in found["d.wav"]["detail"]
  clips = segments.make_clips(
    segments.FileJob(str(tmp_path), "a.wav", "w", 0, (), (), 1.0, -60.0)
  )
  assert len(clips) == 2


def test_report_is_written_and_readable(sick_folder, tmp_path):
  report = _report(sick_folder, doctor.Limits())
  path = doctor.write_report(tmp_path / "out", report)
  assert json.loads((tmp_path / "out/doctor.json").read_text()) == report
  text = path.read_text()
  assert "11 files, 5 kept" in text and "copy.flac: same as a/good.wav" in text
  assert len(text.splitlines()) < 60


def test_too_many_bad_files_fail_the_job(sick_folder):
  limits = doctor.Limits(max_bad_fraction=0.4)
  with pytest.raises(errors.UserError, match="5 of 11 files.*empty.mp3"):
    doctor.check(_report(sick_folder, limits), "doctor.txt")
  limits = doctor.Limits(max_bad_fraction=0.5)
  doctor.check(_report(sick_folder, limits), "doctor.txt")


def test_folder_without_audio_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match="no folder"):
    doctor.list_audio(tmp_path / "none")
  with pytest.raises(errors.UserError, match="holds no audio"):
    doctor.list_audio(tmp_path)
  with pytest.raises(ValueError, match="max_bad_fraction=2"):
    doctor.Limits(max_bad_fraction=2)


def test_reads_csv_and_jsonl_alike(tmp_path):
  (tmp_path / "c.csv").write_text(
    "file,caption,aspects,work,title,playlist\n"
    'a/x.wav,"slow, soft piano",piano; soft,sonata,Sonata,\n'
    "a/x.wav,a piano,,,,quiet evenings\n"
    "./y,a drum,,,,\n"
    "z.wav,,,,Storm,\n"
  )
  rows = [
    {
      "file": "a/x.wav",
      "caption": ["slow, soft piano", "a piano"],
      "aspects": ["piano", "soft"],
      "work": "sonata",
      "title": "Sonata",
      "playlist": ["quiet evenings"],
    },
    {"file": "y", "caption": "a drum"},
    {"file": "z.wav", "title": "Storm"},
  ]
  (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
  found = captions_file.read(tmp_path / "c.csv")
  assert found == captions_file.read(tmp_path / "c.jsonl")
  assert found["a/x.wav"].captions == ["slow, soft piano", "a piano"]
  assert found["a/x.wav"].playlists == ["quiet evenings"]
  assert found["z.wav"] == captions_file.FileText(titles=["Storm"])
  del found["z.wav"]
  matched, unmatched = captions_file.match(found, ["a/z.wav", "y.flac"])
  assert matched == {"y.flac": found["y"]}
  assert unmatched == ["a/x.wav"]


@pytest.mark.parametrize(
  "name, text, message",
  [
    ("c.csv", "file,text\na,b\n", "line 2: column 'caption' is missing"),
    ("c.jsonl", '{"file": "a"}', "line 1: column 'caption'"),
    ("c.jsonl", '{"file": "a", "caption": "b"}\n{', "line 2"),
    ("c.jsonl", "[1]", "line 1: expected an object"),
    ("c.txt", "", "expected .csv or .jsonl"),
  ],
)
def test_malformed_captions_file_is_named(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(errors.UserError, match=message):
    captions_file.read(tmp_path / name)


def test_cuts_keep_every_whole_segment():
  waveform = np.arange(105)
  assert [len(p) for p in segments.cut(waveform, 50)] == [50, 50]
  assert [len(p) for p in segments.cut(waveform, 30)] == [30, 30, 30, 15]
  assert [len(p) for p in segments.cut(waveform, 500)] == [105]
  np.testing.assert_array_equal(segments.cut(waveform, 50)[1][:2], [50, 51])


def test_clips_are_mono_at_24_khz_and_silence_is_left_out(tmp_path):
  left = _tone(3, 48_000, hz=500)
  left[48_000:96_000] = 0
  _write(tmp_path / "x.wav", np.stack([left, left], 1), 48_000)
  clips = segments.make_clips(
    segments.FileJob(str(tmp_path), "x.wav", "w", 2, ("c",), (), 1.0, -60.0)
  )
  assert [clip["id"] for clip in clips] == ["x.wav#0", "x.wav#2"]
  waveform, rate = soundfile.read(io.BytesIO(clips[0]["audio"]))
  assert rate == 24_000 and waveform.shape == (24_000,)
  assert clips[0]["num_samples"] == 24_000
  peak = np.argmax(np.abs(np.fft.rfft(waveform)))
  assert peak == 500
  assert (clips[0]["work_id"], clips[0]["arrangement"]) == ("w", 2)


def test_splits_depend_on_the_work_alone():
  fractions = {"validation": 0.1, "test": 0.2}
  ids = [f"work{i}" for i in range(1000)]
  splits = segments.split_works(ids, fractions)
  more = segments.split_works([*ids[::-1], "new"], fractions)
  assert {k: more[k] for k in ids} == splits
  counts = [
    list(splits.values()).count(name) for name in ("validation", "test")
  ]
  assert abs(counts[0] - 100) < 30 and abs(counts[1] - 200) < 40
  few = segments.split_works(["a", "b", "c"], fractions)
  assert set(few.values()) == {"train", "validation", "test"}
  assert segments.split_works(["a"], fractions)["a"] in few.values()
