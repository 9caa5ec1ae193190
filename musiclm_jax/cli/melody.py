# SPDX-License-Identifier: Apache-2.0
"""Measures whether a bundle takes the melodies it is given.

Every prompt is made with a melody and, from the same seed, without: chroma
similarity of melody and result against that of other melodies, and the text
score of both, as JSON and as a page to listen to.
"""

import argparse

from musiclm_jax.cli import arguments

EPILOG = """examples:
  musiclm melody --bundle=runs/melody/bundle --output_dir=runs/melody/report \\
    --corpus_dir=runs/quickstart/data/score_corpus/tiny/1.1.0
  musiclm melody --bundle=runs/melody/bundle --output_dir=runs/melody/report \\
    --melody=hums --prompts=prompts.txt --prompts_per_melody=2"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument("--bundle", required=True, help="folder of the bundle")
  parser.add_argument(
    "--output_dir", required=True, help="gets melody.json and index.html"
  )
  parser.add_argument(
    "--melody",
    action="append",
    default=[],
    metavar="PATH",
    help="an audio file, or a folder of them; repeatable",
  )
  parser.add_argument(
    "--corpus_dir",
    help="a prepared corpus: a held-out clip of each work is a melody, and the "
    "captions of others are prompts",
  )
  parser.add_argument(
    "--split", default="test", help="of the corpus (default: %(default)s)"
  )
  parser.add_argument(
    "--num_melodies",
    type=int,
    default=16,
    help="most of them, spread over what there is (default: %(default)s)",
  )
  parser.add_argument(
    "--prompt", action="append", default=[], help="a text; repeatable"
  )
  parser.add_argument("--prompts", help="file with one text per line, or JSONL")
  parser.add_argument(
    "--prompts_per_melody",
    type=int,
    default=1,
    help="results of each melody, each of another text (default: %(default)s)",
  )
  arguments.add_item_arguments(parser, seconds=10.0, batch_size=8)
  parser.add_argument(
    "--num_shown", type=int, default=6, help="on the page (default: 6)"
  )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import melody_report

  melody_report.run(args)
  return 0
