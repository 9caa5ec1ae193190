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
  from musiclm_jax.cli import arguments

  arguments.add_gin_arguments(parser)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import experiment, gin_config

  print(gin_config.describe(experiment.resolve(args)))
  return 0
