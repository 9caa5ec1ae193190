# SPDX-License-Identifier: Apache-2.0
"""Audio files to files of acoustic codes and back; what a codec is worth.

Files of any length go through the codec piece by piece, in constant memory.
Where the input is a folder, all audio (or code) files in it are done, and the
output is a folder.
"""

import argparse

EPILOG = """examples:
  musiclm codec encode in.wav out.npz --num_codebooks=8 \\
    --codec=runs/quickstart/bundle
  musiclm codec decode out.npz back.wav --num_codebooks=4 \\
    --codec=runs/quickstart/bundle
  musiclm codec report --codec=runs/quickstart/bundle --output=runs/codec"""
DEFAULT_CODEC = "runs/quickstart/bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  from musiclm_jax.cli import codec_report

  actions = parser.add_subparsers(
    dest="action", metavar="ACTION", required=True
  )
  for action, text in (
    ("encode", "audio to files of codes"),
    ("decode", "files of codes to audio"),
  ):
    one = actions.add_parser(action, help=text)
    one.add_argument("input", help="encode: audio; decode: .npz; or a folder")
    one.add_argument(
      "output", help="encode: .npz; decode: .wav or .flac; or a folder"
    )
    one.add_argument(
      "--num_codebooks",
      type=int,
      default=0,
      help="levels to write or to use, from the first; 0 for all (default)",
    )
    one.add_argument(
      "--codec",
      default=DEFAULT_CODEC,
      metavar="DIR",
      help="a soundstream artefact, or a bundle (default: %(default)s)",
    )
    one.add_argument(
      "--denoise", action="store_true", help="of a codec trained to denoise"
    )
  report = actions.add_parser(
    "report",
    help="measure it over 1 to all codebooks, with a page to listen to",
    description=codec_report.__doc__,
    epilog=codec_report.EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  codec_report.add_arguments(report)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import codec_files, codec_report

  if args.action == "report":
    return codec_report.main(args)
  return codec_files.run(
    args.action,
    args.input,
    args.output,
    args.codec,
    args.num_codebooks,
    args.denoise,
  )
