# SPDX-License-Identifier: Apache-2.0
"""Writes the stages of a bundle as StableHLO, for CPU, TPU and GPU.

Each becomes a folder with weights and programs (prefill, decode step, logits),
which run without flax: docs/generating_bulk.md.
"""

import argparse

EPILOG = """example:
  musiclm export_decode --bundle=runs/quickstart/bundle \\
    --output_dir=runs/quickstart/programs"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument("--bundle", required=True, help="folder of the bundle")
  parser.add_argument(
    "--output_dir", required=True, help="gets a folder for each stage"
  )
  parser.add_argument(
    "--platforms",
    default="cpu,tpu,cuda",
    help="comma-separated (default: cpu,tpu,cuda)",
  )
  parser.add_argument(
    "--compute_dtype",
    default="float32",
    help="of weights and activations: float32 (default) or bfloat16",
  )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  import pathlib

  from musiclm_jax.systems import bundle, stage_export

  opened = bundle.open_bundle(args.bundle)
  names = (*bundle.STAGES, bundle.MELODY_STAGE)
  platforms = [one.strip() for one in args.platforms.split(",") if one.strip()]
  for name in names:
    if name not in opened.paths:
      continue
    target = pathlib.Path(args.output_dir) / name
    mark = stage_export.export(
      opened.paths[name], target, platforms, args.compute_dtype
    )
    print(f"{target}: fingerprint {mark}")
  return 0
