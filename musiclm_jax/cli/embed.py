# SPDX-License-Identifier: Apache-2.0
"""Audio files and texts to the vectors of MuLan's joint space.

Writes an .npz, a .csv, or a folder that `musiclm search` reads. Files of any
length are read in constant memory; what cannot be read is skipped and listed.
"""

import argparse

EPILOG = """examples:
  musiclm embed my_music --output=runs/index
  musiclm embed a.wav b.flac --text="solo flute" --output=vectors.npz
  musiclm embed my_music --windows --texts=captions.txt --output=vectors.csv
A folder is added to: files that are in it and have not changed are left out."""
MIXED_ARGUMENTS = True
DEFAULT_MULAN = "runs/quickstart/bundle"


def add_mulan_argument(parser: argparse.ArgumentParser) -> None:
  """The option that names a MuLan."""
  parser.add_argument(
    "--mulan",
    default=DEFAULT_MULAN,
    metavar="DIR",
    help="a mulan artefact, or a bundle (default: %(default)s)",
  )


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument(
    "input", nargs="*", help="audio files, or folders of them"
  )
  parser.add_argument(
    "--output",
    required=True,
    help="a name in .npz or .csv, or a folder for an index",
  )
  parser.add_argument(
    "--text", action="append", default=[], help="a text; repeatable"
  )
  parser.add_argument(
    "--texts", metavar="FILE", help="a text per line, or JSONL with prompts"
  )
  parser.add_argument(
    "--windows",
    action="store_true",
    help="a vector for each window of a file, not the mean of all",
  )
  add_mulan_argument(parser)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import embedding_files, prompt_files
  from musiclm_jax.core import errors

  texts = list(args.text)
  if args.texts:
    texts += prompt_files.read(args.texts)
  if not args.input and not texts:
    raise errors.UserError(
      "nothing to embed: expected audio files, --text or --texts"
    )
  return embedding_files.run(
    args.input, texts, args.output, args.mulan, args.windows
  )
