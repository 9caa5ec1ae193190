# SPDX-License-Identifier: Apache-2.0
"""Benches of generation, as small as they get, and the plan of a generation."""

import json
import pathlib

import pytest

from musiclm_jax.cli import bench_stages, bench_train, check_generate, checking
from musiclm_jax.cli import main as main_lib
from musiclm_jax.core import stages
from musiclm_jax.partitioning import topologies

ROOT = pathlib.Path(__file__).resolve().parents[2]
STACK = "--gin.transformer.TransformerConfig"
SMALL = [
  f"{STACK}.num_layers=1",
  f"{STACK}.embed_dim=16",
  f"{STACK}.mlp_dim=32",
  "--num_runs=1",
  "--run_secs=0.01",
]


@pytest.fixture(name="at_root", autouse=True)
def _at_root(monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(bench_stages, "_COPY_BYTES", 2**22)


def test_a_stage_is_timed(tmp_path, capsys):
  report = tmp_path / "new" / "bench.json"
  argv = ["bench", "--what=decode", "--size=tiny", "--stages=semantic"]
  argv += ["--batch_size=2", "--gin.stages.semantic_stage.crop_secs=1.0"]
  assert main_lib.main([*argv, *SMALL, f"--json={report}"]) == 0
  found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
  assert found == json.loads(report.read_text())
  assert found["batch_size"] == 2 and found["copy_bytes_per_second"] > 1e8
  (stage,) = found["stages"]
  assert stage["stage"] == "semantic"
  assert (stage["prefix_tokens"], stage["new_tokens"]) == (13, 25)
  rate = stage["calls_per_second"]
  assert stage["tokens_per_second"] == pytest.approx(50 * rate)
  assert stage["steps_per_second"] == pytest.approx(25 * rate)
  assert stage["real_time_factor"] == pytest.approx(2 * rate)
  # Products of one layer, its two norms and the last one, 32 x 2 biases of
  # the positions, and 1024 codes.
  weights = 4 * 16 * 16 + 2 * 16 * 32 + 3 * 16 + 32 * 2 + 16 * 1024
  assert stage["weight_bytes_per_token"] == 4 * weights / 2
  # Keys and values of 2 x 8, of the middle of 13 to 38 positions.
  assert stage["cache_bytes_per_token"] == 4 * 2 * 16 * (13 + 26 / 2)
  bound = found["copy_bytes_per_second"] / (4 * weights)
  assert stage["weight_bound_steps_per_second"] == pytest.approx(bound)
  assert stage["compile_secs"] > 0 and stage["peak_host_bytes"] > 1e8


def test_a_train_step_learns_the_target_alone():
  request = bench_stages.Request(
    "tiny", ("coarse",), 2, 1.0, "stages", "24m", "", "compute", (),
    ("stages.coarse_stage.crop_secs=0.2",), (),
  )  # fmt: skip
  layout = checking.load_stage(request, "coarse").layout
  batch = bench_train.random_batch(layout, 2)
  weights, tokens = (
    batch["decoder_loss_weights"],
    batch["decoder_target_tokens"],
  )
  assert layout.target_start == 12 + 5 and weights.shape == (2, 57)
  assert not weights[:, :17].any() and (weights[:, 17:] == 1).all()
  inputs = batch["decoder_input_tokens"]
  assert (inputs[:, 1:] == tokens[:, :-1]).all()
  assert (inputs[:, 0] == stages.BOS_ID).all()


def test_a_train_step_is_timed(capsys):
  argv = ["bench", "--what=train", "--size=tiny", "--stages=coarse"]
  argv += ["--batch_size=2", "--gin.stages.coarse_stage.crop_secs=0.2"]
  assert main_lib.main([*argv, *SMALL]) == 0
  found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
  (stage,) = found["stages"]
  assert stage["stage"] == "coarse" and stage["global_batch_size"] == 2
  # 12 MuLan codes, 5 semantic ones and 10 frames of 4 codes.
  length = 12 + 5 + 40
  assert stage["batch_shape"]["decoder_target_tokens"] == [2, length]
  rate = stage["calls_per_second"]
  assert stage["tokens_per_second"] == pytest.approx(2 * length * rate)


@pytest.mark.parametrize(
  "acoustic, flags, names",
  [
    ("stages", [*SMALL, f"{STACK}.num_heads=1"], ["coarse", "fine"]),
    ("soundstorm", SMALL[-2:], ["acoustic_soundstorm"]),
  ],
)
def test_whole_items_are_timed(capsys, acoustic, flags, names):
  argv = ["bench", "--what=end_to_end", "--size=tiny", "--codec=small"]
  argv += ["--seconds=1", f"--acoustic={acoustic}", *flags]
  assert main_lib.main(argv) == 0
  found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
  assert found["real_time_factor"] == pytest.approx(1 / found["secs"])
  parts = found["secs_by_part"]
  assert list(parts) == ["semantic", *names, "codec"]
  assert found["acoustic"] == acoustic
  # How SoundStorm draws decides how long it takes.
  assert ("acoustic_decoding" in found) == (acoustic == "soundstorm")
  assert all(secs > 0 for secs in parts.values())


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--what=decode", "--stages=coarze"], "did you mean 'coarse'"),
    (["--what=decode", "--weights=int9"], "did you mean 'int8'"),
    (["--what=decode", "--batch_size=0"], "--batch_size=0: expected >= 1"),
    (["--what=decode", "--size=huge"], "stage_huge.gin"),
    (["--what=end_to_end", "--seconds=0.5"], "expected whole seconds"),
    (["--what=end_to_end", "--stages=fine"], "expected all for end_to_end"),
    (["--what=end_to_end", "--acoustic=soundstrom"], "did you mean"),
    (["--what=loader"], "--what=loader: expected a --gin_file"),
  ],
)
def test_bad_flags_are_one_line(capsys, flags, message):
  assert main_lib.main(["bench", *flags, *SMALL]) == 1
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert message in line


def test_the_plan_of_a_generation_makes_every_token():
  topology = topologies.parse("v5e-8")
  request = check_generate.Request("paper", topology, 64, 30.0)
  works = []
  for stage in bench_stages.STAGES:
    trainable = checking.load_stage(request, stage)
    works += check_generate.plan(trainable, stage, request)
  # 30 s of 25 tokens; 10 s and four times 5 s of 200; 10 x 3 s of 400.
  shapes = [
    (work.stage, work.known_frames, work.num_tokens, work.num_calls)
    for work in works
  ]
  assert shapes == [
    ("semantic", 0, 750, 1),
    ("coarse", 0, 2000, 1),
    ("coarse", 250, 1000, 4),
    ("fine", 0, 1200, 10),
  ]
  assert {work.rows_per_chip for work in works} == {8}
  total = sum(work.num_rows * work.num_tokens for work in works)
  assert total == 64 * 30 * 625
  alone = check_generate.Request("paper", topology, 1, 30.0)
  (fine,) = check_generate.plan(trainable, "fine", alone)
  assert (fine.rows_per_chip, fine.num_rows, fine.num_calls) == (2, 10, 1)
