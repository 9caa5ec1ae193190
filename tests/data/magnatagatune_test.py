# SPDX-License-Identifier: Apache-2.0
"""Annotations in MagnaTagATune's form."""

import numpy as np
import pytest

from musiclm_jax.core import errors
from musiclm_jax.data import magnatagatune

TABLE = (
  '"clip_id"\t"no voice"\t"guitar"\t"slow"\t"mp3_path"\n'
  '"2"\t"0"\t"1"\t"0"\t"f/band-01-song-0-29.mp3"\n'
  '"6"\t"1"\t"1"\t"0"\t"c/other-02-air-30-59.mp3"\n'
  '"9"\t"0"\t"1"\t"1"\t"d/other-02-air-59-88.mp3"\n'
)


def test_reads_clips_tags_and_folders(tmp_path):
  path = tmp_path / "annotations_final.csv"
  path.write_text(TABLE)
  found = magnatagatune.read(path)
  assert found.clip_ids == ["2", "6", "9"]
  assert found.tags == ["no voice", "guitar", "slow"]
  np.testing.assert_array_equal(found.labels, [[0, 1, 0], [1, 1, 0], [0, 1, 1]])
  places = magnatagatune.in_folders(found, ["d", "e", "f"])
  assert places == [0, 2]
  assert magnatagatune.in_folders(found, []) == [0, 1, 2]
  test = found.only(places)
  assert test.paths == ["f/band-01-song-0-29.mp3", "d/other-02-air-59-88.mp3"]
  most = test.most_frequent(2)
  assert most.tags == ["guitar", "slow"]
  np.testing.assert_array_equal(most.labels, [[1, 0], [1, 1]])


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("clip_id,guitar,mp3_path\n", "1 columns.*tabs"),
    (TABLE.splitlines()[0], "expected clips"),
    (TABLE + '"10"\t"2"\t"0"\t"0"\t"x.mp3"\n', "line 5"),
    (TABLE + '"10"\t"1"\t"0"\n', "line 5"),
  ],
)
def test_other_tables_are_refused(tmp_path, text, message):
  path = tmp_path / "table.csv"
  path.write_text(text)
  with pytest.raises(errors.UserError, match=message):
    magnatagatune.read(path)
  with pytest.raises(errors.UserError, match="no annotations"):
    magnatagatune.read(tmp_path / "none.csv")
