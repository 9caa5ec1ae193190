# SPDX-License-Identifier: Apache-2.0
"""Shows what tokens tell: linear probes for pitch, harmony, tempo, timbre.

Reads a token cache of the demo corpus, computes labels from the scores, fits
probes to semantic and to acoustic codes on the train split, and scores them on
held-out works.
"""

import argparse

EPILOG = """example:
  musiclm probe --corpus_dir=runs/quickstart/data/score_corpus/tiny/1.1.0 \\
    --cache_dir=runs/quickstart/tokens --output_dir=runs/probe"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument("--corpus_dir", required=True, help="a score_corpus")
  parser.add_argument("--cache_dir", required=True, help="its token cache")
  parser.add_argument(
    "--output_dir", required=True, help="gets probe.json and probe.md"
  )
  parser.add_argument("--test_split", default="test")
  parser.add_argument(
    "--max_examples", type=int, default=3000, help="most of each task and split"
  )
  parser.add_argument(
    "--num_processes", type=int, default=0, help="0 for all cores"
  )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import probing

  print(probing.run(args))
  return 0
