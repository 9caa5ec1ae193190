# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs share; imports nothing heavy."""

import argparse


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
