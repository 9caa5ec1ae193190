# SPDX-License-Identifier: Apache-2.0
"""Scores a melody embedder: are held-out melodies known when they are changed?

Reads an artefact of kind 'melody' and a corpus `melody_pairs`. The candidates
are the plain versions of all held-out works; the queries are the same melodies
by another instrument, hummed, in another key or tempo, in noise. Writes mean
reciprocal ranks with intervals by transformation, of the embeddings, of their
codes, and of chroma, which learns nothing.
"""

import argparse

EPILOG = """example:
  musiclm recognize --melody=runs/artifacts/melody \\
    --output_dir=runs/recognize \\
    --corpus_dir=data_built/melody_pairs/small/1.0.0"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument("--melody", required=True, help="the artefact")
  parser.add_argument("--corpus_dir", required=True, help="a melody_pairs")
  parser.add_argument(
    "--output_dir", required=True, help="gets recognize.json and recognize.md"
  )
  parser.add_argument("--split", default="test")
  parser.add_argument(
    "--max_works", type=int, default=0, help="the first ones; 0 for all"
  )
  parser.add_argument("--seed", type=int, default=0, help="of noise and rooms")


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import recognition

  print(recognition.run(args))
  return 0
