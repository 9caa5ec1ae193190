# SPDX-License-Identifier: Apache-2.0
"""Prints a resolved gin configuration: each value and where it comes from.

Checks it on the way; builds nothing and touches no device.
"""

import argparse

EPILOG = """example:
  musiclm config \\
    --gin_file=experiments/musiclm_semantic_tiny_score_corpus.gin \\
    --gin.CACHE_DIR=runs/quickstart/tokens --gin.TRAIN_STEPS=500"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  from musiclm_jax.cli import arguments, jobs

  arguments.add_gin_arguments(parser)
  parser.add_argument(
    "--verb",
    default="train",
    choices=sorted(jobs.ROOTS),
    help="that reads these gin files (default: %(default)s)",
  )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import gin_config, jobs

  paths = [path for path in args.gin_search_paths.split(",") if path]
  resolved = gin_config.resolve(
    args.gin_file, args.gin_overrides, paths, jobs.ROOTS[args.verb]
  )
  print(gin_config.describe(resolved))
  return 0
