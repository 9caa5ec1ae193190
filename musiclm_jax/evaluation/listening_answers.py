# SPDX-License-Identifier: Apache-2.0
"""The log of a listening test: lines of JSON in, raters and answers out.

A line is a rater who joined and got a sheet, or an answer. Every line carries
the fingerprint of its test. Lines are only ever added.
"""

import dataclasses
import json
import os
import pathlib
import unicodedata
from collections.abc import Mapping
from typing import Any

from musiclm_jax.core import errors
from musiclm_jax.evaluation import listening_files

MAX_PREFERENCE = 2
# A rater may leave the page open; nobody takes longer than a day.
_MAX_SECS = 86400.0
_MAX_RATER_LENGTH = 40
# Browsers end a clip a little before or after its length.
_PLAYED_SLACK_SECS = 0.5


def rater_name(name: Any) -> str:
  """A rater's name or code in the form in which it is kept, which has itself.

  Raises:
    ValueError: unless it is 1 to 40 letters, digits, spaces, '.', '-', '_'.
  """
  text = ""
  if isinstance(name, str) and len(name) <= 200:
    # Some characters become a space and another one: spaces come last.
    text = unicodedata.normalize("NFKC", name).casefold()
    text = " ".join(text.split())
  # Letters of many scripts carry marks.
  is_name = all(
    unicodedata.category(one)[0] in "LMN" or one in " .-_" for one in text
  )
  begins = text[:1] == "_" or unicodedata.category(text[:1] or " ")[0] in "LN"
  if not (is_name and begins and len(text) <= _MAX_RATER_LENGTH):
    raise ValueError(
      "rater: expected a name or code of 1 to 40 letters, digits, spaces, '.', "
      "'-' and '_'"
    )
  return text


def _secs(value: Any, name: str) -> float:
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  # NaN is in no range. Whole numbers may be too large to be a float.
  if not is_number or not 0 <= value <= _MAX_SECS:
    raise ValueError(f"{name}: expected seconds from 0 to {_MAX_SECS:g}")
  return float(value)


@dataclasses.dataclass(frozen=True)
class Answer:
  """One answer.

  Attributes:
    rater: who gave it.
    item: the question.
    preference: -2 (A, strong), -1, 0 (none), 1, 2 (B, strong).
    played_secs: how much of A and of B was heard.
    secs: from when the question was shown.
  """

  rater: str
  item: str
  preference: int
  played_secs: tuple[float, float]
  secs: float

  @classmethod
  def parse(cls, content: Mapping[str, Any]) -> "Answer":
    """Of a JSON object.

    Raises:
      ValueError: names what is missing, unknown or out of range.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    if content.keys() != names:
      raise ValueError(f"expected the fields {', '.join(sorted(names))}")
    preference, item = content["preference"], content["item"]
    if type(preference) is not int or abs(preference) > MAX_PREFERENCE:
      raise ValueError(
        f"preference: expected -{MAX_PREFERENCE} to {MAX_PREFERENCE}"
      )
    if not isinstance(item, str):
      raise ValueError("item: expected the name of a question")
    played = content["played_secs"]
    if not isinstance(played, list) or len(played) != 2:
      raise ValueError("played_secs: expected the seconds of A and of B")
    return cls(
      rater_name(content["rater"]),
      item,
      preference,
      tuple(_secs(value, "played_secs") for value in played),
      _secs(content["secs"], "secs"),
    )

  def check_played(self, test: listening_files.Test) -> None:
    """Raises ValueError unless enough of both clips was heard."""
    wanted = test.min_played_share * test.seconds - _PLAYED_SLACK_SECS
    if min(self.played_secs) < wanted:
      raise ValueError(
        f"played_secs={list(self.played_secs)}: expected both clips to be "
        f"heard for {test.min_played_share * test.seconds:g} s"
      )


@dataclasses.dataclass
class Log:
  """What was written so far.

  Attributes:
    sheets: index of the sheet of each rater.
    answers: by rater and item.
  """

  sheets: dict[str, int] = dataclasses.field(default_factory=dict)
  answers: dict[tuple[str, str], Answer] = dataclasses.field(
    default_factory=dict
  )

  def answered(self, rater: str) -> dict[str, int]:
    """Preferences of one rater by item."""
    return {
      item: answer.preference
      for (name, item), answer in self.answers.items()
      if name == rater
    }

  def add(self, record: Mapping[str, Any], test: listening_files.Test) -> None:
    """Takes one line.

    Raises:
      ValueError: if it does not fit the test or what is there.
    """
    record = dict(record)
    kind, _ = record.pop("kind", None), record.pop("time", None)
    mark = record.pop("fingerprint", None)
    if mark != test.fingerprint:
      raise ValueError(
        f"it is of the test with fingerprint {str(mark)[:12]}: expected "
        f"{test.fingerprint[:12]}"
      )
    if kind == "join":
      self._join(record, test)
    elif kind == "answer":
      self._answer(Answer.parse(record), test)
    else:
      raise ValueError(f"kind={kind!r}: expected 'join' or 'answer'")

  def _join(self, record: Mapping[str, Any], test: listening_files.Test):
    name, sheet = rater_name(record.get("rater")), record.get("sheet")
    if type(sheet) is not int or not 0 <= sheet < len(test.sheets):
      raise ValueError(f"sheet={sheet!r}: expected one of {len(test.sheets)}")
    if name in self.sheets or sheet in self.sheets.values():
      raise ValueError(f"rater or sheet {sheet} is there already")
    self.sheets[name] = sheet

  def _answer(self, answer: Answer, test: listening_files.Test):
    if answer.rater not in self.sheets:
      raise ValueError("the rater has not joined")
    sheet = test.sheets[self.sheets[answer.rater]]
    if all(answer.item != item.item for item in sheet):
      raise ValueError("the item is not on the rater's sheet")
    if (answer.rater, answer.item) in self.answers:
      raise ValueError("the item is answered already")
    self.answers[answer.rater, answer.item] = answer


def whole_lines(data: bytes) -> tuple[list[bytes], bytes]:
  """Lines that end, and what a killed writer left behind them."""
  *lines, rest = data.split(b"\n")
  return lines, rest


def read(path: str | os.PathLike, test: listening_files.Test) -> Log:
  """Reads a log, also one that is being written.

  Args:
    path: of the file.
    test: that it must belong to.

  Raises:
    UserError: names file and line, if one is damaged or of another test.
  """
  path = pathlib.Path(path)
  try:
    lines, _ = whole_lines(path.read_bytes())
  except FileNotFoundError as error:
    raise errors.UserError(f"no answers at {path}") from error
  except OSError as error:
    raise errors.UserError(
      f"{path} cannot be read ({error.strerror}): expected answers"
    ) from error
  log = Log()
  for number, line in enumerate(lines, 1):
    try:
      record = json.loads(line)
      if not isinstance(record, dict):
        raise ValueError("expected a JSON object")
      log.add(record, test)
    except (ValueError, RecursionError) as error:
      raise errors.UserError(f"{path}:{number}: {error}") from error
  return log
