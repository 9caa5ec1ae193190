# SPDX-License-Identifier: Apache-2.0
"""A page on this machine to make music with: prompts in, players out.

Prompt, story, melody and continuation of a bundle, for several visitors, one
at a time (docs/studio.md). Needs the extra [studio].

The page is served to this machine alone. With another --host, visitors need
the token in the address that is printed.
"""

import argparse

EPILOG = """examples:
  musiclm studio --bundle=runs/quickstart/bundle
  musiclm studio --bundle=runs/quickstart/bundle --host=0.0.0.0 --port=8080"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument("--bundle", required=True, help="folder of a bundle")
  parser.add_argument(
    "--host",
    default="127.0.0.1",
    help="address to serve; a name of this machine needs no token "
    "(default: %(default)s)",
  )
  parser.add_argument(
    "--port", type=int, default=7860, help="0: any (default: %(default)s)"
  )
  parser.add_argument(
    "--token",
    default="",
    help="that visitors need, of at least 8 letters, digits, - and _; by "
    "default MUSICLM_STUDIO_TOKEN, else made up for any --host that is not "
    "this machine",
  )
  parser.add_argument(
    "--work_dir",
    default="",
    help="folder for uploads and results; by default a new one that is "
    "deleted at the end",
  )
  parser.add_argument(
    "--acoustic",
    default="stages",
    help="what makes acoustic codes, as of musiclm generate (default: "
    "%(default)s)",
  )
  parser.add_argument(
    "--max_seconds",
    type=float,
    default=60.0,
    help="of music, and of an upload (default: %(default)g)",
  )
  parser.add_argument(
    "--max_candidates", type=int, default=8, help="(default: %(default)s)"
  )
  parser.add_argument(
    "--max_upload_mb",
    type=float,
    default=20.0,
    help="of a file (default: %(default)g)",
  )
  parser.add_argument(
    "--max_waiting",
    type=int,
    default=16,
    help="visitors in the queue (default: %(default)s)",
  )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import studio_server

  studio_server.serve(args)
  return 0
