# SPDX-License-Identifier: Apache-2.0
"""The codec verb: lengths, prefixes, formats, and what it refuses."""

import numpy as np
import pytest
import soundfile
import tokenizer_artifacts

from musiclm_jax.audio import blocks, files
from musiclm_jax.cli import codec_files
from musiclm_jax.cli import main as main_lib
from musiclm_jax.systems import tokenizers

SAMPLES = 31001  # at 22050 Hz: more than one call of 64 frames at 8 kHz


@pytest.fixture(name="codec", scope="module")
def _codec(tmp_path_factory):
  directory = tmp_path_factory.mktemp("codec") / "soundstream"
  # Fitted: codes differ from frame to frame.
  tokenizer_artifacts.write_codec(directory, is_fitted=True)
  return directory


def _write(path, samples=SAMPLES, rate_hz=22050, channels=2):
  sound = np.random.default_rng(1).normal(size=(samples, channels)) * 0.2
  soundfile.write(path, sound, rate_hz, subtype="PCM_16")
  return path


def _run(*argv):
  return main_lib.main(["codec", *map(str, argv)])


def test_round_trip_has_the_length_and_the_codes_of_the_whole(
  codec, tmp_path, capsys
):
  source = _write(tmp_path / "in.wav")
  made, back = tmp_path / "new" / "out.npz", tmp_path / "back.flac"
  options = ["--codec", codec]
  assert _run("encode", source, made, "--num_codebooks=2", *options) == 0
  waveform, _ = files.read_audio(source, 8000)
  with np.load(made, allow_pickle=False) as file:
    assert file["codes"].dtype == np.uint8
    assert file["num_samples"] == len(waveform) == 11248
    assert file["sample_rate_hz"] == 8000
    assert file["bitrate_bps"] == 2 * 4 * 50
    codes = file["codes"]
  tokenizer = tokenizers.SoundStreamTokenizer.load(codec)
  whole = tokenizer.encode(waveform[None])[0, :, :2]
  assert codes.shape == whole.shape and len(np.unique(codes)) > 4
  assert (codes == whole).mean() > 0.98  # resampled in blocks: not bit-equal
  assert _run("decode", made, back, "--num_codebooks=1", *options) == 0
  sound, rate_hz = soundfile.read(back, dtype="float32")
  assert (rate_hz, len(sound)) == (8000, 11248)
  expected = tokenizer.decode(codes[None, :, :1].astype(np.int32))[0]
  np.testing.assert_allclose(sound, np.clip(expected[:11248], -1, 1), atol=1e-4)
  assert "0.20 kbit/s" in capsys.readouterr().out.splitlines()[-1]
  assert not list(tmp_path.rglob("*.writing"))


def test_a_stereo_codec_makes_stereo_of_mono_too(tmp_path):
  directory, music = tmp_path / "soundstream", tmp_path / "music"
  tokenizer_artifacts.write_codec(directory, num_channels=2)
  music.mkdir()
  sources = [_write(music / f"{n}.wav", channels=n) for n in (1, 2)]
  options = ["--codec", directory]
  assert _run("encode", music, tmp_path / "codes", *options) == 0
  assert _run("decode", tmp_path / "codes", tmp_path / "back", *options) == 0
  codec = tokenizers.SoundStreamTokenizer.load(directory)
  for source in sources:
    waveform, _ = files.read_audio(source, 8000, mono=False)
    codes = codec.encode(files.as_channels(waveform, 2)[None])[0]
    name = source.stem
    made = codec_files.CodeFile.load(tmp_path / "codes" / f"{name}.npz")
    assert (made.num_channels, made.num_samples) == (2, 11248)
    assert (made.codes == codes).mean() > 0.98  # resampled in blocks
    sound, rate_hz = soundfile.read(tmp_path / "back" / f"{name}.wav")
    assert (rate_hz, sound.shape) == (8000, (11248, 2))
    assert np.abs(sound[:, 0] - sound[:, 1]).max() > 1e-3


def test_codes_of_another_codec_are_refused(codec, tmp_path, capsys):
  file = codec_files.CodeFile(
    np.zeros((2, 1), np.uint8), 8000, 300, 1, 200.0, "0123456789abcdef"
  )
  file.save(tmp_path / "a.npz")
  back = tmp_path / "back.wav"
  assert _run("decode", tmp_path / "a.npz", back, "--codec", codec) == 1
  err = capsys.readouterr().err
  mark = tokenizers.SoundStreamTokenizer.load(codec).fingerprint
  assert "0123456789abcdef" in err and mark in err
  assert len(err.strip().splitlines()) == 1 and not back.exists()


def _truncated(path):
  content = _write(path.with_suffix(".flac")).read_bytes()
  path.write_bytes(content[: len(content) // 2])


def _not_finite(path):
  sound = np.zeros(9000, np.float32)
  sound[8000] = np.nan
  soundfile.write(path, sound, 8000, subtype="FLOAT")


def _bare_array(path):
  with path.open("wb") as file:
    np.save(file, np.zeros((3, 3), np.uint8))


@pytest.mark.parametrize(
  "make, action, options, expected",
  [
    (lambda path: None, "encode", [], "no file or folder at"),
    (lambda path: path.write_bytes(b""), "encode", [], "is empty (0 bytes)"),
    (lambda path: path.write_text("la"), "encode", [], "cannot be read as"),
    (_truncated, "encode", [], "cannot be read as"),
    (_not_finite, "encode", [], "first at sample 8000"),
    (_write, "encode", ["--num_codebooks=4"], "--num_codebooks=4"),
    (_write, "encode", ["--codec=nowhere"], "--codec=nowhere"),
    (lambda path: path.write_bytes(b"PK"), "decode", [], "no file of codes"),
    (_bare_array, "decode", [], "no file of codes"),
  ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
  make, action, options, expected, codec, tmp_path, capsys
):
  source, target = tmp_path / "in.wav", tmp_path / "out" / "out.npz"
  if action == "decode":
    target = target.with_suffix(".wav")
  make(source)
  assert _run(action, source, target, "--codec", codec, *options) == 1
  err = capsys.readouterr().err
  assert expected in err and len(err.strip().splitlines()) == 1
  assert not list(tmp_path.rglob("*out*.*"))


def test_a_folder_goes_on_after_a_bad_file(codec, tmp_path, capsys):
  (tmp_path / "in" / "deep").mkdir(parents=True)
  _write(tmp_path / "in" / "deep" / "good.flac", 900, 8000, 1)
  (tmp_path / "in" / "bad.wav").write_text("text")
  out = tmp_path / "out"
  assert _run("encode", tmp_path / "in", out, "--codec", codec) == 1
  err = capsys.readouterr().err
  assert "bad.wav" in err and "1 of 2 files failed" in err
  found = codec_files.CodeFile.load(out / "deep" / "good.npz")
  assert (found.codes.shape, found.num_samples) == ((6, 3), 900)


def test_a_folder_is_not_decoded_over_its_recordings(codec, tmp_path, capsys):
  path = _write(tmp_path / "a.wav", 900, 8000, 1)
  before = path.read_bytes()
  for action in ("encode", "decode"):
    assert _run(action, tmp_path, tmp_path / ".", "--codec", codec) == 1
  assert "is the input folder too" in capsys.readouterr().err
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("channels, wanted", [(1, 2), (2, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("rate_hz", [8000, 24000, 44100])
def test_blocks_join_to_the_whole_file(tmp_path, channels, wanted, rate_hz):
  path = _write(tmp_path / "a.wav", 100_003, rate_hz, channels)
  reader = blocks.BlockReader(path, 24000, wanted)
  joined = np.concatenate(list(reader))
  assert len(joined) == reader.num_samples
  whole, _ = files.read_audio(path, 24000, mono=channels != wanted)
  whole = whole.reshape(len(whole), -1)
  assert joined.shape == (len(whole), wanted)
  np.testing.assert_allclose(
    joined, np.broadcast_to(whole, joined.shape), atol=1e-4
  )
