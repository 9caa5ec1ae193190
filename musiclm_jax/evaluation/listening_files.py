# SPDX-License-Identifier: Apache-2.0
"""The files of a listening test: what raters may see, and the key to it.

`public/` holds the page, the clips under names drawn at random, and
`test.json`; it says nothing of systems, and the server reads nothing else.
`key.json` says which system made which clip. Both carry one fingerprint.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from musiclm_jax.core import atomic_files, errors

FORMAT_VERSION = 1
PUBLIC_DIR = "public"
CLIPS_DIR = "clips"
TEST_NAME = "test.json"
KEY_NAME = "key.json"
ANSWERS_NAME = "answers.jsonl"
# From the first clip (A) to the second (B), as raters see it.
SCALE = (
  "A, strong preference",
  "A, weak preference",
  "No preference",
  "B, weak preference",
  "B, strong preference",
)


@dataclasses.dataclass(frozen=True)
class Item:
  """A question as a rater sees it.

  Attributes:
    item: its name, of this rater alone.
    caption: the text.
    first: name of the clip heard as A.
    second: name of the clip heard as B.
  """

  item: str
  caption: str
  first: str
  second: str


@dataclasses.dataclass(frozen=True)
class Test:
  """What may be known before a test is over.

  Attributes:
    title: of the page.
    question: asked of each pair of clips.
    seconds: length of every clip.
    sample_rate_hz: of every clip.
    min_played_share: of each clip that must be heard before an answer.
    clips: SHA-256 of each clip file by its name.
    sheets: the items of each rater, in the order they are asked.
  """

  title: str
  question: str
  seconds: float
  sample_rate_hz: int
  min_played_share: float
  clips: dict[str, str]
  sheets: tuple[tuple[Item, ...], ...]

  @property
  def fingerprint(self) -> str:
    """Hash over all of it, in hexadecimal digits."""
    return _fingerprint(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class KeyItem:
  """What is behind an item.

  Attributes:
    prompt: the text, by which items belong together.
    first: system heard as A; '' for the noise of a check.
    second: system heard as B.
    is_check: whether it is an attention check: music against noise.
  """

  prompt: str
  first: str
  second: str
  is_check: bool


@dataclasses.dataclass(frozen=True)
class Key:
  """What raters must not see.

  Attributes:
    fingerprint: of the test.
    systems: names, in the order given.
    items: by the name of the item.
    about: how the test was made, by name of the setting.
  """

  fingerprint: str
  systems: tuple[str, ...]
  items: dict[str, KeyItem]
  about: dict[str, Any]


def _fingerprint(content: dict[str, Any]) -> str:
  text = json.dumps(content, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def clip_path(test_dir: str | os.PathLike, name: str) -> pathlib.Path:
  """Where the clip of a name is."""
  return pathlib.Path(test_dir) / PUBLIC_DIR / CLIPS_DIR / name


def write_json(
  path: str | os.PathLike, content: Any, mode: int | None = None
) -> None:
  """Writes JSON as `atomic_files.write_text` does."""
  atomic_files.write_text(path, json.dumps(content, indent=1) + "\n", mode)


def write(test_dir: str | os.PathLike, test: Test, key: Key) -> None:
  """Writes `test.json`, and `key.json` for its owner's eyes alone."""
  folder = pathlib.Path(test_dir)
  head = {"format_version": FORMAT_VERSION, "fingerprint": test.fingerprint}
  write_json(folder / KEY_NAME, {**head, **dataclasses.asdict(key)}, 0o600)
  content = {**head, **dataclasses.asdict(test)}
  write_json(folder / PUBLIC_DIR / TEST_NAME, content)


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise errors.UserError(
      f"no {path.name} at {path.parent}: expected a folder of `musiclm listen "
      "build`"
    ) from error
  except (OSError, ValueError) as error:
    raise errors.UserError(f"{path} cannot be read: {error}") from error
  version = content.get("format_version") if isinstance(content, dict) else None
  if version != FORMAT_VERSION:
    raise errors.UserError(
      f"{path} has format_version {version}: expected {FORMAT_VERSION}"
    )
  del content["format_version"]
  return content


def read_test(test_dir: str | os.PathLike) -> Test:
  """The public part of a test.

  Raises:
    UserError: if it is missing, damaged or was changed after it was built.
  """
  path = pathlib.Path(test_dir) / PUBLIC_DIR / TEST_NAME
  content = _read(path)
  try:
    fingerprint = content.pop("fingerprint")
    sheets = tuple(
      tuple(Item(**item) for item in sheet) for sheet in content.pop("sheets")
    )
    test = Test(sheets=sheets, **content)
  except (KeyError, TypeError) as error:
    raise errors.UserError(f"{path} is damaged: {error!r}") from error
  if test.fingerprint != fingerprint:
    raise errors.UserError(
      f"{path} was changed after it was built: it has fingerprint "
      f"{test.fingerprint[:12]}, expected {fingerprint[:12]}"
    )
  return test


def check_clips(test_dir: str | os.PathLike, test: Test) -> None:
  """Raises UserError if a clip is missing or is not the one of the test."""
  for name, expected in test.clips.items():
    path = clip_path(test_dir, name)
    try:
      found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
      raise errors.UserError(
        f"{path} cannot be read ({error.strerror}): expected a clip"
      ) from error
    if found != expected:
      raise errors.UserError(
        f"{path} was changed after the test was built: its SHA-256 begins "
        f"{found[:12]}, expected {expected[:12]}"
      )


def read_key(test_dir: str | os.PathLike, test: Test) -> Key:
  """The key to a test.

  Raises:
    UserError: if it is missing or damaged, or belongs to another test.
  """
  path = pathlib.Path(test_dir) / KEY_NAME
  content = _read(path)
  try:
    items = {n: KeyItem(**item) for n, item in content.pop("items").items()}
    systems = tuple(content.pop("systems"))
    key = Key(systems=systems, items=items, **content)
  except (KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(f"{path} is damaged: {error!r}") from error
  if key.fingerprint != test.fingerprint:
    raise errors.UserError(
      f"{path} is the key to test {key.fingerprint[:12]}: expected that to "
      f"{test.fingerprint[:12]}"
    )
  if missing := {i.item for s in test.sheets for i in s} - items.keys():
    raise errors.UserError(f"{path} lacks {len(missing)} items of the test")
  return key
