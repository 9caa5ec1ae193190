# SPDX-License-Identifier: Apache-2.0
"""Scores a bundle on held-out works and its generated samples.

Codec distances by number of codebooks, MuLan retrieval, cross-entropy of the
stages beside n-gram models, and MuLan cycle consistency of samples.
"""

import argparse

EPILOG = """example:
  musiclm evaluate --bundle=runs/quickstart/bundle \\
    --corpus_dir=runs/quickstart/data/score_corpus/tiny/1.0.0 \\
    --cache_dir=runs/quickstart/tokens \\
    --samples_dir=runs/quickstart/samples --output_dir=runs/evaluation"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument("--bundle", required=True, help="folder of the bundle")
  parser.add_argument("--corpus_dir", required=True, help="a prepared corpus")
  parser.add_argument("--cache_dir", required=True, help="its token cache")
  parser.add_argument(
    "--samples_dir",
    action="append",
    default=[],
    help="generated files with sidecars; repeatable",
  )
  parser.add_argument(
    "--output_dir", required=True, help="gets evaluation.json"
  )
  parser.add_argument("--split", default="test", help="held-out split")
  parser.add_argument(
    "--num_codec_clips", type=int, default=24, help="clips for the codec"
  )
  parser.add_argument(
    "--num_stage_crops", type=int, default=96, help="crops for each stage"
  )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import evaluation

  evaluation.evaluate(args)
  return 0
