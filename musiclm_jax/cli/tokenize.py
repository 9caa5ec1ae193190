# SPDX-License-Identifier: Apache-2.0
"""Turns a prepared corpus into a token cache, resuming after any kill.

Each clip gives acoustic and semantic codes and MuLan window embeddings; the
cache records the tokenizers' fingerprints.
"""

import argparse

EPILOG = """example:
  musiclm tokenize --corpus_dir=runs/quickstart/data/score_corpus/tiny/1.0.0 \\
    --artifact_dir=runs/quickstart/artifacts --output_dir=runs/tokens"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument("--corpus_dir", required=True, help="a prepared corpus")
  parser.add_argument(
    "--artifact_dir",
    required=True,
    help="folder with the artefacts soundstream, semantic and mulan",
  )
  parser.add_argument("--output_dir", required=True, help="the token cache")
  parser.add_argument(
    "--splits",
    default="",
    help="comma-separated; all splits of the corpus by default",
  )
  parser.add_argument(
    "--batch_size", type=int, default=16, help="clips per call"
  )
  parser.add_argument(
    "--max_bad_fraction",
    type=float,
    default=0.01,
    help="fail if more of the clips cannot be tokenized",
  )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import tokenization

  tokenization.tokenize_corpus(
    args.corpus_dir,
    args.artifact_dir,
    args.output_dir,
    [split for split in args.splits.split(",") if split],
    args.batch_size,
    args.max_bad_fraction,
  )
  return 0
