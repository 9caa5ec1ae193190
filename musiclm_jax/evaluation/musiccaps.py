# SPDX-License-Identifier: Apache-2.0
"""MusicCaps (MusicLM sec. 4.2): the public table in, checked rows out.

The table has captions and places in YouTube videos, and no audio; neither is
part of this package. Nothing in it is evaluated: a list of aspects is read as
a syntax tree of texts, and what is more than that is refused.
"""

import ast
import dataclasses
import os
import re
import warnings
from collections.abc import Sequence

from musiclm_jax.core import csv_tables, errors

COLUMNS = (
  "ytid",
  "start_s",
  "end_s",
  "audioset_positive_labels",
  "aspect_list",
  "caption",
  "author_id",
  "is_balanced_subset",
  "is_audioset_eval",
)
# Rows of the public table; of the genre-balanced subset; of AudioSet's
# evaluation split.
NUM_CLIPS, NUM_BALANCED, NUM_EVAL = 5521, 1000, 2858
SUBSETS = ("all", "balanced", "eval", "train")
# Several times the longest of the public table, 756 and 532 characters.
_MAX_ASPECTS_LENGTH = 4000
_YTID = re.compile(r"[-_A-Za-z0-9]{11}")
_LABEL = re.compile(r"/[a-z]/[_0-9a-z]+")
_WHOLE = re.compile(r"[0-9]{1,6}")
_BOOLS = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True)
class Row:
  """One clip of the table.

  Attributes:
    ytid: of the video, 11 characters.
    start_secs: where the clip begins in the video.
    end_secs: where it ends.
    labels: AudioSet's ids, such as '/m/04rlf'.
    aspects: short phrases.
    caption: some sentences.
    author_id: of the musician who wrote them.
    is_balanced_subset: whether in the genre-balanced subset.
    is_audioset_eval: whether in AudioSet's evaluation split.
  """

  ytid: str
  start_secs: int
  end_secs: int
  labels: tuple[str, ...]
  aspects: tuple[str, ...]
  caption: str
  author_id: int
  is_balanced_subset: bool
  is_audioset_eval: bool

  @property
  def source(self) -> dict[str, str]:
    """What a prompt made of it is written for, as in the table's columns."""
    return {
      "ytid": self.ytid,
      "start_s": str(self.start_secs),
      "end_s": str(self.end_secs),
    }


def is_table(path: str | os.PathLike) -> bool:
  """Whether a file is meant as this table: a CSV with the column 'ytid'.

  Raises:
    UserError: if the file is missing, or no text.
  """
  if not str(path).lower().endswith(".csv"):
    return False
  text = csv_tables.read_text(path, "table")
  return "ytid" in csv_tables.header(path, text)


def read(path: str | os.PathLike) -> list[Row]:
  """Reads the public table, or some rows of it.

  Raises:
    UserError: if the file is missing, lacks a column, has a field of another
      type, more rows than the public table, or a clip twice; names the line.
  """
  text = csv_tables.read_text(path, "MusicCaps table")
  found: list[Row] = []
  places: dict[str, str] = {}
  for place, record in csv_tables.rows(
    path, text, COLUMNS, "the public MusicCaps table"
  ):
    if len(found) == NUM_CLIPS:
      raise errors.UserError(
        f"{place}: expected at most {NUM_CLIPS} rows, as the public MusicCaps "
        "table has"
      )
    row = _row(place, record)
    if row.ytid in places:
      raise errors.UserError(
        f"{place}: ytid={row.ytid!r} stands in {places[row.ytid]} already: "
        "expected each clip once"
      )
    places[row.ytid] = place.rpartition(", ")[2]
    found.append(row)
  if not found:
    raise errors.UserError(f"{path} holds no rows behind its header")
  return found


def select(rows: Sequence[Row], subset: str) -> list[Row]:
  """Rows of a subset.

  Args:
    rows: of the table.
    subset: of `SUBSETS`: all, the balanced ones, those of AudioSet's
      evaluation or of its training split.

  Raises:
    UserError: if the subset is not known, or has no rows.
  """
  if subset not in SUBSETS:
    raise errors.UserError(
      f"subset={subset!r}: expected one of {', '.join(SUBSETS)}"
      f"{errors.nearest(subset, SUBSETS)}"
    )
  chosen = [
    row
    for row in rows
    if subset == "all"
    or (subset == "balanced" and row.is_balanced_subset)
    or (subset == "eval" and row.is_audioset_eval)
    or (subset == "train" and not row.is_audioset_eval)
  ]
  if not chosen:
    raise errors.UserError(f"subset={subset!r}: no row of the table is in it")
  return chosen


def num_expected(subset: str) -> int:
  """Clips that the whole public table has in a subset."""
  return {
    "all": NUM_CLIPS,
    "balanced": NUM_BALANCED,
    "eval": NUM_EVAL,
    "train": NUM_CLIPS - NUM_EVAL,
  }[subset]


def _row(place: str, record: dict[str, str]) -> Row:
  ytid = record["ytid"].strip()
  if not _YTID.fullmatch(ytid):
    raise _bad(place, "ytid", ytid, "11 letters, digits, '-' or '_'")
  start_secs, end_secs, author_id = (
    _whole(place, record, name) for name in ("start_s", "end_s", "author_id")
  )
  if end_secs <= start_secs:
    raise _bad(place, "end_s", str(end_secs), f"more than start_s={start_secs}")
  labels = tuple(record["audioset_positive_labels"].split(","))
  if not all(map(_LABEL.fullmatch, labels)):
    wanted = "AudioSet ids with commas between, as '/m/04rlf,/m/0140xf'"
    raise _bad(place, "audioset_positive_labels", ",".join(labels), wanted)
  caption = " ".join(record["caption"].split())
  if not caption:
    raise errors.UserError(f"{place}: the caption is empty")
  return Row(
    ytid,
    start_secs,
    end_secs,
    labels,
    parse_aspects(record["aspect_list"], place),
    caption,
    author_id,
    _truth(place, record, "is_balanced_subset"),
    _truth(place, record, "is_audioset_eval"),
  )


def parse_aspects(text: str, place: str = "aspect_list") -> tuple[str, ...]:
  """The texts of a Python list of texts, such as "['slow', 'sad']".

  Only the syntax is looked at: no name is resolved and nothing is called.

  Args:
    text: of the field.
    place: where it stands, for messages.

  Raises:
    UserError: if it is anything else.
  """
  wanted = "a list of texts, as \"['slow', 'sad']\"; it is never evaluated"
  if len(text) > _MAX_ASPECTS_LENGTH:
    raise _bad(
      place,
      "aspect_list",
      text,
      f"at most {_MAX_ASPECTS_LENGTH} characters, found {len(text)}",
    )
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Of backslashes in other people's text.
      tree = ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    raise _bad(place, "aspect_list", text, wanted) from error
  if not isinstance(tree, ast.List) or not all(
    isinstance(item, ast.Constant) and isinstance(item.value, str)
    for item in tree.elts
  ):
    raise _bad(place, "aspect_list", text, wanted)
  return tuple(item.value for item in tree.elts)


def _whole(place: str, record: dict[str, str], name: str) -> int:
  text = record[name].strip()
  if not _WHOLE.fullmatch(text):
    raise _bad(place, name, text, "a whole number >= 0")
  return int(text)


def _truth(place: str, record: dict[str, str], name: str) -> bool:
  text = record[name].strip()
  if text.lower() not in _BOOLS:
    raise _bad(place, name, text, "True or False")
  return _BOOLS[text.lower()]


def _bad(place: str, name: str, found: str, wanted: str) -> errors.UserError:
  shown = found if len(found) <= 60 else found[:57] + "..."
  return errors.UserError(f"{place}: {name}={shown!r}: expected {wanted}")
