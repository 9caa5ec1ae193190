# SPDX-License-Identifier: Apache-2.0
"""Compiles a step for a TPU topology without a TPU: fit, cost, predicted MFU.

Exits with 1 if the step does not fit into a chip's memory. Needs libtpu (the
extra `check`), neither a corpus nor a token cache.
"""

import argparse
import os
import sys

EPILOG = """example:
  musiclm check \\
    --gin_file=experiments/musiclm_semantic_tiny_score_corpus.gin \\
    --topology=v5p:4x4x8 --gin.BATCH_SIZE=128 --json=check.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  from musiclm_jax.cli import arguments

  arguments.add_gin_arguments(parser)
  parser.add_argument(
    "--topology",
    required=True,
    help="CHIP:SHAPE such as v5p:4x4x8, or the name of a slice: v5e-256",
  )
  parser.add_argument(
    "--num_slices", type=int, default=1, help="equal slices joined by DCN"
  )
  parser.add_argument(
    "--whole",
    action="store_true",
    help="also wait for the machine code, ten times the work: shows that "
    "kernels compile; the numbers are the same",
  )
  parser.add_argument("--json", metavar="PATH", help="write the result here")


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.partitioning import topologies

  topology = topologies.parse(args.topology, args.num_slices)
  topologies.prepare_environment()
  from musiclm_jax.cli import checking

  result = checking.check(args, topology)
  print(checking.table(result))
  if args.json:
    checking.write_json(result, args.json)
  sys.stdout.flush()
  # At once: a thread of the compiler may be busy with machine code.
  os._exit(0 if result.program.fits else 1)
