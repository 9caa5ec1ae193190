# SPDX-License-Identifier: Apache-2.0
"""The verb that puts known faults into recordings and reads the metrics."""

import json

import numpy as np
import pytest
import small_bundle
import small_corpus
import statistics_listener
import tunes

from musiclm_jax.audio import files
from musiclm_jax.cli import embedder_specs, fault_clips
from musiclm_jax.cli import main as main_lib
from musiclm_jax.core import errors
from musiclm_jax.evaluation import clip_files

RATE_HZ = statistics_listener.RATE_HZ
SECS = 1.0


def run(*arguments):
  return main_lib.main(["faults", *(str(one) for one in arguments)])


@pytest.fixture(name="recordings", scope="module")
def _recordings(tmp_path_factory):
  """Sixteen tunes, one that is too short and one that is none."""
  root = tmp_path_factory.mktemp("faults") / "recordings"
  root.mkdir()
  for seed in range(16):
    path = root / f"{seed:02d}.wav"
    files.write_wav(path, tunes.tune(seed, SECS, RATE_HZ), RATE_HZ)
  files.write_wav(root / "short.wav", tunes.tune(99, 0.5, RATE_HZ), RATE_HZ)
  (root / "torn.wav").write_bytes(b"RIFF")
  return root


@pytest.fixture(name="listener")
def _listener(monkeypatch):
  monkeypatch.setattr(
    embedder_specs, "open_listener", lambda _: statistics_listener.Statistics()
  )


def test_numbers_verdicts_and_what_was_left_out(
  recordings, listener, tmp_path, capsys
):
  assert not run(
    f"--reference={recordings}",
    "--embedder=statistics:x",
    f"--seconds={SECS}",
    "--batch_size=3",
    f"--output_dir={tmp_path}",
  )
  report = json.loads((tmp_path / "faults.json").read_text())
  first, second = report["halves"]
  assert first["num_clips"] + second["num_clips"] == 16
  assert abs(first["num_clips"] - second["num_clips"]) <= 2
  assert sorted(text.split()[0] for text in report["left_out"]) == [
    "short.wav",
    "torn.wav",
  ]
  (result,) = report["listeners"]
  assert result["listener"]["name"] == "statistics"
  assert result["titles"]["fad"] == "FAD (statistics)"
  rows = {row["name"]: row for row in result["rows"]}
  alone = rows["noise alone"]
  assert alone["differences"]["fad"]["low"] > 0
  assert alone["values"]["kld"]["mean"] > 0.01
  assert {v["kind"] for v in result["verdicts"]} == {
    "noise",
    "low-pass",
    "slower",
    "shuffled",
  }
  # 4 windows of each of 8 clips, in 12 dimensions.
  assert any("in 12 dimensions" in one for one in result["warnings"])
  text = (tmp_path / "faults.md").read_text()
  assert "| noise alone |" in text and "| shuffled |" in text
  assert all(f"\n{one}.\n" in text for one in result["warnings"])
  assert text.strip() in capsys.readouterr().out


def test_a_corpus_with_captions_and_a_codec(tmp_path):
  small_bundle.write(tmp_path)
  records = []
  for seed in range(12):
    sound = tunes.tune(seed, SECS, RATE_HZ)
    records.append(
      {
        "id": f"clip {seed}",
        "audio": files.encode_flac(sound, RATE_HZ),
        "sample_rate_hz": RATE_HZ,
        "num_samples": len(sound),
        "work_id": str(seed // 2),
        "arrangement": "",
        "captions": [f"tune number {seed}"],
        "aspects": [],
      }
    )
  corpus = small_corpus.build_corpus(str(tmp_path), {"test": records})
  assert not run(
    f"--reference={corpus}",
    f"--embedder=mulan:{tmp_path}/bundle",
    f"--codec={tmp_path}/bundle",
    f"--seconds={SECS}",
    f"--output_dir={tmp_path}/out",
  )
  report = json.loads((tmp_path / "out" / "faults.json").read_text())
  (result,) = report["listeners"]
  assert list(result["titles"].values())[-1] == "MCC"
  copies = [row["name"] for row in result["rows"] if row["kind"] == "codec"]
  assert copies and copies[-1] == "1 codebook"
  assert report["codec"]
  # Clips of a work are in one half.
  assert [half["num_works"] for half in report["halves"]] == [3, 3]


def clips(count, per_work=3):
  return [
    fault_clips.Clip(str(i), str(i // per_work), "", None) for i in range(count)
  ]


def test_halves_share_no_work_and_are_thinned():
  everything = clips(60)
  for most in (60, 10):
    first, second = fault_clips.halves(everything, most, seed=1)
    assert not {one.work for one in first} & {one.work for one in second}
    assert len(first) == len(second) == most // 2
  assert fault_clips.halves(everything, 10, 2)[0] != first
  with pytest.raises(errors.UserError, match="1 works: expected at least 2"):
    fault_clips.halves(clips(3), 10, 0)


def write_samples(folder, names):
  """What a system might make: other tunes, with a sidecar each."""
  folder.mkdir()
  for number, name in enumerate(names):
    sound = tunes.tune(500 + number, SECS, RATE_HZ, brightness=0.3)
    sound = (sound + 0.02 * np.sign(sound)).astype(np.float32)
    # At another rate than the recordings.
    path = folder / f"made_{number}.wav"
    files.write_wav(path, np.repeat(sound, 2), 2 * RATE_HZ)
    path.with_suffix(".json").write_text(
      json.dumps({"prompt": f"a tune {name}", "source": {"clip_id": name}})
    )
  return folder


def test_what_was_generated_stands_beside_its_clips(
  recordings, listener, tmp_path
):
  names = [f"{number:02d}" for number in range(8)]  # stems of files
  samples = write_samples(tmp_path / "samples", names)
  assert not run(
    f"--reference={recordings}",
    "--embedder=statistics:x",
    f"--samples_dir={samples}",
    f"--seconds={SECS}",
    f"--output_dir={tmp_path}/out",
  )
  report = json.loads((tmp_path / "out" / "faults.json").read_text())
  assert [half["num_clips"] for half in report["halves"]] == [8, 8]
  (result,) = report["listeners"]
  rows = {row["name"]: row["values"] for row in result["rows"]}
  made, others = rows["generated"], rows["generated for other prompts"]
  # The same set of sounds, in other places.
  assert made["fad"]["mean"] == pytest.approx(others["fad"]["mean"])
  assert made["kld"]["mean"] != pytest.approx(others["kld"]["mean"])
  assert made["fad"]["mean"] > rows["as it is"]["fad"]["mean"]
  ladder = result["ladder"]
  assert ladder["names"] == [
    "as it is",
    "generated",
    "generated, pieces of 0.1 s shuffled",
    "noise alone",
  ]
  assert ladder["out_of_order"]["fad"] == []
  text = (tmp_path / "out" / "faults.md").read_text()
  assert "- FAD (statistics): in order" in text


def test_samples_are_heard_at_the_rate_of_their_clips(tmp_path):
  time = np.arange(2 * RATE_HZ) / (2 * RATE_HZ)
  waveform = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
  for name, step in (("clip", 2), ("sample", 1)):
    rate_hz = 2 * RATE_HZ // step
    files.write_wav(tmp_path / f"{name}.wav", waveform[::step], rate_hz)
  clip, sample = (
    clip_files.of_path(tmp_path / f"{name}.wav") for name in ("clip", "sample")
  )
  left_out = []
  found = fault_clips.batches(
    [fault_clips.Clip("clip", "work", "", clip, sample)], 0.5, 4, left_out
  )
  (batch,) = found
  assert batch.sample_rate_hz == RATE_HZ and not left_out
  assert batch.samples.shape == batch.waveforms.shape == (1, RATE_HZ // 2)
  inside = slice(100, -100)
  np.testing.assert_allclose(
    batch.samples[0, inside], batch.waveforms[0, inside], atol=0.01
  )


def test_samples_of_nothing_are_refused(recordings, tmp_path):
  everything = fault_clips.read(str(recordings), "test")
  samples = write_samples(tmp_path / "samples", ["other"])
  with pytest.raises(errors.UserError, match="no sample in .* was made for a"):
    fault_clips.paired(everything, [str(samples)], 10)
  few = [clip for clip in everything if clip.name == "00.wav"]
  samples = write_samples(tmp_path / "more", ["00"])
  with pytest.raises(errors.UserError, match="for every work"):
    fault_clips.paired(few, [str(samples)], 10)


@pytest.mark.parametrize(
  "flags, expected",
  [
    (["--seconds=1e-5"], "--seconds=1e-05: expected at least 0.2"),
    (["--seconds=nan"], "--seconds=nan: expected at least 0.2"),
    (["--seed=-1"], "--seed=-1: expected at least 0"),
    (["--max_clips=1"], "--max_clips=1"),
    (["--seconds=30"], "0 clips of a half can be heard"),
  ],
)
def test_bad_input_is_one_line(
  recordings, listener, tmp_path, capsys, flags, expected
):
  out = tmp_path / "out"
  assert run(
    f"--reference={recordings}",
    "--embedder=statistics:x",
    f"--output_dir={out}",
    *flags,
  )
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and expected in lines[0]
  assert not out.exists()
