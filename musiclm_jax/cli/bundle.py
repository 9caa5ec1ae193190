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
    "melody where there is one",
  )
  parser.add_argument("--output_dir", required=True, help="the bundle")


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  import pathlib

  from musiclm_jax.systems import bundle

  root = pathlib.Path(args.artifact_dir)
  parts = {name: root / name for name in bundle.PARTS}
  for name in (bundle.MULAN, *bundle.OPTIONAL_PARTS):
    parts.pop(name, None)
    if (root / name).exists():
      parts[name] = root / name
  made = bundle.write_bundle(args.output_dir, parts)
  for name, mark in made.fingerprints.items():
    print(f"{name}: fingerprint {mark}")
  return 0
