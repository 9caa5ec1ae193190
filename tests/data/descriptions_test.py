# SPDX-License-Identifier: Apache-2.0
"""Files with paraphrases and tags of clips."""

import json

import numpy as np
import pytest

from musiclm_jax.core import errors
from musiclm_jax.data import descriptions


def _write(path, *rows):
  path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
  return path


def test_reads_several_files(tmp_path):
  one = _write(
    tmp_path / "one.jsonl",
    {
      "clip_id": "a",
      "work_id": "w",
      "caption": "Flute",
      "paraphrase": "A flautist",
      "tags": {"instrument": ["flute", "piano"], "tempo": "slow"},
    },
  )
  two = _write(
    tmp_path / "two.jsonl",
    {"clip_id": "b", "tags": {"instrument": ["piano"]}},
    {"clip_id": "c", "paraphrase": None},
  )
  rows = descriptions.read([one, two])
  assert list(rows) == ["a", "b", "c"]
  assert rows["a"].paraphrase == "A flautist"
  assert rows["b"].paraphrase == rows["c"].paraphrase == ""
  assert rows["a"].tags["tempo"] == ("slow",)
  names, table = descriptions.labels(list(rows.values()), "instrument")
  assert names == ["flute", "piano"]
  np.testing.assert_array_equal(table, [[1, 1], [0, 1], [0, 0]])


@pytest.mark.parametrize(
  "line",
  [
    "{",
    "[]",
    '{"paraphrase": "x"}',
    '{"clip_id": "a", "tags": ["flute"]}',
    '{"clip_id": "a", "tags": {"instrument": [1]}}',
    '{"clip_id": "a", "tags": {"instrument": 1}}',
    '{"clip_id": "a", "paraphrase": 7}',
  ],
)
def test_malformed_lines_are_named(tmp_path, line):
  path = tmp_path / "bad.jsonl"
  path.write_text('{"clip_id": "ok"}\n' + line + "\n")
  with pytest.raises(errors.UserError, match=r"bad\.jsonl line 2"):
    descriptions.read([path])


def test_missing_files_and_double_clips_are_named(tmp_path):
  with pytest.raises(errors.UserError, match="no descriptions"):
    descriptions.read([tmp_path / "none.jsonl"])
  path = _write(tmp_path / "x.jsonl", {"clip_id": "a"}, {"clip_id": "a"})
  with pytest.raises(errors.UserError, match="line 2: clip 'a'"):
    descriptions.read([path])
