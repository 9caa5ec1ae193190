# SPDX-License-Identifier: Apache-2.0
"""The generate verb: prompts of all kinds, candidates, provenance."""

import json
import pathlib

import numpy as np
import pytest
import small_bundle
import soundfile
import tokenizer_artifacts as small

from musiclm_jax.audio import files
from musiclm_jax.cli import main as main_lib
from musiclm_jax.cli import streamed_output


def run(*arguments):
  return main_lib.main([str(one) for one in arguments])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
  return small_bundle.write(tmp_path_factory.mktemp("bundle"), ("mulan",))


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
  """A stereo file at a rate of its own."""
  path = tmp_path_factory.mktemp("audio") / "this.wav"
  sound = small.music(2.0, 1)
  soundfile.write(path, np.stack([sound, 0.5 * sound], -1), 11025)
  return path


def test_all_kinds_of_prompts_with_candidates(bundle, stereo, tmp_path, capsys):
  arguments = (
    "generate",
    f"--bundle={bundle}",
    f"--output_dir={tmp_path}",
    "--prompt=a slow piano",
    f"--audio_prompt={stereo}",
    "--mix=0.7:loud brass",
    f"--mix=0.3:{stereo}",
    "--seconds=0.5",
    "--num_candidates=2",
    "--keep=2",
    "--batch_size=6",
    "--seed=3",
    "--top_k=0,5,1",
    "--guidance=2,1,1",
    "--negative_prompt=loud brass march",
  )
  assert run(*arguments) == 0
  lines = capsys.readouterr().out.splitlines()
  paths = [pathlib.Path(line) for line in lines if line.endswith(".wav")]
  assert len(paths) == 6 and paths == sorted(paths)
  assert paths[0] == tmp_path / "000_0.5s_a_slow_piano_1.wav"
  records = []
  for path in paths:
    waveform, rate_hz = soundfile.read(path)
    assert waveform.shape == (4000,) and rate_hz == small.RATE_HZ
    records.append(json.loads(path.with_suffix(".json").read_text()))
  text, audio, mixed = records[::2]
  assert text["prompt"] == "a slow piano"
  # What is no text alone is not scored against a text by `evaluate`.
  assert "prompt" not in audio and "prompt" not in mixed
  (part,) = audio["prompt_parts"]
  # Not where it lies: the file may be shown to others.
  assert part["audio"] == "this.wav" and len(part["audio_sha256"]) == 64
  assert paths[2].name == "001_0.5s_this_wav_1.wav"
  assert [part["weight"] for part in mixed["prompt_parts"]] == [0.7, 0.3]
  assert [one["seed"] for one in records] == [3, 3, 4, 4, 5, 5]
  for first, second in zip(records[::2], records[1::2]):
    scores = [one["candidate"]["mulan_score"] for one in (first, second)]
    assert scores[0] >= scores[1]
    assert {one["candidate"]["index"] for one in (first, second)} == {0, 1}
  sampling = text["sampling"]
  assert [one["top_k"] for one in sampling.values()] == [0, 5, 1]
  assert [one["guidance"] for one in sampling.values()] == [2, 1, 1]
  assert text["negative_prompt"] == {"prompt": "loud brass march"}

  # Nothing is made again, and each file tells of itself.
  before = [path.read_bytes() for path in paths]
  assert run(*arguments) == 0
  assert capsys.readouterr().out.splitlines() == list(map(str, paths))
  assert before == [path.read_bytes() for path in paths]
  assert run("describe", paths[0]) == 0
  told = json.loads(capsys.readouterr().out)
  assert told["file"] == str(paths[0]) and told["seed"] == 3
  for name in ("prompt", "candidate", "bundle_fingerprint", "sampling"):
    assert told[name] == text[name]
  assert len(told["bundle_fingerprint"]) == 16
  assert run("describe", stereo) == 1
  assert "this.wav does not say" in capsys.readouterr().err


@pytest.mark.parametrize(
  "flags, expected",
  [
    (("--mix=flute",), "expected WEIGHT:TEXT or WEIGHT:FILE"),
    (("--mix=x:flute",), "expected WEIGHT:TEXT or WEIGHT:FILE"),
    (("--mix=-1:flute",), "weight=-1.0 of 'flute': expected a positive"),
    (("--mix=1:none.wav",), "no audio file at none.wav"),
    (("--audio_prompt=none.wav",), "no audio file at none.wav"),
    (("--prompt=a", "--keep=2"), "--keep=2: expected at most --num_candidates"),
    (("--prompt=a", "--num_candidates=0"), "--num_candidates=0: expected >= 1"),
    (("--prompt=a", "--top_k=1.5"), "--top_k=1.5"),
    (("--prompt=a", "--top_p=0"), "--top_p=0: expected one or three numbers"),
    (("--prompt=a", "--guidance=-1"), "--guidance=-1"),
    (("--prompt=a", "--negative_prompt=b"), "--negative_prompt needs --guidan"),
    (("--prompt=a", "--guidance=3,1,3"), "guidance=3 of the fine stage"),
    (("--prompt=a", "--max_prompts=-1"), "--max_prompts=-1: expected >= 0"),
  ],
)
def test_bad_requests_are_one_line(bundle, tmp_path, capsys, flags, expected):
  output = tmp_path / "x.wav"
  assert run("generate", f"--bundle={bundle}", f"--output={output}", *flags)
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert expected in line
  assert not output.exists()


@pytest.mark.parametrize(
  "row, message",
  [
    ({"seed": 10**23}, "expected at most"),
    ({"seconds": 1e12}, "expected at most"),
    ({"seconds": 10**400}, "expected a positive number"),
  ],
)
def test_rows_stay_within_the_limits(bundle, tmp_path, capsys, row, message):
  path = tmp_path / "prompts.jsonl"
  path.write_text(json.dumps({"prompt": "a"} | row) + "\n")
  output = tmp_path / "x.wav"
  flags = (f"--bundle={bundle}", f"--output={output}", f"--prompts={path}")
  assert run("generate", *flags) == 1
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert message in line


@pytest.mark.parametrize("flag", ["output", "stream"])
def test_what_is_being_written_has_no_sidecar(
  bundle, tmp_path, flag, monkeypatch
):
  output = tmp_path / "x.wav"
  flags = ("--seconds=0.5", f"--bundle={bundle}", "--prompt=a")
  assert run("generate", *flags, f"--output={output}") == 0
  sidecar = output.with_suffix(".json")
  assert sidecar.is_file()
  seen = []

  def fall(*args, **kwargs):
    seen.append(sidecar.exists())
    raise KeyboardInterrupt

  # Killed while the audio is written: nothing may call it whole.
  monkeypatch.setattr(files, "write_wav", fall)
  monkeypatch.setattr(streamed_output, "write", fall)
  assert run("generate", *flags, "--seed=9", f"--{flag}={output}") != 0
  assert seen == [False]


@pytest.mark.parametrize(
  "waveform, message",
  [
    (np.zeros((9000, 2)), "is silent"),
    (np.full(7000, 0.1), "has 0.88 s of audio: expected at least 1 s"),
  ],
)
def test_bad_audio_is_one_line(bundle, tmp_path, capsys, waveform, message):
  path = tmp_path / "bad.wav"
  soundfile.write(path, waveform, 8000)
  for flag in (f"--audio_prompt={path}", f"--mix=1:{path}"):
    output = f"--output={tmp_path / 'x.wav'}"
    assert run("generate", f"--bundle={bundle}", output, flag) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line and str(path) in line
