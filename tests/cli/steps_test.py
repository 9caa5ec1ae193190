# SPDX-License-Identifier: Apache-2.0
"""The step runner: order, markers, failures, one run per folder."""

import argparse
import json

import pytest

from musiclm_jax.cli import gin_config, quickstart, steps
from musiclm_jax.core import errors

VERSION = ("--version",)
BAD = ("report", "--workdir=does_not_exist")


def test_quickstart_takes_a_text_tower_from_disk(tmp_path):
  parser = argparse.ArgumentParser()
  quickstart.add_arguments(parser)
  for options, name in (([], "TEXT_MODEL"), (["--text_tower=m/bert"], None)):
    plan = quickstart.plan(parser.parse_args(options), tmp_path)
    (step,) = [step for step in plan if step.name == "train_mulan"]
    found = gin_config.resolve(
      [a.removeprefix("--gin_file=") for a in step.argv if "gin_file" in a],
      [a.removeprefix("--gin.") for a in step.argv if a.startswith("--gin.")],
    )
    bound = {key: b.value for key, b in found.bindings.items()}
    made = [step.name for step in plan]
    assert set(step.needs) <= set(made)
    assert ("prepare_text" in made) == bool(name)
    if name:
      assert bound[name] == str(tmp_path / "text" / "text.model")
    else:
      assert bound["BERT_DIR"].endswith("m/bert")
      assert bound["mulan.MuLanConfig.text_tower"] == "bert"


def _started(capsys):
  lines = capsys.readouterr().out.splitlines()
  return [line.split()[2].rstrip(":") for line in lines if "starting" in line]


def test_runs_in_order_and_only_once(tmp_path, capsys):
  plan = [
    steps.Step("a", VERSION),
    steps.Step("b", VERSION, ("a",), num_cores=2),
    steps.Step("c", VERSION, ("a", "b")),
  ]
  steps.StepRunner(tmp_path, plan).run()
  assert _started(capsys) == ["a", "b", "c"]
  assert [item["name"] for item in steps.finished(tmp_path)] == ["a", "b", "c"]
  assert steps.peak_memory_bytes(tmp_path) > 0
  steps.StepRunner(tmp_path, plan).run()
  assert _started(capsys) == []


def test_changed_step_runs_again_with_what_needs_it(tmp_path, capsys):
  plan = [
    steps.Step("a", VERSION),
    steps.Step("b", VERSION, ("a",)),
    steps.Step("other", VERSION),
  ]
  steps.StepRunner(tmp_path, plan).run()
  capsys.readouterr()
  plan[0] = steps.Step("a", ("--help",))
  steps.StepRunner(tmp_path, plan).run()
  assert _started(capsys) == ["a", "b"]


def test_failure_names_step_and_log_and_can_be_mended(tmp_path, capsys):
  plan = [steps.Step("a", VERSION), steps.Step("bad", BAD, ("a",))]
  with pytest.raises(errors.UserError, match="'bad'.*no evaluation.*log"):
    steps.StepRunner(tmp_path, plan).run()
  assert not (tmp_path / "steps" / "bad.json").exists()
  capsys.readouterr()
  plan[1] = steps.Step("bad", VERSION, ("a",))
  steps.StepRunner(tmp_path, plan).run()
  assert _started(capsys) == ["bad"]


def test_seconds_of_killed_attempts_count(tmp_path):
  (tmp_path / "steps").mkdir()
  (tmp_path / "steps" / "a.partial").write_text("100.0")
  steps.StepRunner(tmp_path, [steps.Step("a", VERSION)]).run()
  record = json.loads((tmp_path / "steps" / "a.json").read_text())
  assert 100.0 < record["seconds"] < 200.0


def test_half_written_marker_is_not_done(tmp_path, capsys):
  (tmp_path / "steps").mkdir()
  (tmp_path / "steps" / "a.json").write_text('{"argv": [')
  steps.StepRunner(tmp_path, [steps.Step("a", VERSION)]).run()
  assert _started(capsys) == ["a"]


def test_two_runs_in_one_folder_are_refused(tmp_path):
  runner = steps.StepRunner(tmp_path, [steps.Step("a", VERSION)])
  with runner._locked(), pytest.raises(errors.UserError, match="another run"):
    steps.StepRunner(tmp_path, [steps.Step("a", VERSION)]).run()


def test_needs_must_come_before(tmp_path):
  with pytest.raises(ValueError, match="'a' needs"):
    steps.StepRunner(tmp_path, [steps.Step("a", VERSION, ("b",))])
