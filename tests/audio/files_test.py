# SPDX-License-Identifier: Apache-2.0
"""Reading and writing audio: content survives, bad files are named."""

import os

import numpy as np
import pytest
import soundfile

from musiclm_jax.audio import files
from musiclm_jax.core import errors

_RATE_HZ = 16000


def _tone(hz: float = 440.0, secs: float = 0.5, rate_hz: int = _RATE_HZ):
  time = np.arange(int(secs * rate_hz)) / rate_hz
  return (0.5 * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def _peak_hz(waveform: np.ndarray, rate_hz: int) -> float:
  spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
  return spectrum.argmax() * rate_hz / len(waveform)


def test_wav_round_trip_clips_and_leaves_no_scratch(tmp_path):
  path = tmp_path / "new" / "tone.wav"
  waveform = _tone() * 4
  files.write_wav(path, waveform, _RATE_HZ)
  back, rate = files.read_audio(path)
  assert rate == _RATE_HZ and back.dtype == np.float32
  np.testing.assert_allclose(back, np.clip(waveform, -1, 1), atol=1e-4)
  assert os.listdir(path.parent) == ["tone.wav"]


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_other_formats(tmp_path, suffix):
  path = tmp_path / f"tone.{suffix}"
  soundfile.write(path, _tone(), _RATE_HZ)
  waveform, rate = files.read_audio(path)
  assert abs(_peak_hz(waveform, rate) - 440) < 4


def test_stereo_is_mixed_or_kept(tmp_path):
  path = tmp_path / "stereo.wav"
  stereo = np.stack([_tone(440), _tone(880)], axis=-1)
  files.write_wav(path, stereo, _RATE_HZ)
  mono, _ = files.read_audio(path)
  kept, _ = files.read_audio(path, mono=False)
  np.testing.assert_allclose(kept, stereo, atol=1e-4)
  np.testing.assert_allclose(mono, stereo.mean(-1), atol=1e-4)


def test_resampling_keeps_pitch_and_removes_what_cannot_be_kept(tmp_path):
  path = tmp_path / "tone.wav"
  files.write_wav(path, _tone(440, rate_hz=48000), 48000)
  waveform, rate = files.read_audio(path, sample_rate_hz=24000)
  assert rate == 24000 and len(waveform) == 12000
  assert abs(_peak_hz(waveform, rate) - 440) < 4
  aliased = files.resample(_tone(9000, rate_hz=48000), 48000, 16000)
  assert np.abs(aliased[200:-200]).max() < 1e-2


def test_flac_bytes_round_trip():
  content = files.encode_flac(_tone(), _RATE_HZ)
  back, rate = files.decode_audio(content)
  assert rate == _RATE_HZ
  np.testing.assert_allclose(back, _tone(), atol=1e-4)


def test_bad_files_give_one_line_that_names_the_file(tmp_path):
  good = files.encode_flac(np.random.default_rng(0).normal(size=8000), 8000)
  soundfile.write(tmp_path / "nan.wav", [0.0, np.nan], 8000, subtype="FLOAT")
  soundfile.write(tmp_path / "none.wav", np.zeros(0), 8000)
  (tmp_path / "empty.wav").write_bytes(b"")
  (tmp_path / "text.wav").write_text("these are words, not sound\n" * 9)
  (tmp_path / "cut.flac").write_bytes(good[: len(good) // 3])
  expected = {
    "missing.wav": "no audio file",
    "empty.wav": "0 bytes",
    "none.wav": "no samples",
    "text.wav": "cannot be read as audio",
    "nan.wav": "NaN",
    "cut.flac": "cut.flac",
  }
  for name, message in expected.items():
    with pytest.raises(errors.UserError, match=message) as caught:
      files.read_audio(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
  with pytest.raises(errors.UserError, match="record 7"):
    files.decode_audio(b"", name="record 7")


def test_refuses_to_write_what_is_no_waveform(tmp_path):
  for bad in (np.zeros(0), np.full(4, np.nan), np.zeros((1, 2, 3))):
    with pytest.raises(ValueError, match="waveform"):
      files.write_wav(tmp_path / "bad.wav", bad, 8000)
  (tmp_path / "file").write_text("")
  with pytest.raises(errors.UserError, match="cannot write"):
    files.write_wav(tmp_path / "file" / "x.wav", _tone(), _RATE_HZ)
  assert os.listdir(tmp_path) == ["file"]


def test_names_are_listed_by_ending_whatever_they_are(tmp_path):
  (tmp_path / "a").mkdir()
  for name in ("a/2.WAV", "a-b.mp3", "a/1.flac", "notes.txt"):
    (tmp_path / name).touch()
  (tmp_path / "d.wav").mkdir()
  (tmp_path / "broken.ogg").symlink_to(tmp_path / "nothing.ogg")
  assert files.list_names(tmp_path) == [
    *("a-b.mp3", "a/1.flac", "a/2.WAV"),
    *("broken.ogg", "d.wav"),
  ]
  assert files.list_names(tmp_path, (".txt",)) == ["notes.txt"]


@pytest.mark.parametrize(
  "subtype, expected",
  [("PCM_U8", True), ("ULAW", True), ("ALAW", True), ("PCM_16", False)],
)
def test_eight_bits_are_told_from_bytes_and_paths(tmp_path, subtype, expected):
  path = tmp_path / "a.wav"
  soundfile.write(path, _tone(), _RATE_HZ, subtype=subtype)
  assert files.has_eight_bits(path) is expected
  assert files.has_eight_bits(path.read_bytes()) is expected
