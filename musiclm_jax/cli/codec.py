# SPDX-License-Identifier: Apache-2.0
"""Audio files to files of acoustic codes and back, at a chosen bitrate.

Files of any length go through the codec piece by piece, in constant memory.
Where the input is a folder, all audio (or code) files in it are done, and the
output is a folder.
"""

import argparse

EPILOG = """examples:
  musiclm codec encode in.wav out.npz --num_codebooks=8 \\
    --codec=runs/quickstart/bundle
  musiclm codec decode out.npz back.wav --num_codebooks=4 \\
    --codec=runs/quickstart/bundle"""
DEFAULT_CODEC = "runs/quickstart/bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument("action", choices=("encode", "decode"))
  parser.add_argument("input", help="encode: audio; decode: .npz; or a folder")
  parser.add_argument(
    "output", help="encode: .npz; decode: .wav or .flac; or a folder"
  )
  parser.add_argument(
    "--num_codebooks",
    type=int,
    default=0,
    help="levels to write or to use, from the first; 0 for all (default)",
  )
  parser.add_argument(
    "--codec",
    default=DEFAULT_CODEC,
    metavar="DIR",
    help="a soundstream artefact, or a bundle (default: %(default)s)",
  )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import codec_files

  return codec_files.run(
    args.action, args.input, args.output, args.codec, args.num_codebooks
  )
