# SPDX-License-Identifier: Apache-2.0
"""Files that describe clips in other words and in tags: JSONL in, rows out.

A line has `clip_id` and, as far as there are, `paraphrase`, `caption` and
`tags`: a name or several by kind, such as `{"instrument": ["flute"], "tempo":
"slow"}`. `musiclm prepare paraphrases` writes them for the demo corpus.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from musiclm_jax.core import errors


@dataclasses.dataclass(frozen=True)
class Description:
  """What a line says of a clip.

  Attributes:
    clip_id: in the corpus.
    paraphrase: the caption in other words; or ''.
    tags: names by kind.
  """

  clip_id: str
  paraphrase: str
  tags: Mapping[str, tuple[str, ...]]


def _row(line: str) -> Description:
  """Raises ValueError, KeyError or TypeError for what is no description."""
  record = json.loads(line)
  paraphrase, tags = record.get("paraphrase") or "", record.get("tags") or {}
  names = {
    kind: (value,) if isinstance(value, str) else tuple(value)
    for kind, value in tags.items()
  }
  if not isinstance(paraphrase, str) or not all(
    isinstance(name, str) for found in names.values() for name in found
  ):
    raise TypeError("texts expected")
  return Description(str(record["clip_id"]), paraphrase, names)


def read(paths: Iterable[str | os.PathLike]) -> dict[str, Description]:
  """Reads files.

  Args:
    paths: JSONL files, of any splits.

  Returns:
    Descriptions by clip id.

  Raises:
    UserError: if a file is missing, a line is malformed, or a clip occurs
      twice; names the line.
  """
  found: dict[str, Description] = {}
  for path in map(pathlib.Path, paths):
    if not path.is_file():
      raise errors.UserError(f"no descriptions at {path}")
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      try:
        row = _row(line)
      except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.UserError(
          f"{path} line {number}: expected JSON with clip_id, and paraphrase "
          f"or tags ({type(error).__name__}: {error})"
        ) from error
      if row.clip_id in found:
        raise errors.UserError(
          f"{path} line {number}: clip {row.clip_id!r} is described twice"
        )
      found[row.clip_id] = row
  return found


def labels(
  rows: Sequence[Description], kind: str
) -> tuple[list[str], np.ndarray]:
  """Tags of one kind as a table.

  Args:
    rows: of the clips.
    kind: of tag.

  Returns:
    Names in alphabetical order, and bool `[clips, tags]`.
  """
  names = sorted({name for row in rows for name in row.tags.get(kind, ())})
  table = [[name in row.tags.get(kind, ()) for name in names] for row in rows]
  return names, np.array(table, bool).reshape(len(rows), len(names))
