# SPDX-License-Identifier: Apache-2.0
"""Two processes share a tokenize job, are killed twice, and lose nothing.

The same job as `tokenize_kill_rounds.py`, whose 10 rounds are for people.
"""

import json
import signal

import soundfile
import tokenize_kill_rounds as kill_rounds
import tokenizer_artifacts as small

NUM_FILES = 40


def test_killed_job_ends_in_the_cache_of_an_unbroken_one(tmp_path):
  small.write(tmp_path / "artifacts")
  music = tmp_path / "music"
  music.mkdir()
  for number in range(NUM_FILES):
    waveform = small.music(2.0 + 0.3 * (number % 9), number)
    soundfile.write(music / f"{number:02d}.wav", waveform, small.RATE_HZ)
  (music / "05.wav").write_text("no audio")
  # Seed 15: SIGKILL of both after a shard, then of one after another.
  result = kill_rounds.run(
    tmp_path / "jobs",
    [
      f"--corpus_dir={music}",
      f"--artifact_dir={tmp_path / 'artifacts'}",
      *("--acoustic_window_secs=1", "--semantic_window_secs=2"),
      *("--semantic_halo_secs=0.4", "--shard_size=2", "--stale_secs=5"),
    ],
    rounds=2,
    seed=15,
  )
  log = (tmp_path / "jobs" / "log.txt").read_text(errors="replace")
  assert result["good"], (result, log[-3000:])
  # What had ended before it was killed would tell 0 here.
  for one in result["rounds"]:
    codes = json.loads(one.rsplit(":", 1)[1])
    assert codes and set(codes) == {-signal.SIGKILL}, result["rounds"]
  manifest = json.loads((tmp_path / "jobs/killed/manifest.json").read_text())
  assert manifest["num_clips"] == NUM_FILES - 1
  assert list(manifest["splits"]["train"]["skipped"]) == ["05.wav"]
