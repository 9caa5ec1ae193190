# SPDX-License-Identifier: Apache-2.0
"""A listening test as it is served: paths to files, requests to replies.

It reads the public folder of the test alone, so nothing it could send tells
which system made a clip. Paths are looked up in a table, never joined.
"""

import json
import pathlib
from typing import Any, NamedTuple

from musiclm_jax.cli import listen_store
from musiclm_jax.evaluation import listening_answers, listening_files

_HTML = "text/html; charset=utf-8"
_PAGES = {
  "/": ("index.html", _HTML),
  "/listen.js": ("listen.js", "text/javascript; charset=utf-8"),
  "/listen.css": ("listen.css", "text/css; charset=utf-8"),
}


class File(NamedTuple):
  """What is served under a path."""

  path: pathlib.Path
  kind: str
  is_fixed: bool


class Site:
  """A test as it is served.

  Attributes:
    test: the public part.
    store: keeps the answers.
    token: that visitors need, or ''.
    files: by path.
  """

  def __init__(
    self,
    test_dir: pathlib.Path,
    test: listening_files.Test,
    store: listen_store.AnswerStore,
    token: str,
  ):
    self.test, self.store, self.token = test, store, token
    public = test_dir / listening_files.PUBLIC_DIR
    self.files = {
      path: File(public / name, kind, False)
      for path, (name, kind) in _PAGES.items()
    }
    for name in test.clips:
      path = listening_files.clip_path(test_dir, name)
      self.files[f"/clips/{name}"] = File(path, "audio/wav", True)

  def about(self) -> dict[str, Any]:
    """What the page needs before a rater has joined."""
    test = self.test
    return {
      "fingerprint": test.fingerprint,
      "title": test.title,
      "question": test.question,
      "scale": listening_files.SCALE,
      "seconds": test.seconds,
      "min_played_share": test.min_played_share,
      "num_items": len(test.sheets[0]) if test.sheets else 0,
    }

  def join(self, content: dict[str, Any]) -> dict[str, Any]:
    """A rater's questions and what is answered."""
    if content.keys() != {"rater"}:
      raise ValueError("expected the field rater")
    rater, sheet = self.store.join(content["rater"])
    items = [
      {
        "item": one.item,
        "caption": one.caption,
        "first": f"clips/{one.first}",
        "second": f"clips/{one.second}",
      }
      for one in self.test.sheets[sheet]
    ]
    answered = sorted(self.store.answered(rater))
    return {"rater": rater, "items": items, "answered": answered}

  def answer(self, content: dict[str, Any]) -> dict[str, Any]:
    """Keeps an answer."""
    content = dict(content)
    if content.pop("fingerprint", None) != self.test.fingerprint:
      raise listen_store.Refused("this page is of another test: load it again")
    self.store.answer(content)
    rater = listening_answers.rater_name(content["rater"])
    return {"num_answered": len(self.store.answered(rater))}


def _number(text: str) -> float:
  raise ValueError(f"{text}: expected a number")


def parse(body: bytes) -> dict[str, Any]:
  """A JSON object of a request's body; ValueError for anything else."""
  try:
    content = json.loads(body.decode("utf-8"), parse_constant=_number)
  except (ValueError, RecursionError) as error:
    raise ValueError("expected JSON in UTF-8") from error
  if not isinstance(content, dict):
    raise ValueError("expected a JSON object")
  return content
