# SPDX-License-Identifier: Apache-2.0
"""Text prompts to music: one WAV file and one JSON sidecar per prompt.

The sidecar holds prompt, seed, temperatures, fingerprints and versions. With
--output_dir, files that are there already with the same settings are kept,
so that a killed job goes on.
"""

import argparse

EPILOG = """examples:
  musiclm generate --bundle=runs/quickstart/bundle --seconds=10 --seed=0 \\
    --prompt="A gentle solo flute, slow and high." --output=out.wav
  musiclm generate --bundle=runs/quickstart/bundle --seconds=30 \\
    --prompts=prompts.txt --output_dir=samples"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument("--bundle", required=True, help="folder of the bundle")
  parser.add_argument(
    "--prompt", action="append", default=[], help="a text; repeatable"
  )
  parser.add_argument("--prompts", help="file: one text per line, or JSONL")
  parser.add_argument(
    "--max_prompts", type=int, default=0, help="use only the first so many"
  )
  parser.add_argument("--seconds", type=float, default=10.0)
  parser.add_argument(
    "--seed", type=int, default=0, help="of the first item; then counts up"
  )
  parser.add_argument(
    "--temperatures",
    default="1.0,0.95,0.4",
    help="of the semantic, coarse and fine stage (default: %(default)s)",
  )
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--output", help="a WAV file, for one prompt")
  parser.add_argument("--output_dir", help="a folder, for any number")


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import generation

  generation.generate(args)
  return 0
