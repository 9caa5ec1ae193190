# SPDX-License-Identifier: Apache-2.0
"""What a corpus is made of, and what is generated when nothing is asked for.

Instruments, genres, tempi, keys and whatever else the corpus's metadata tell,
beside the same of pieces that are generated for neutral prompts ("a piece of
music"): shares, their distance with an interval, as JSON and as a page.
"""

import argparse

from musiclm_jax.cli import arguments

EPILOG = """examples:
  musiclm bias --corpus_dir=runs/quickstart/data/score_corpus/tiny/1.1.0 \\
    --bundle=runs/quickstart/bundle --output_dir=runs/bias
  musiclm bias --corpus_dir=corpus/1.0.0 --descriptions=tags.jsonl \\
    --output_dir=runs/bias"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument("--corpus_dir", required=True, help="a prepared corpus")
  parser.add_argument(
    "--output_dir", required=True, help="gets bias.json, index.html and sounds"
  )
  parser.add_argument(
    "--bundle",
    help="folder of the bundle that generates; without it the card is of the "
    "corpus alone",
  )
  parser.add_argument(
    "--split", default="train", help="of the corpus (default: %(default)s)"
  )
  parser.add_argument(
    "--num_clips",
    type=int,
    default=200,
    help="most clips of it, spread over the split (default: %(default)s)",
  )
  parser.add_argument(
    "--descriptions",
    action="append",
    default=[],
    metavar="JSONL",
    help="tags of clips by kind, one {clip_id, tags} per line; repeatable; "
    "those of a score_corpus are known",
  )
  parser.add_argument(
    "--tags",
    metavar="JSON",
    help='names that MuLan is asked for, by kind: {"instrument": ["piano", '
    "...], ...}; by default those of the descriptions, or a small list",
  )
  parser.add_argument(
    "--classifier",
    metavar="SPEC",
    help="a judge of its own, such as musicnn:DIR (docs/embedders.md): its "
    "best class of each clip and piece",
  )
  parser.add_argument(
    "--prompts",
    help="file with one neutral text per line (default: eight shipped ones)",
  )
  parser.add_argument(
    "--num_samples",
    type=int,
    default=24,
    help="pieces to generate, over the prompts in turn (default: %(default)s)",
  )
  parser.add_argument(
    "--samples_dir",
    action="append",
    default=[],
    help="folders of `musiclm generate` to take in place of generating; "
    "repeatable",
  )
  arguments.add_item_arguments(parser, seconds=10.0, batch_size=8)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import bias_card

  bias_card.run(args)
  return 0
