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
    --gin.CORPUS_DIR=runs/quickstart/data/score_corpus/tiny/1.1.0 \\
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
  parser.add_argument(
    "--export_checkpoint",
    default="newest",
    choices=("newest", "best"),
    help="what --export_dir freezes (default: %(default)s); 'best' needs "
    "KEEP_BEST_BY",
  )
  group = parser.add_argument_group("keeping watch")
  group.add_argument(
    "--rollback",
    action="store_true",
    help="after a step that is not finite go back to the last checkpoint and "
    "leave its batch out, in place of stopping",
  )
  group.add_argument(
    "--profile_steps",
    metavar="FIRST:LAST",
    help="profile the steps after FIRST up to LAST for TensorBoard",
  )
  group.add_argument(
    "--compile_cache",
    metavar="DIR",
    help="keep compiled programs here (default: MODEL_DIR/compile_cache on an "
    "accelerator, none on a CPU; '' for none)",
  )
  group.add_argument(
    "--no_tensorboard",
    action="store_true",
    help="write metrics.jsonl only",
  )
  group.add_argument(
    "--stall_warn_secs",
    type=float,
    default=300,
    help="without a step for so long, write stacks (default: %(default)s; 0 "
    "never)",
  )
  group.add_argument(
    "--stall_exit_secs",
    type=float,
    default=1800,
    help="without a step for so long, exit with 42 (default: %(default)s; 0 "
    "never)",
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
  from musiclm_jax.core import errors
  from musiclm_jax.training import (
    agreement,
    distributed,
    goodput,
    ledger,
    startup,
  )

  logging.set_verbosity(logging.INFO)
  # Orbax notes each of its steps; warnings are enough.
  std_logging.getLogger("absl").addFilter(_is_ours)
  books = ledger.Ledger(
    args.model_dir, distributed.is_main(), ledger.process_start()
  )
  options = _options(args)
  run, resolved = experiment.load(args)
  partitioner = run.make_partitioner()
  startup.announce(
    partitioner.mesh,
    experiment.config_fingerprint(resolved),
    run.artifact_fingerprints(),
  )
  agreement.check_shared(args.model_dir)
  _enable_compile_cache(args)
  if distributed.is_main():
    experiment.record_config(args.model_dir, resolved)
  if args.export_checkpoint == "best" and not run.loop.keep_best_by:
    raise errors.UserError(
      "--export_checkpoint=best without a metric: pass "
      "--gin.KEEP_BEST_BY='heldout/loss' or another one"
    )
  run.train(args.model_dir, partitioner, options, books)
  if args.export_dir:
    mark = run.export(args.model_dir, args.export_dir, args.export_checkpoint)
    if distributed.is_main():
      print(f"{args.export_dir}: fingerprint {mark}")
  books.close("done", run.loop.total_steps)
  if distributed.is_main():
    print(goodput.describe(goodput.summary(args.model_dir)))
  return 0


def _options(args: argparse.Namespace):
  from musiclm_jax.training import loop, profiling

  window = args.profile_steps
  return loop.RunOptions(
    rollback=args.rollback,
    profile_steps=profiling.parse_window(window) if window else None,
    stall_warn_secs=args.stall_warn_secs,
    stall_exit_secs=args.stall_exit_secs,
    tensorboard=not args.no_tensorboard,
  )


def _enable_compile_cache(args: argparse.Namespace) -> None:
  import jax

  from musiclm_jax.training import compile_cache

  directory = args.compile_cache
  if directory is None and jax.default_backend() != "cpu":
    directory = f"{args.model_dir}/compile_cache"
  if directory:
    compile_cache.enable(directory)


def _is_ours(record) -> bool:
  return record.levelno >= 30 or "musiclm_jax" in record.pathname
