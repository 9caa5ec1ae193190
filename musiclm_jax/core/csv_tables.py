# SPDX-License-Identifier: Apache-2.0
"""CSV files of people: text in, rows by column with their place out.

Read strictly: a quote that is never closed is an error, and not a long field.
Nothing in a field is evaluated.
"""

import csv
import io
import os
import pathlib
from collections.abc import Iterator, Sequence

from musiclm_jax.core import errors


def read_text(path: str | os.PathLike, what: str) -> str:
  """The text of a UTF-8 file.

  Args:
    path: the file.
    what: it is, for the message that it is missing.

  Raises:
    UserError: if it is missing, or is no text.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(f"no {what} at {path}")
  try:
    text = path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise errors.UserError(f"{path} is not UTF-8 text: {error}") from error
  if "\0" in text:
    raise errors.UserError(f"{path} is not text: it holds a NUL character")
  return text


def header(path: str | os.PathLike, text: str) -> list[str]:
  """Names of the columns; none in an empty file.

  Raises:
    UserError: if the first line is no CSV.
  """
  for _, row in _lines(path, text):
    return [name.strip() for name in row]
  return []


def rows(
  path: str | os.PathLike, text: str, columns: Sequence[str], like: str
) -> Iterator[tuple[str, dict[str, str]]]:
  """Rows of a table with a header.

  Args:
    path: of the file, for messages.
    text: its content.
    columns: that it must have; it may have others.
    like: a well-known table with these columns, for messages.

  Yields:
    A row's place ('FILE, line N') and its fields by column.

  Raises:
    UserError: if a column is missing or there twice, a row has another number
      of fields, or the text is not CSV; names the line.
  """
  names: list[str] | None = None
  for place, row in _lines(path, text):
    if names is None:
      names = [name.strip() for name in row]
      _check_header(path, names, columns, like)
      continue
    if len(row) != len(names):
      raise errors.UserError(
        f"{place}: {len(row)} fields, expected the {len(names)} of the header"
      )
    yield place, dict(zip(names, row))


def _lines(
  path: str | os.PathLike, text: str
) -> Iterator[tuple[str, list[str]]]:
  reader = csv.reader(io.StringIO(text, newline=""), strict=True)
  try:
    for row in reader:
      if row:
        yield f"{path}, line {reader.line_num}", row
  except csv.Error as error:
    raise errors.UserError(
      f"{path}, line {reader.line_num}: not a CSV file: {error}"
    ) from error


def _check_header(
  path: str | os.PathLike,
  names: Sequence[str],
  columns: Sequence[str],
  like: str,
) -> None:
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise errors.UserError(f"{path}: the header has {twice[0]!r} twice")
  missing = [name for name in columns if name not in names]
  if missing:
    found = ", ".join(name[:40] for name in names[:12])
    wanted = ", ".join(map(repr, missing))
    raise errors.UserError(
      f"{path}: expected a header with the column {wanted}, as {like} has it, "
      f"found: {found}"
    )
