# SPDX-License-Identifier: Apache-2.0
"""Summaries: round trip and verdicts."""

import copy
import json

import numpy as np
import pytest

from musiclm_jax.core import errors
from musiclm_jax.evaluation import summary as summary_lib


def _parts():
  scores = {
    "heldout_cross_entropy": 2.0,
    "bigram_cross_entropy": 2.5,
    "unigram_cross_entropy": 3.0,
  }
  found = {
    "recall_at_1": 0.1,
    "recall_at_10": 0.6,
    "chance_at_10": 0.1,
    "num_items": 100,
    "median_rank": 8.0,
  }
  interval = {"mean": 0.3, "low": 0.2, "high": 0.4}
  return {
    "steps": [{"name": "train codec", "seconds": 12.5}],
    "codec": {
      "log_mel_distance": {"1": 1.0, "2": 0.8, "4": 0.6, "8": 0.5, "12": 0.4},
      "si_snr_db": {"1": np.float32(1.0), "12": float("nan")},
      "codebook_usage": np.array([0.5, 1.0]),
    },
    "mulan": {"text_to_audio": found, "audio_to_text": dict(found)},
    "stages": {name: dict(scores) for name in ("semantic", "coarse", "fine")},
    "mcc": {
      "matched": dict(interval),
      "shuffled": {"mean": 0.0, "low": -0.1, "high": 0.1},
      "difference": dict(interval),
    },
    "samples": [
      {"file": "samples/0.wav", "prompt": "jazz", "seconds": 5.0, "seed": 0}
    ],
    "fingerprints": {"soundstream": "0123456789abcdef"},
  }


def test_round_trip_is_plain_json_and_leaves_no_scratch_file(tmp_path):
  summary = summary_lib.build_summary(**_parts(), extra={"seed": 3})
  path = tmp_path / "run" / summary_lib.FILE_NAME
  summary_lib.write_summary(path, summary)
  summary_lib.write_summary(path, summary)
  again = summary_lib.read_summary(tmp_path / "run")
  assert again == summary
  assert [file.name for file in path.parent.iterdir()] == ["summary.json"]
  assert json.loads(path.read_text())["codec"]["si_snr_db"]["12"] is None
  assert again["codec"]["codebook_usage"] == [0.5, 1.0]
  assert again["seed"] == 3
  assert again["peak_memory_bytes"] > 10_000_000
  assert {"jax", "numpy", "python"} <= set(again["versions"])
  assert len(again["criteria"]) == 7
  assert all(criterion["passed"] for criterion in again["criteria"])


def test_a_failed_write_keeps_the_old_file(tmp_path):
  path = tmp_path / summary_lib.FILE_NAME
  summary_lib.write_summary(path, {"seed": 1})
  with pytest.raises(TypeError):
    summary_lib.write_summary(path, {"seed": object()})
  assert summary_lib.read_summary(path) == {"seed": 1}
  assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
  "path, value, failing",
  [
    (("codec", "log_mel_distance", "4"), 0.8, "Codec"),
    (("codec", "log_mel_distance", "12"), float("nan"), "Codec"),
    (("stages", "coarse", "heldout_cross_entropy"), 2.6, "Coarse"),
    (("stages", "fine", "heldout_cross_entropy"), float("nan"), "Fine"),
    (("mulan", "text_to_audio", "recall_at_10"), 0.49, "Text-to-audio"),
    (("mulan", "audio_to_text", "chance_at_10"), 0.13, "Audio-to-text"),
    (("mcc", "difference", "low"), -0.01, "Generated"),
  ],
)
def test_each_criterion_fails_alone(path, value, failing):
  parts = copy.deepcopy(_parts())
  node = parts
  for name in path[:-1]:
    node = node[name]
  node[path[-1]] = value
  failed = [
    criterion.name
    for criterion in summary_lib.check_criteria(parts)
    if not criterion.passed
  ]
  assert len(failed) == 1
  assert failed[0].startswith(failing)


def test_nothing_measured_passes_nothing():
  criteria = summary_lib.check_criteria({})
  assert len(criteria) == 7
  assert not any(criterion.passed for criterion in criteria)


def test_unreachable_retrieval_is_said():
  parts = _parts()
  parts["mulan"]["text_to_audio"]["chance_at_10"] = 0.3
  texts = [criterion.text for criterion in summary_lib.check_criteria(parts)]
  assert sum("out of reach" in text for text in texts) == 1


def test_missing_and_damaged_files_are_named(tmp_path):
  with pytest.raises(errors.UserError, match="no summary at"):
    summary_lib.read_summary(tmp_path)
  (tmp_path / "summary.json").write_text("{")
  with pytest.raises(errors.UserError, match="damaged summary"):
    summary_lib.read_summary(tmp_path)
