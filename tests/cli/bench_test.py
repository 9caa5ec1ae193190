# SPDX-License-Identifier: Apache-2.0
"""The bench verb: what it prints, and what it refuses."""

import importlib.util
import json
import pathlib
import time

import pytest

from musiclm_jax.cli import bench_metrics, benchmarking
from musiclm_jax.cli import main as main_lib
from musiclm_jax.evaluation import prompt_metrics

EXPERIMENT = """
from __gin__ import dynamic_registration
from musiclm_jax.core import stages
include 'experiments/musiclm_coarse_tiny_score_corpus.gin'
stages.coarse_stage.num_mulan_codebooks = 3
stages.coarse_stage.num_coarse_codebooks = 2
stages.coarse_stage.crop_secs = 1.0
TRAIN_STEPS = 1
BATCH_SIZE = 8
"""


@pytest.fixture(name="argv")
def _argv(tmp_path):
  path = pathlib.Path(__file__).parents[1] / "data" / "conftest.py"
  spec = importlib.util.spec_from_file_location("data_fixtures", path)
  fixtures = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(fixtures)
  numbers = [(n, 75) for n in range(7)]
  splits = {"train": numbers, "validation": numbers}
  cache = tmp_path / "cache"
  fixtures.write_cache(cache, fixtures.make_cache_config(), splits)
  gin_file = tmp_path / "experiment.gin"
  gin_file.write_text(EXPERIMENT)
  return ["bench", f"--gin_file={gin_file}", f"--gin.CACHE_DIR={cache}"]


def test_loader_rates_of_one_host(argv, tmp_path, capsys):
  report = tmp_path / "new" / "bench.json"
  argv += ["--what=loader", "--num_runs=3", "--run_secs=0.05"]
  argv += ["--num_hosts=2", "--host_index=1", f"--json={report}"]
  assert main_lib.main(argv) == 0
  found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
  assert found == json.loads(report.read_text())
  # 4 rows of 3 MuLan, 25 semantic and 50 x 2 acoustic tokens.
  assert found["batch_shape"]["decoder_target_tokens"] == [4, 128]
  assert len(found["calls_per_second_runs"]) == 3
  ratio = found["tokens_per_second"] / found["calls_per_second"]
  assert ratio == pytest.approx(4 * 128)
  assert found["what"] == "loader" and found["num_hosts"] == 2


def test_metrics_are_timed_one_by_one(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(bench_metrics, "_DIM", 8)
  monkeypatch.setattr(bench_metrics._Random, "embedding_dim", 8)
  argv = ["bench", "--what=metrics", "--num_runs=1", "--run_secs=0.01"]
  assert main_lib.main([*argv, "--num_clips=3"]) == 1
  assert "--num_clips=3: expected >= 4" in capsys.readouterr().err
  assert main_lib.main([*argv, f"--embedder=mulan:{tmp_path}/x"]) == 1
  capsys.readouterr()
  assert main_lib.main([*argv, "--num_clips=20", "--seconds=1"]) == 0
  found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
  assert set(found["metrics"]) == {*prompt_metrics.METRICS, "chroma"}
  assert all(
    one["clips_per_second"] > 0 and one["clips_per_cpu_second"] > 0
    for one in found["metrics"].values()
  )


@pytest.mark.parametrize(
  "options, expected",
  [
    (["--num_runs=0"], "--num_runs=0"),
    (["--run_secs=0"], "--run_secs=0.0"),
    (["--num_hosts=2", "--host_index=2"], "--host_index=2"),
  ],
)
def test_bad_numbers_are_one_line(options, expected, argv, capsys):
  assert main_lib.main([*argv, "--what=loader", *options]) == 1
  err = capsys.readouterr().err
  assert expected in err and len(err.strip().splitlines()) == 1


def test_rates_count_wall_and_processor_time():
  found = benchmarking.rates(
    lambda: time.sleep(0.02), benchmarking.Timing(3, 0.1)
  )
  assert 1 < found["calls_per_second"] < 51
  # Sleeping takes no processor time.
  assert found["calls_per_cpu_second"] > 2 * found["calls_per_second"]
