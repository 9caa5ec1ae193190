# SPDX-License-Identifier: Apache-2.0
"""Prompt files: a text per line, JSON lines, or the public MusicCaps table.

Sets that are shipped (data/prompts) go by their bare names.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from musiclm_jax.core import atomic_files, csv_tables, errors

_CAPTION = "caption"
# Columns of MusicCaps that say which clip a caption was written for.
_SOURCE = ("ytid", "start_s", "end_s")


@dataclasses.dataclass(frozen=True)
class Asked:
  """One row of a prompt file.

  Attributes:
    prompt: the text.
    seconds: length of its item; None where the file does not say.
    seed: of its item; None where the file does not say.
    source: what the text was written for, by column: 'ytid' and others of
      MusicCaps, 'clip_id' of a corpus, 'kind' of a set of several kinds.
    audio: a file that takes the place of the text; None for the text itself.
  """

  prompt: str
  seconds: float | None = None
  seed: int | None = None
  source: Mapping[str, str] = dataclasses.field(default_factory=dict)
  audio: str | None = None


def _shipped() -> dict[str, pathlib.Path]:
  """Paths of the shipped sets, by name."""
  root = pathlib.Path(__file__).resolve().parents[2]
  # A checkout, or the installed package.
  for folder in ("data", "musiclm_jax_builders"):
    found = sorted((root / folder / "prompts").glob("*.jsonl"))
    if found:
      return {path.stem: path for path in found}
  return {}


def find(name: str | os.PathLike) -> pathlib.Path:
  """A prompt file: a path, or the name of a shipped set.

  Raises:
    UserError: if there is neither.
  """
  path, sets = pathlib.Path(name), _shipped()
  if path.is_file():
    return path
  if str(name) in sets:
    return sets[str(name)]
  known = f" (sets by name: {', '.join(sets)})" if sets else ""
  raise errors.UserError(
    f"no prompt file at {name}{known}{errors.nearest(str(name), sets)}"
  )


def read_rows(path: str | os.PathLike) -> list[Asked]:
  """Rows of a text file, a `.jsonl` or a `.csv` file.

  A JSON object has `prompt`, and perhaps `seconds`, `seed`, `audio_prompt` (a
  file in place of the text), `kind`, and `source`: an object of texts, or the
  id of a clip. A CSV file has a header with `caption`, as the public MusicCaps
  table; of its other columns ytid, start_s and end_s are kept.

  Raises:
    UserError: if the file is missing, empty or has a bad line; names it.
  """
  path = find(path)
  text = csv_tables.read_text(path, "prompt file")
  parse = {".csv": _csv_rows, ".jsonl": _json_rows}.get(
    path.suffix.lower(), _text_rows
  )
  rows = list(parse(path, text))
  if not rows:
    raise errors.UserError(f"{path} holds no prompts")
  return rows


def read(path: str | os.PathLike) -> list[str]:
  """The texts of `read_rows`."""
  return [row.prompt for row in read_rows(path)]


def _text_rows(path: pathlib.Path, text: str) -> Iterator[Asked]:
  del path
  for line in text.split("\n"):
    if line.strip():
      yield Asked(line.strip())


def _number(
  value: Any, place: str, name: str, kinds: tuple[type, ...], wanted: str
) -> Any:
  """A number of a JSON object, or None; raises UserError if it is no such."""
  if value is None:
    return None
  is_number = isinstance(value, kinds) and not isinstance(value, bool)
  if not is_number or not 0 <= value <= sys.float_info.max:
    raise errors.UserError(f"{place}: {name}={value!r}: expected {wanted}")
  return value


def _json_rows(path: pathlib.Path, text: str) -> Iterator[Asked]:
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    place = f"{path}:{number}"
    try:
      record = json.loads(line)
      prompt = record["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise errors.UserError(
        f'{place}: expected a JSON object with "prompt"'
      ) from error
    if not isinstance(prompt, str) or not prompt.strip():
      raise errors.UserError(
        f"{place}: prompt={prompt!r}: expected a non-empty text"
      )
    seconds = _number(
      record.get("seconds"), place, "seconds", (int, float), "a positive number"
    )
    if seconds == 0:
      raise errors.UserError(f"{place}: seconds=0: expected a positive number")
    seed = _number(record.get("seed"), place, "seed", (int,), "a whole number")
    audio = _text(record, place, "audio_prompt")
    source = source_of(record, place)
    yield Asked(prompt.strip(), seconds, seed, source, audio)


def _text(record: Mapping[str, Any], place: str, name: str) -> str | None:
  value = record.get(name)
  if value is not None and not (isinstance(value, str) and value.strip()):
    raise errors.UserError(f"{place}: {name}={value!r}: expected a text")
  return value


def source_of(record: Mapping[str, Any], place: str) -> dict[str, str]:
  """What a JSON object says of the origin of its text.

  Args:
    record: with `source`, an object of texts or the id of a clip, and `kind`,
      or without.
    place: for the message.

  Raises:
    UserError: if one of them is no such thing.
  """
  source = record.get("source")
  if source is None:
    source = {}
  elif isinstance(source, str):
    source = {"clip_id": source}
  if not isinstance(source, dict) or not all(
    isinstance(value, str) for value in source.values()
  ):
    raise errors.UserError(
      f"{place}: source={source!r}: expected the id of a clip, or an object "
      "of texts"
    )
  kind = _text(record, place, "kind")
  return source if kind is None else {**source, "kind": kind}


def _csv_rows(path: pathlib.Path, text: str) -> Iterator[Asked]:
  for place, record in csv_tables.rows(
    path, text, (_CAPTION,), "the MusicCaps table"
  ):
    caption = " ".join(record[_CAPTION].split())
    if not caption:
      raise errors.UserError(f"{place}: the caption is empty")
    yield Asked(
      caption, source={k: record[k] for k in _SOURCE if record.get(k)}
    )


def write(
  path: str | os.PathLike, records: Sequence[Mapping[str, Any]]
) -> None:
  """Writes records, perhaps with a `prompt` each, as JSON lines, atomically."""
  lines = [json.dumps(record) + "\n" for record in records]
  atomic_files.write_text(path, "".join(lines))
