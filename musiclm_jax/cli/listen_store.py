# SPDX-License-Identifier: Apache-2.0
"""Keeps answers: what was acknowledged is on disk, whatever happens next.

One process writes a log at a time. A line that a killed process left half
written was never acknowledged and is cut off at the next start.
"""

import datetime
import fcntl
import json
import os
import pathlib
import threading
from typing import Any

from musiclm_jax.core import errors
from musiclm_jax.evaluation import listening_answers, listening_files


class Refused(ValueError):
  """Something that cannot be kept, because of what is kept already."""


class AnswerStore:
  """The log of a test, open for writing. Methods may be called by threads."""

  def __init__(self, path: str | os.PathLike, test: listening_files.Test):
    """Opens or makes the log.

    Args:
      path: of the file.
      test: that the answers are of.

    Raises:
      UserError: if it is of another test, damaged, cannot be written, or
        another process has it.
    """
    self._path, self._test = pathlib.Path(path), test
    self._guard = threading.Lock()
    try:
      self._handle = os.open(
        self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600
      )
    except OSError as error:
      raise errors.UserError(
        f"{path} cannot be written ({error.strerror}): expected a file for "
        "answers"
      ) from error
    try:
      self._lock()
      self._cut_off_rest()
      self._sync_folder()
      self._log = listening_answers.read(self._path, test)
    except BaseException:
      os.close(self._handle)
      raise

  def _lock(self) -> None:
    try:
      fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise errors.UserError(
        f"{self._path} is in use: expected no other `musiclm listen serve` of "
        "this test"
      ) from error

  def _cut_off_rest(self) -> None:
    _, rest = listening_answers.whole_lines(self._path.read_bytes())
    if rest:
      size = os.fstat(self._handle).st_size
      os.ftruncate(self._handle, size - len(rest))
      os.fsync(self._handle)

  def _sync_folder(self) -> None:
    """A new file is lost with its folder's entry."""
    folder = os.open(self._path.parent, os.O_RDONLY)
    try:
      os.fsync(folder)
    finally:
      os.close(folder)

  def _append(self, record: dict[str, Any]) -> None:
    """Writes a line to the disk, whole or not at all.

    Raises:
      OSError: if the disk does not take it.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    full = {"fingerprint": self._test.fingerprint, "time": now, **record}
    line = (json.dumps(full) + "\n").encode()
    size = os.fstat(self._handle).st_size
    try:
      written = os.write(self._handle, line)
      if written < len(line):
        raise OSError(f"only {written} of {len(line)} bytes were written")
      os.fsync(self._handle)
      # What could not be read again must not stay.
      self._log.add(full, self._test)
    except (OSError, ValueError):
      os.ftruncate(self._handle, size)
      raise

  def join(self, name: Any) -> tuple[str, int]:
    """Gives a rater a sheet, the same one each time.

    Args:
      name: of the rater.

    Returns:
      The name as it is kept, and the index of the sheet.

    Raises:
      ValueError: for what is no name.
      Refused: if all sheets are given out.
      OSError: if it cannot be kept.
    """
    rater = listening_answers.rater_name(name)
    with self._guard:
      if rater not in self._log.sheets:
        free = set(range(len(self._test.sheets))) - set(
          self._log.sheets.values()
        )
        if not free:
          raise Refused(
            f"all {len(self._test.sheets)} places of this test are taken"
          )
        self._append({"kind": "join", "rater": rater, "sheet": min(free)})
      return rater, self._log.sheets[rater]

  def answered(self, rater: str) -> dict[str, int]:
    """Preferences of a rater by item."""
    with self._guard:
      return self._log.answered(rater)

  def answer(self, content: Any) -> None:
    """Keeps an answer; the same one again is no harm.

    Args:
      content: fields of a `listening_answers.Answer`.

    Raises:
      ValueError: if it is no answer to a question of this rater.
      Refused: if there is another answer already.
      OSError: if it cannot be kept.
    """
    answer = listening_answers.Answer.parse(content)
    answer.check_played(self._test)
    with self._guard:
      kept = self._log.answers.get((answer.rater, answer.item))
      if kept is not None and kept.preference != answer.preference:
        raise Refused("this question has another answer already")
      if kept is not None:
        return
      # Would be refused by the log, after it is written.
      sheet = self._log.sheets.get(answer.rater)
      if sheet is None:
        raise ValueError("rater: expected one who has joined")
      if all(one.item != answer.item for one in self._test.sheets[sheet]):
        raise ValueError("item: expected a question of this rater")
      self._append({"kind": "answer", **content, "rater": answer.rater})

  def close(self) -> None:
    """Lets another process have the log."""
    with self._guard:
      os.close(self._handle)
