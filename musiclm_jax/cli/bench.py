# SPDX-License-Identifier: Apache-2.0
"""Times one part of an experiment alone: medians of several runs, as JSON.

The last line on standard output is the JSON object; --json writes it to a
file too. Compare figures of one machine taken in turns, never of two days.
"""

import argparse

# name -> (module with `run(experiment, timing) -> dict`, one line of help). A
# module that needs no data has its own `load(args) -> experiment`.
BENCHES = {
  "loader": ("bench_loader", "the input pipeline of this host, no model"),
  "train": ("bench_train", "the train step of stages; needs no data"),
  "train_step": ("bench_train_step", "the compiled step on a fixed batch"),
  "codec": ("bench_codec", "encoding and decoding 10 s; needs no data"),
  "decode": ("bench_decode", "generation of each stage; needs no gin file"),
  "end_to_end": ("bench_end_to_end", "MuLan codes to audio; needs no gin file"),
  "metrics": ("bench_metrics", "metrics of clips, and what listens to them"),
  "codec_step": ("bench_codec_step", "the codec's train step; needs no data"),
}

EPILOG = """examples:
  taskset -c 1 musiclm bench --what=loader \\
    --gin_file=experiments/musiclm_coarse_tiny_score_corpus.gin \\
    --gin.CACHE_DIR=runs/quickstart/tokens --gin.TRAIN_STEPS=1
  musiclm bench --what=train_step --json=step.json \\
    --gin_file=experiments/musiclm_coarse_tiny_score_corpus.gin \\
    --gin.CACHE_DIR=runs/quickstart/tokens --gin.TRAIN_STEPS=1
  musiclm bench --what=codec \\
    --gin_file=experiments/musiclm_soundstream_paper_audio_folder.gin \\
    --gin_file=sizes/soundstream_24m.gin
  musiclm bench --what=train --size=small --stages=semantic --batch_size=4
  musiclm bench --what=decode --size=small --batch_size=4 --json=decode.json
  musiclm bench --what=end_to_end --size=small --codec=small --seconds=10
  musiclm bench --what=metrics --num_clips=1000 --batch_size=8 \\
    --embedder=mulan:runs/quickstart/bundle

what:
""" + "\n".join(f"  {name:<12} {text}" for name, (_, text) in BENCHES.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  from musiclm_jax.cli import arguments

  parser.add_argument(
    "--what", required=True, choices=sorted(BENCHES), help="what is timed"
  )
  arguments.add_gin_arguments(parser, required=False)
  parser.add_argument(
    "--size",
    default="small",
    help="of decode, train and end_to_end: of gin/sizes/stage_*.gin "
    "(default: small)",
  )
  parser.add_argument(
    "--stages",
    default="",
    help="of decode and train: some of semantic,coarse,fine (default: all)",
  )
  parser.add_argument(
    "--batch_size",
    type=int,
    default=1,
    help="of them: items at once; of metrics: clips heard at once",
  )
  parser.add_argument(
    "--seconds",
    type=float,
    default=10.0,
    help="of end_to_end and metrics: of each item",
  )
  parser.add_argument(
    "--num_clips",
    type=int,
    default=1000,
    help="of metrics: generated clips, and as many real ones",
  )
  parser.add_argument(
    "--embedder",
    action="append",
    default=[],
    help="of metrics: a network that listens, as of evaluate; repeatable",
  )
  parser.add_argument(
    "--acoustic",
    default="stages",
    help="of end_to_end: stages, depthwise or soundstorm (default: stages)",
  )
  parser.add_argument(
    "--codec",
    default="24m",
    help="of end_to_end: of gin/sizes/soundstream_*.gin (default: 24m)",
  )
  parser.add_argument(
    "--bundle", default="", help="of end_to_end: in place of random weights"
  )
  parser.add_argument(
    "--weights",
    default="compute",
    help="of decode and end_to_end: of the stages in memory: compute, float32, "
    "bfloat16 or int8 (default: compute, the dtype they compute in)",
  )
  parser.add_argument(
    "--num_runs", type=int, default=5, help="runs of which the median is taken"
  )
  parser.add_argument(
    "--run_secs", type=float, default=2.0, help="least length of one run"
  )
  parser.add_argument(
    "--num_hosts", type=int, default=1, help="read as one of so many hosts"
  )
  parser.add_argument("--host_index", type=int, default=0, help="which one")
  parser.add_argument("--json", metavar="PATH", help="also write it here")


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  import importlib
  import json
  import pathlib

  from musiclm_jax.cli import benchmarking, experiment
  from musiclm_jax.core import errors

  timing = benchmarking.Timing(
    args.num_runs, args.run_secs, args.host_index, args.num_hosts
  )
  module = importlib.import_module(f"musiclm_jax.cli.{BENCHES[args.what][0]}")
  if not args.gin_file and not getattr(module, "HAS_GIN_FILES", False):
    raise errors.UserError(f"--what={args.what}: expected a --gin_file")
  if hasattr(module, "load"):
    built = module.load(args)
  else:
    built, _ = experiment.load(args)
  result = {
    "what": args.what,
    **module.run(built, timing),
    **benchmarking.machine(),
  }
  if args.json:
    path = pathlib.Path(args.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
  print(json.dumps(result))
  return 0
