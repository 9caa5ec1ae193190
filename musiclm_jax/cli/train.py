# SPDX-License-Identifier: Apache-2.0
"""Trains one part from a gin experiment, from its newest checkpoint on.

Metrics go to MODEL_DIR/metrics.jsonl and TensorBoard, checkpoints to
MODEL_DIR/checkpoints. SIGTERM saves and exits with 143; start it again to
go on.
"""

import argparse

EPILOG = """example:
  musiclm train \\
    --gin_file=experiments/musiclm_soundstream_tiny_score_corpus.gin \\
    --gin.CORPUS_DIR=runs/quickstart/data/score_corpus/tiny/1.0.0 \\
    --gin.TRAIN_STEPS=100 --model_dir=runs/soundstream"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  from musiclm_jax.cli import arguments, cluster_arguments

  arguments.add_gin_arguments(parser)
  parser.add_argument(
    "--model_dir", required=True, help="folder of the run; made when missing"
  )
  parser.add_argument(
    "--export_dir", help="freeze the result here when training is done"
  )
  cluster_arguments.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import cluster_arguments

  return cluster_arguments.run(args, lambda: _train(args))


def _train(args: argparse.Namespace) -> int:
  import logging as std_logging

  from absl import logging

  from musiclm_jax.cli import experiment
  from musiclm_jax.training import distributed

  logging.set_verbosity(logging.INFO)
  # Orbax notes each of its steps; warnings are enough.
  std_logging.getLogger("absl").addFilter(_is_ours)
  run, resolved = experiment.load(args)
  if distributed.is_main():
    experiment.record_config(args.model_dir, resolved)
  run.train(args.model_dir)
  if args.export_dir:
    mark = run.export(args.model_dir, args.export_dir)
    print(f"{args.export_dir}: fingerprint {mark}")
  return 0


def _is_ours(record) -> bool:
  return record.levelno >= 30 or "musiclm_jax" in record.pathname
