# SPDX-License-Identifier: Apache-2.0
"""Gin files: every shipped experiment resolves; broken ones are named."""

import pathlib

import pytest

from musiclm_jax.cli import experiment, gin_config
from musiclm_jax.core import errors

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "gin" / "experiments").glob("*_tiny_*.gin"))
STAGE = "experiments/musiclm_semantic_tiny_score_corpus.gin"
VALUES = ["TRAIN_STEPS=10", "CACHE_DIR='c'"]


def _required(path):
  text = path.read_text()
  overrides = ["TRAIN_STEPS=10"]
  if "--gin.CACHE_DIR=" in text:
    overrides.append("CACHE_DIR='c'")
  else:
    overrides.append("CORPUS_DIR='d'")
  if "models/mulan_bert.gin" in text:
    overrides.append("BERT_DIR='b'")
  elif "tasks/caption.gin" in text:
    overrides.append("TEXT_MODEL='t'")
  return overrides


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiments_resolve(path):
  resolved = gin_config.resolve([str(path)], _required(path))
  steps = resolved.bindings["TRAIN_STEPS"]
  assert (steps.value, steps.place) == (10, gin_config.COMMAND_LINE)


def test_seven_trainables_have_experiments():
  names = {path.stem.split("_tiny")[0] for path in EXPERIMENTS}
  parts = ("soundstream", "w2v_bert", "mulan", "semantic", "coarse", "fine")
  assert {f"musiclm_{part}" for part in parts} <= names


@pytest.mark.parametrize(
  "override, expected",
  [
    ("TRAIN_STEP=5", "unknown gin binding 'TRAIN_STEP'.*'TRAIN_STEPS'"),
    (
      "loop.LoopConfig.total_step=5",
      "no argument 'total_step'.*'total_steps'",
    ),
    ("loop.LoopConfg.seed=5", "no 'LoopConfg' in loop.*'LoopConfig'"),
    ("lop.LoopConfig.seed=5", "unknown gin module 'lop'.*'loop'"),
    ("stages.fine_stage.crop_secs=2.0", "unused gin binding"),
    ("SEED", "expected --gin.NAME=value"),
  ],
)
def test_wrong_bindings_name_the_nearest(override, expected):
  with pytest.raises(errors.UserError, match=expected) as caught:
    gin_config.resolve([STAGE], [*VALUES, override])
  assert "\n" not in str(caught.value)


def test_missing_values_are_all_named():
  with pytest.raises(errors.UserError, match="TRAIN_STEPS.*CACHE_DIR") as error:
    gin_config.resolve([STAGE])
  assert "--gin.CACHE_DIR=..." in str(error.value)


def test_missing_file_names_the_nearest():
  with pytest.raises(errors.UserError, match="musiclm_fine_tiny"):
    gin_config.resolve(["experiments/musiclm_fin_tiny_score_corpus.gin"])


def test_bad_syntax_names_file_and_line(tmp_path):
  path = tmp_path / "bad.gin"
  path.write_text("A = 1\nB = (2\n\nC 3\n")
  with pytest.raises(errors.UserError, match=r"bad\.gin:\d+: not gin syntax"):
    gin_config.resolve([str(path)])


def test_places_and_replaced_values_are_shown():
  text = gin_config.describe(gin_config.resolve([STAGE], [*VALUES, "SEED=7"]))
  assert "SEED = 7    # command line" in text
  assert "# replaces 0 from" in text and "runs/train.gin" in text


def test_bad_value_is_a_user_error_when_built():
  gin_config.resolve([STAGE], [*VALUES, "mesh.MeshConfig.fsdp=0"])
  with pytest.raises(errors.UserError):
    gin_config.build(experiment.Experiment)
