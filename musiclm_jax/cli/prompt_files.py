# SPDX-License-Identifier: Apache-2.0
"""Prompt files: one text per line, or JSON lines with a `prompt` each."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.core import errors


def read(path: str | os.PathLike) -> list[str]:
  """Prompts of a text file (one per line) or a `.jsonl` file.

  Raises:
    UserError: if the file is missing, empty or has a bad line.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(f"no prompt file at {path}")
  prompts = []
  for number, line in enumerate(path.read_text().splitlines(), 1):
    if not line.strip():
      continue
    if path.suffix == ".jsonl":
      try:
        line = json.loads(line)["prompt"]
      except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise errors.UserError(
          f'{path}:{number}: expected a JSON object with "prompt"'
        ) from error
    prompts.append(line.strip())
  if not prompts:
    raise errors.UserError(f"{path} holds no prompts")
  return prompts


def write(
  path: str | os.PathLike, records: Sequence[Mapping[str, Any]]
) -> None:
  """Writes records, perhaps with a `prompt` each, as JSON lines, atomically."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  scratch = path.with_name(path.name + ".writing")
  scratch.write_text("".join(json.dumps(record) + "\n" for record in records))
  scratch.replace(path)
