# SPDX-License-Identifier: Apache-2.0
"""Freezes a trained part as an artefact with a fingerprint.

Fits what belongs to it first: k-means on w2v-BERT features, RVQ on MuLan
embeddings of the training audio.
"""

import argparse

EPILOG = """example:
  musiclm export \\
    --gin_file=experiments/musiclm_mulan_tiny_score_corpus.gin \\
    --gin.CORPUS_DIR=runs/quickstart/data/score_corpus/tiny/1.1.0 \\
    --gin.TEXT_MODEL=runs/quickstart/text/text.model --gin.TRAIN_STEPS=500 \\
    --model_dir=runs/mulan --output_dir=runs/artifacts/mulan"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  from musiclm_jax.cli import arguments

  arguments.add_gin_arguments(parser)
  parser.add_argument(
    "--model_dir", required=True, help="folder of a finished training run"
  )
  parser.add_argument(
    "--output_dir", required=True, help="the artefact's folder; replaced"
  )
  parser.add_argument(
    "--checkpoint",
    default="newest",
    metavar="newest|best|STEP",
    help="which one to freeze (default: %(default)s); 'best' needs a run with "
    "KEEP_BEST_BY",
  )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import experiment

  run, _ = experiment.load(args)
  mark = run.export(args.model_dir, args.output_dir, args.checkpoint)
  print(f"{args.output_dir}: fingerprint {mark}")
  return 0
