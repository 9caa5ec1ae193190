# SPDX-License-Identifier: Apache-2.0
"""Metrics files: splits, resumed runs, damage."""

import pytest

from musiclm_jax.core import errors
from musiclm_jax.evaluation import curves

_LINES = (
  '{"step": 20, "split": "train", "loss": 2.0, "note": "x", "ok": true}\n'
  '{"step": 10, "split": "train", "loss": 3.0, "accuracy": 0.5}\n'
  '{"step": 20, "split": "heldout", "loss": 2.5}\n\n'
  '{"step": 20, "split": "train", "loss": 1.5}\n'
)


def test_points_are_sorted_by_split_and_a_resumed_step_counts_once(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(_LINES)
  assert curves.read_metrics(tmp_path) == {
    "train": {"loss": [(10, 3.0), (20, 1.5)], "accuracy": [(10, 0.5)]},
    "heldout": {"loss": [(20, 2.5)]},
  }
  assert curves.loss_curves({"codec": tmp_path}) == {
    "codec": {"train": [(10, 3.0), (20, 1.5)], "heldout": [(20, 2.5)]}
  }
  assert curves.loss_curves({"a": tmp_path}, metrics={"a": "accuracy"}) == {
    "a": {"train": [(10, 0.5)]}
  }
  with pytest.raises(errors.UserError, match="did you mean 'loss'"):
    curves.loss_curves({"codec": tmp_path}, "los")


def test_a_cut_off_last_line_is_left_out_but_damage_inside_is_not(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text(_LINES + '{"step": 30, "spl')
  assert curves.read_metrics(path)["train"]["loss"][-1] == (20, 1.5)
  path.write_text('{"step": 30, "spl\n' + _LINES)
  with pytest.raises(errors.UserError, match="line 1"):
    curves.read_metrics(path)
  with pytest.raises(errors.UserError, match="no metrics at"):
    curves.read_metrics(tmp_path / "missing")
