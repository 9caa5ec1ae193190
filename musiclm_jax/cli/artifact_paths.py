# SPDX-License-Identifier: Apache-2.0
"""Where a frozen part lies: an artefact, a bundle or a folder of artefacts."""

import json
import os
import pathlib

from musiclm_jax.core import artifacts, errors


def find(
  directory: str | os.PathLike, part: str, option: str
) -> tuple[pathlib.Path, str | None]:
  """The folder of a part and the fingerprint its bundle gives it.

  Args:
    directory: an artefact, a bundle or a folder of artefacts.
    part: name in a bundle, such as 'mulan'.
    option: the option that named the directory, for messages.

  Returns:
    The artefact's folder, and the fingerprint to expect; None where no bundle
    says.

  Raises:
    UserError: if there is no such part, or the bundle is damaged.
  """
  folder = pathlib.Path(directory)
  header = folder / "bundle.json"
  if (folder / "artifact.json").is_file():
    return folder, None
  if not (folder / part / "artifact.json").is_file():
    raise errors.UserError(
      f"--{option}={directory}: expected a {part} artefact, a bundle or a "
      "folder of artefacts"
    )
  if not header.is_file():
    return folder / part, None
  try:
    expected = json.loads(header.read_text())["parts"][part]["fingerprint"]
  except (ValueError, KeyError, TypeError) as error:
    raise errors.UserError(f"damaged bundle at {header}: {error!r}") from error
  return folder / part, expected


def check(
  directory: str | os.PathLike, part: str, found: str, expected: str | None
) -> None:
  """Raises UserError if a part is not the one that its bundle names."""
  if expected is not None:
    artifacts.check_fingerprint(f"{part} in {directory}", found, expected)
