# SPDX-License-Identifier: Apache-2.0
"""Compiles a step for a TPU topology without a TPU: fit, cost, predicted MFU.

Exits with 1 if the step does not fit into a chip's memory. Needs libtpu (the
extra `check`), neither a corpus nor a token cache.
"""

import argparse
from typing import Any

EPILOG = """examples:
  musiclm check \\
    --gin_file=experiments/musiclm_semantic_paper_audio_folder.gin \\
    --topology=v5p:4x4x8 --json=check.json
  musiclm check --what=decode --topology=v5e-16 \\
    --gin_file=experiments/musiclm_semantic_paper_audio_folder.gin
  musiclm check --what=generate --topology=v5e-8 --batch_size=64 --seconds=30
How to read the numbers: docs/scaling.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  from musiclm_jax.cli import arguments

  arguments.add_gin_arguments(parser, required=False)
  parser.add_argument(
    "--topology",
    required=True,
    help="CHIP:SHAPE such as v5p:4x4x8, or the name of a slice: v5e-256",
  )
  parser.add_argument(
    "--num_slices", type=int, default=1, help="equal slices joined by DCN"
  )
  parser.add_argument(
    "--what",
    choices=("train", "decode", "tokenize", "generate"),
    default="train",
    help="the train step, generation of a crop, a tokenizer's network, or "
    "generation of whole items by all stages, which needs no --gin_file",
  )
  parser.add_argument(
    "--rows_per_chip",
    type=int,
    default=16,
    help="items a chip decodes or tokenizes at once",
  )
  parser.add_argument(
    "--size",
    default="paper",
    help="of generate: of gin/sizes/stage_*.gin (default: paper)",
  )
  parser.add_argument(
    "--batch_size", type=int, default=64, help="of generate: items at once"
  )
  parser.add_argument(
    "--seconds", type=float, default=30.0, help="of generate: of each item"
  )
  parser.add_argument(
    "--weights",
    default="compute",
    help="of decode and generate: of the stages in memory: compute, float32, "
    "bfloat16 or int8 (default: compute, the dtype they compute in)",
  )
  parser.add_argument(
    "--search",
    action="store_true",
    help="find the largest microbatch and the cheapest remat policy that fit",
  )
  parser.add_argument(
    "--whole",
    action="store_true",
    help="also wait for the machine code, ten times the work: shows that "
    "kernels compile; the numbers are the same",
  )
  parser.add_argument("--json", metavar="PATH", help="write the result here")


def _check_generation(args: argparse.Namespace, topology: Any) -> int:
  from musiclm_jax.cli import check_generate

  request = check_generate.Request(
    args.size,
    topology,
    args.batch_size,
    args.seconds,
    tuple(args.gin_file),
    tuple(args.gin_overrides),
    tuple(path for path in args.gin_search_paths.split(",") if path),
    args.whole,
    args.weights,
  )
  found = check_generate.check(request)
  print(check_generate.table(request, found))
  if args.json:
    check_generate.write_json(request, found, args.json)
  return 0 if all(one.program.fits for one in found) else 1


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.core import errors
  from musiclm_jax.partitioning import topologies

  if not args.gin_file and args.what != "generate":
    raise errors.UserError(f"--what={args.what}: expected a --gin_file")
  topology = topologies.parse(args.topology, args.num_slices)
  if args.rows_per_chip < 1:
    raise errors.UserError(
      f"--rows_per_chip={args.rows_per_chip}: expected at least 1"
    )
  topologies.prepare_environment()
  if args.what == "generate":
    return _check_generation(args, topology)
  from musiclm_jax.cli import check_output, check_search, checking, children

  request = checking.Request(
    tuple(args.gin_file),
    tuple(args.gin_overrides),
    topology,
    tuple(path for path in args.gin_search_paths.split(",") if path),
    args.what,
    args.rows_per_chip,
    args.whole,
    weights=args.weights,
  )
  if args.search:
    found = check_search.search(request)
    print(check_search.table(found))
    result = check_search.best(found)
  else:
    result = children.call(checking.check, request)
  print(check_output.table(result))
  if args.json:
    check_output.write_json(result, args.json)
  if result.program.fits:
    return 0
  others = children.call_all(
    checking.check,
    [(check_search.with_changes(request, c),) for _, c in result.knobs],
  )
  print(check_output.knobs(checking.savings(result, others)))
  return 1
