# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs share; imports nothing heavy."""

import argparse
import re

from musiclm_jax.core import errors

# In gin, paths stand in quotes, and perhaps in a tuple.
_URL = re.compile(r"[\s(\['\"]*[a-zA-Z][a-zA-Z0-9+.-]*://")


def add_gin_arguments(
  parser: argparse.ArgumentParser, required: bool = True
) -> None:
  """The options every verb that reads gin shares, named as in T5X."""
  parser.add_argument(
    "--gin_file",
    action="append",
    default=None if required else [],
    required=required,
    metavar="FILE",
    help="gin file, found from here or among the shipped ones; repeatable",
  )
  parser.add_argument(
    "--gin_search_paths",
    default="",
    metavar="DIRS",
    help="comma-separated folders searched before the shipped gin files",
  )


def add_item_arguments(
  parser: argparse.ArgumentParser, seconds: float, batch_size: int = 0
) -> None:
  """The options of verbs that make music to measure it.

  Args:
    parser: of the verb.
    seconds: length of an item unless another is given.
    batch_size: likewise; 0 for verbs that make one at a time.
  """
  parser.add_argument(
    "--seconds",
    type=float,
    default=seconds,
    help="of each (default: %(default)s)",
  )
  parser.add_argument(
    "--seed", type=int, default=0, help="of the first (default: %(default)s)"
  )
  if batch_size:
    parser.add_argument(
      "--batch_size",
      type=int,
      default=batch_size,
      help="made at once (default: %(default)s)",
    )


def refuse_urls(args: argparse.Namespace) -> None:
  """Raises UserError for an option that names a bucket or another URL.

  Files are read and written as in a local file system; a folder called
  'gs:' must not be made of what was meant as a bucket.
  """
  given = {f"--{name}": value for name, value in vars(args).items()}
  for override in given.pop("--gin_overrides", ()):
    name, _, value = override.partition("=")
    given[f"--gin.{name}"] = value
  del given["--argv"]
  for name, value in given.items():
    for text in value if isinstance(value, (list, tuple)) else [value]:
      if isinstance(text, str) and _URL.match(text):
        raise errors.UserError(
          f"{name}={text}: expected a path in the file system; mount the "
          "bucket and name the folder (musiclm launch --bucket=NAME mounts it "
          "at /gcs/NAME)"
        )
