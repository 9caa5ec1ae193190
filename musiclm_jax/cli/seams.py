# SPDX-License-Identifier: Apache-2.0
"""Makes long items and listens where their windows join, and along them.

Items are streamed, one after the other, with the process's memory noted at
each piece. Then flux, level and text score at the seams of each stage stand
beside those inside windows; and of whole items the fit to the prompt of a
story that is active, drift, drift of level, and repetition: seams.json,
memory.svg and the WAV files.
"""

import argparse

from musiclm_jax.cli import arguments

EPILOG = """example:
  musiclm seams --bundle=runs/quickstart/bundle --prompts=prompts.txt \\
    --seconds=60 --output_dir=runs/seams
  musiclm seams --bundle=runs/quickstart/bundle --seconds=300 \\
    --prompt="A gentle solo flute." --output_dir=runs/five_minutes
  musiclm seams --bundle=runs/quickstart/bundle --story=story.yaml \
    --num_items=4 --seconds=90 --reference=real_music --output_dir=runs/story"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument("--bundle", required=True, help="folder of the bundle")
  parser.add_argument(
    "--output_dir", required=True, help="gets seams.json, memory.svg and WAVs"
  )
  parser.add_argument(
    "--prompt", action="append", default=[], help="a text; repeatable"
  )
  parser.add_argument("--prompts", help="file with one text per line, or JSONL")
  parser.add_argument(
    "--story",
    action="append",
    default=[],
    help="a file of timed prompts, in place of --prompt; repeatable",
  )
  parser.add_argument(
    "--num_items",
    type=int,
    default=1,
    help="items of each prompt or story, of different seeds (default: 1)",
  )
  parser.add_argument(
    "--reference",
    default="",
    help="folder of real music at least as long, to stand beside the items",
  )
  arguments.add_item_arguments(parser, seconds=60.0)
  parser.add_argument(
    "--acoustic",
    default="stages",
    help="stages, depthwise or soundstorm (default: stages)",
  )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import seam_report

  seam_report.run(args)
  return 0
