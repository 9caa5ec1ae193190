# SPDX-License-Identifier: Apache-2.0
"""`musiclm tokenize` on a folder with bad files: what is kept, what is told."""

import json

import full_disk
import numpy as np
import pytest
import soundfile
import tokenizer_artifacts as small

from musiclm_jax.cli import main as main_lib
from musiclm_jax.data import token_cache

# By file, what its reason must tell.
BAD = {
  "truncated.flac": "cannot be read|truncated",
  "nan.wav": "NaN or infinite",
  "empty.wav": "empty",
  "silent.wav": "silent",
  "text.wav": "cannot be read",
  "tenth.wav": "0.10 s",
  "folder.wav": "is a folder",
  "broken.wav": "is a broken link",
  "loop.wav": "is a broken link",
}
CONVERTED = {
  "seven.wav": "7 channels",
  "eight_bits.wav": "8 bits",
  "mu_law.wav": "8 bits",
  "fast.wav": "192000 Hz",
}
NUM_GOOD = 3


def plant(folder):
  """A folder of good, unusual and bad files."""
  folder.mkdir()
  rate = small.RATE_HZ
  music = small.music(2.5, 9)
  for number in range(NUM_GOOD):
    # Stereo at another rate is nothing unusual.
    soundfile.write(
      folder / f"good{number}.flac",
      np.stack([small.music(2.0 + number, number)] * 2, -1),
      16000,
    )
  good = (folder / "good0.flac").read_bytes()
  (folder / "truncated.flac").write_bytes(good[: len(good) // 2])
  broken = music.copy()
  broken[100] = np.nan
  soundfile.write(folder / "nan.wav", broken, rate, subtype="FLOAT")
  (folder / "empty.wav").touch()
  soundfile.write(folder / "silent.wav", np.zeros(2 * rate), rate)
  (folder / "text.wav").write_text("The quick brown fox. " * 50)
  soundfile.write(folder / "tenth.wav", music[: rate // 10], rate)
  (folder / "folder.wav").mkdir()
  (folder / "broken.wav").symlink_to(folder / "nothing.wav")
  (folder / "loop.wav").symlink_to(folder / "loop.wav")
  soundfile.write(folder / "seven.wav", np.stack([music] * 7, -1), rate)
  soundfile.write(folder / "eight_bits.wav", music, rate, subtype="PCM_U8")
  soundfile.write(folder / "mu_law.wav", music, rate, subtype="ULAW")
  soundfile.write(folder / "fast.wav", np.repeat(music, 24), 192000)
  (folder / "notes.txt").write_text("not audio, and does not claim to be")
  return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Folder, artefacts, arguments and a finished cache."""
  root = tmp_path_factory.mktemp("tokenize")
  plant(root / "music")
  small.write(root / "artifacts")
  arguments = [
    "tokenize",
    f"--corpus_dir={root / 'music'}",
    f"--artifact_dir={root / 'artifacts'}",
    *("--acoustic_window_secs=1", "--semantic_window_secs=2"),
    *("--semantic_halo_secs=0.4", "--shard_size=4"),
    f"--compile_cache={root / 'compiled'}",
  ]
  code = main_lib.main(
    [*arguments, f"--output_dir={root / 'tokens'}", "--max_bad_fraction=0.6"]
  )
  assert code == 0
  return root, arguments


def test_bad_files_are_listed_and_the_rest_is_tokenized(made):
  root, _ = made
  manifest = json.loads((root / "tokens" / "manifest.json").read_text())
  split = manifest["splits"]["train"]
  assert sorted(split["skipped"]) == sorted(BAD)
  for name, pattern in BAD.items():
    assert any(part in split["skipped"][name] for part in pattern.split("|")), (
      split["skipped"][name]
    )
  assert sorted(split["converted"]) == sorted(CONVERTED)
  for name, part in CONVERTED.items():
    assert part in split["converted"][name]
  assert split["num_inputs"] == NUM_GOOD + len(BAD) + len(CONVERTED)
  assert split["num_skipped"] == len(BAD)
  reader = token_cache.TokenCacheReader(root / "tokens")
  found = {clip.clip_id: clip for clip in reader["train"]}
  expected = [f"good{n}.flac" for n in range(NUM_GOOD)] + list(CONVERTED)
  assert sorted(found) == sorted(expected)
  # 3 s of samples, written as 16 kHz.
  assert len(found["good1.flac"].arrays["semantic"]) == 38
  assert len(found["good1.flac"].arrays["acoustic"]) == 75
  assert len(found["fast.wav"].arrays["acoustic"]) == 125
  secs = sum(len(c.arrays["acoustic"]) for c in found.values()) / 50
  assert split["audio_secs"] == pytest.approx(secs, abs=0.1)
  assert split["frames"]["acoustic"] == round(50 * secs)


def test_time_is_accounted_for_beside_the_cache(made):
  root, _ = made
  (path,) = (root / "tokens" / "reports").glob("*.json")
  report = json.loads(path.read_text())
  assert 0 < report["device_busy_fraction"] <= 1
  assert report["audio_secs_per_sec"] > 0
  assert report["host"]["num_skipped"] == len(BAD)
  assert report["host"]["decode_secs"] > 0
  assert report["device"]["busy_secs"] <= report["host"]["wall_secs"]


def test_a_full_disk_keeps_nothing_half_written(made, tmp_path, capfd):
  root, arguments = made
  arguments = [*arguments, f"--output_dir={tmp_path}", "--max_bad_fraction=0.6"]
  # No room for the codebooks, then none for a shard.
  for num_bytes, name in ((999, "mulan_codebooks"), (99_999, "train-0000")):
    with full_disk.room(num_bytes):
      assert main_lib.main(arguments) == 42
    assert f"{tmp_path}/{name}" in full_disk.told(capfd)
    left = [path for path in full_disk.files(tmp_path) if path != "cache.json"]
    assert left in ([], ["mulan_codebooks.npy"])
  assert main_lib.main(arguments) == 0

  def parts(directory):
    found = full_disk.files(directory)
    return {k: v for k, v in found.items() if not k.startswith("reports")}

  assert parts(tmp_path) == parts(root / "tokens")


def test_too_many_bad_files_fail_the_job(made, capsys):
  root, arguments = made
  out = f"--output_dir={root / 'strict'}"
  assert main_lib.main([*arguments, out, "--max_bad_fraction=0.01"]) == 1
  said = capsys.readouterr().err
  assert "max_bad_fraction=0.01" in said
  with pytest.raises(ValueError, match="not finished"):
    token_cache.TokenCacheReader(root / "strict")


def test_a_finished_cache_is_left_alone_and_other_settings_refused(
  made, capsys
):
  root, arguments = made
  out = f"--output_dir={root / 'tokens'}"
  before = (root / "tokens" / "cache.json").stat().st_mtime_ns
  # What a kill left of this split, and another at work on the next split.
  claims = root / "tokens" / "claims"
  claims.mkdir()
  for where in (claims, root / "tokens"):
    for split in ("train", "test"):
      (where / f"{split}-00000.array_record.a.writing").touch()
  (root / "tokens" / ".train-00000.json.b.writing").touch()
  assert main_lib.main([*arguments, out]) == 0
  assert "was finished before" in capsys.readouterr().out
  assert (root / "tokens" / "cache.json").stat().st_mtime_ns == before
  for where in (claims, root / "tokens"):
    left = where / "test-00000.array_record.a.writing"
    assert list(where.glob("*.writing")) == [left]
    left.unlink()
  claims.rmdir()
  assert main_lib.main([*arguments, out, "--semantic_halo_secs=0.8"]) == 1
  assert "semantic_halo_secs=0.4: expected 0.8" in capsys.readouterr().err


def test_a_folder_without_audio_says_what_is_expected(made, capsys, tmp_path):
  _, arguments = made
  arguments = [*arguments, f"--output_dir={tmp_path / 't'}"]
  assert main_lib.main([*arguments, f"--corpus_dir={tmp_path}"]) == 1
  assert "neither a built corpus nor audio" in capsys.readouterr().err
