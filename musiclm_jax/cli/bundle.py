# SPDX-License-Identifier: Apache-2.0
"""Collects tokenizers and stages into a bundle, which `generate` needs.

Checks that every stage was trained on exactly these tokenizers.
"""

import argparse

EPILOG = """example:
  musiclm bundle --artifact_dir=runs/quickstart/artifacts \\
    --output_dir=runs/quickstart/bundle"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument(
    "--artifact_dir",
    required=True,
    help="folder with soundstream, semantic, mulan and stage_* artefacts, and "
    "melody and acoustic_* where there are any",
  )
  parser.add_argument("--output_dir", required=True, help="the bundle")


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  import pathlib

  from musiclm_jax.systems import bundle

  root = pathlib.Path(args.artifact_dir)
  known = bundle.PARTS + bundle.OPTIONAL_PARTS
  there = [name for name in known if (root / name).exists()]
  # What is missing is named when the bundle is written.
  needed = bundle.required_parts(there)
  parts = {n: root / n for n in known if n in there or n in needed}
  made = bundle.write_bundle(args.output_dir, parts)
  for name, mark in made.fingerprints.items():
    print(f"{name}: fingerprint {mark}")
  return 0
