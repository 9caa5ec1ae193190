# SPDX-License-Identifier: Apache-2.0
"""Annotations in MagnaTagATune's form: a table of tags in, clips out.

`annotations_final.csv` is tab-separated: `clip_id`, a column of 0 and 1 for
each tag, `mp3_path` below the folder of audio. Nothing is shipped or fetched.
"""

import csv
import os
import pathlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from musiclm_jax.core import errors

_ID, _PATH = "clip_id", "mp3_path"


class Annotations(NamedTuple):
  """Clips and their tags.

  Attributes:
    clip_ids: of each clip.
    paths: of each clip, below the folder of audio.
    tags: names.
    labels: bool `[clips, tags]`.
  """

  clip_ids: list[str]
  paths: list[str]
  tags: list[str]
  labels: np.ndarray

  def only(self, clips: Collection[int]) -> "Annotations":
    """Some of the clips, by their places."""
    kept = sorted(clips)
    return self._replace(
      clip_ids=[self.clip_ids[i] for i in kept],
      paths=[self.paths[i] for i in kept],
      labels=self.labels[kept],
    )

  def most_frequent(self, num_tags: int) -> "Annotations":
    """The tags that most clips have, the most frequent first."""
    order = np.argsort(-self.labels.sum(0), kind="stable")[:num_tags]
    return self._replace(
      tags=[self.tags[i] for i in order], labels=self.labels[:, order]
    )


def read(path: str | os.PathLike) -> Annotations:
  """Reads the table.

  Raises:
    UserError: if it is missing or not in this form; names the line.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(f"no annotations at {path}")
  clip_ids, paths, rows = [], [], []
  try:
    with open(path, newline="", encoding="utf-8") as file:
      lines = csv.reader(file, delimiter="\t")
      header = next(lines, [])
      if len(header) < 3 or header[0] != _ID or header[-1] != _PATH:
        raise errors.UserError(
          f"{path}: its first line has {len(header)} columns: expected "
          f"{_ID!r}, a column for each tag and {_PATH!r}, separated by tabs"
        )
      for row in lines:
        if not row:
          continue
        values = row[1:-1]
        if len(row) != len(header) or not set(values) <= {"0", "1"}:
          raise errors.UserError(
            f"{path} line {lines.line_num}: expected {len(header)} columns, 0 "
            f"or 1 between {_ID!r} and {_PATH!r}"
          )
        clip_ids.append(row[0])
        paths.append(row[-1])
        rows.append([value == "1" for value in values])
  except (UnicodeDecodeError, csv.Error) as error:
    raise errors.UserError(
      f"{path}: expected a tab-separated table in UTF-8 ({error})"
    ) from error
  if not rows:
    raise errors.UserError(f"{path}: expected clips behind its first line")
  return Annotations(clip_ids, paths, header[1:-1], np.array(rows, bool))


def in_folders(annotations: Annotations, folders: Collection[str]) -> list[int]:
  """Places of the clips whose path starts with one of these folders.

  The usual split goes by the 16 folders of the audio: 0 to b for training, c
  for validation, d to f for the test.

  Args:
    annotations: of `read`.
    folders: their names; empty for all.
  """
  return [
    place
    for place, path in enumerate(annotations.paths)
    if not folders or pathlib.PurePosixPath(path).parts[0] in folders
  ]
