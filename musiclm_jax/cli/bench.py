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
  "train_step": ("bench_train_step", "the compiled step on a fixed batch"),
  "codec": ("bench_codec", "encoding and decoding 10 s; needs no data"),
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

what:
""" + "\n".join(f"  {name:<12} {text}" for name, (_, text) in BENCHES.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  from musiclm_jax.cli import arguments

  parser.add_argument(
    "--what", required=True, choices=sorted(BENCHES), help="what is timed"
  )
  arguments.add_gin_arguments(parser)
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

  timing = benchmarking.Timing(
    args.num_runs, args.run_secs, args.host_index, args.num_hosts
  )
  module = importlib.import_module(f"musiclm_jax.cli.{BENCHES[args.what][0]}")
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
