# SPDX-License-Identifier: Apache-2.0
"""Writes summary.json and the page that shows a run: report/index.html.

Reads the folders a quickstart makes below its working directory: samples,
training runs, evaluation, bundle.
"""

import argparse

EPILOG = """example:
  musiclm report --workdir=runs/quickstart"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument(
    "--workdir", required=True, help="folder of a finished quickstart"
  )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import reporting

  page = reporting.write(args.workdir)
  print(page)
  return 0
