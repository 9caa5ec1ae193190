# SPDX-License-Identifier: Apache-2.0
"""A captions file (CSV or JSONL) to texts of several kinds, by file."""

import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from musiclm_jax.core import errors

_FILE, _CAPTION = "file", "caption"
# Columns of texts; where the fields of `FileText` are called otherwise.
_TEXTS = {
  _CAPTION: "captions",
  "title": "titles",
  "playlist": "playlists",
}
_TAGS = "aspects"


@dataclasses.dataclass
class FileText:
  """What is known of one audio file.

  Attributes:
    captions: in the order of the rows.
    aspects: short tags.
    titles: what it is called.
    playlists: names of lists that it is in.
    work: names what it is a recording of, or ''.
  """

  captions: list[str] = dataclasses.field(default_factory=list)
  aspects: list[str] = dataclasses.field(default_factory=list)
  titles: list[str] = dataclasses.field(default_factory=list)
  playlists: list[str] = dataclasses.field(default_factory=list)
  work: str = ""


def read(path: str | os.PathLike) -> dict[str, FileText]:
  """Reads a captions file.

  Columns: `file` (relative to the audio folder); at least one of `caption`,
  `title`, `playlist` and `aspects` (separated by semicolons, or a list in
  JSONL); optional `work`. Other columns are not read. A file may have several
  rows; in JSONL every text may be a list.

  Args:
    path: ends in .csv or .jsonl.

  Returns:
    By file as it is written there, with forward slashes.

  Raises:
    UserError: if it is missing, has another ending, lacks a column or holds a
      row that cannot be read; the message names the line.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(f"no captions file at {path}")
  if path.suffix.lower() not in (".csv", ".jsonl"):
    raise errors.UserError(
      f"captions file {path} ends in {path.suffix!r}: expected .csv or .jsonl"
    )
  try:
    text = path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f"captions file {path} is not UTF-8 text: {error}"
    ) from error
  rows = _csv_rows if path.suffix.lower() == ".csv" else _jsonl_rows
  found: dict[str, FileText] = {}
  for line, row in rows(path, text):
    missing = _FILE if row.get(_FILE) is None else None
    if all(row.get(column) is None for column in (*_TEXTS, _TAGS)):
      missing = missing or _CAPTION
    if missing:
      raise errors.UserError(
        f"{path}, line {line}: column {missing!r} is missing; there are "
        f"{sorted(map(str, row))}"
      )
    entry = found.setdefault(_normal(str(row[_FILE])), FileText())
    for column, field in _TEXTS.items():
      getattr(entry, field).extend(_strings(row.get(column) or ()))
    aspects = row.get(_TAGS) or ()
    if isinstance(aspects, str):
      aspects = aspects.split(";")
    entry.aspects += _strings(aspects)
    entry.work = str(row.get("work") or entry.work)
  return found


def _normal(file: str) -> str:
  return file.strip().replace("\\", "/").removeprefix("./")


def _strings(value: Any) -> list[str]:
  items = [value] if isinstance(value, str) else list(value)
  return [str(item).strip() for item in items if str(item).strip()]


def _csv_rows(
  path: pathlib.Path, text: str
) -> Iterable[tuple[int, Mapping[str, Any]]]:
  reader = csv.DictReader(text.splitlines(keepends=True))
  try:
    for row in reader:
      yield reader.line_num, row
  except csv.Error as error:
    raise errors.UserError(
      f"{path}, line {reader.line_num}: {error}"
    ) from error


def _jsonl_rows(
  path: pathlib.Path, text: str
) -> Iterable[tuple[int, Mapping[str, Any]]]:
  for number, line in enumerate(text.splitlines(), start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise errors.UserError(f"{path}, line {number}: {error}") from error
    if not isinstance(row, dict):
      raise errors.UserError(
        f"{path}, line {number}: expected an object with 'file' and 'caption'"
      )
    yield number, row


def match(
  texts: Mapping[str, FileText], files: Iterable[str]
) -> tuple[dict[str, FileText], list[str]]:
  """Finds each file's text, by full name or by name without ending.

  Args:
    texts: from `read`.
    files: audio files, relative to the folder.

  Returns:
    Text by file, for the files that have one; names no file fits.
  """
  matched: dict[str, FileText] = {}
  used = set()
  for file in files:
    stem = pathlib.PurePosixPath(file).with_suffix("").as_posix()
    name = file if file in texts else stem
    if name in texts:
      matched[file] = texts[name]
      used.add(name)
  return matched, sorted(set(texts) - used)
