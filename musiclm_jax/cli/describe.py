# SPDX-License-Identifier: Apache-2.0
"""How generated files were made, from the metadata inside them.

Prints one JSON object per file: prompt, seed, sampling, the fingerprint of the
bundle. The sidecar is not needed. With the same bundle and version these
settings make the same file again (docs/generating.md).
"""

import argparse
import json

EPILOG = """example:
  musiclm describe samples/000_10s_a_gentle_flute.wav"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument("files", nargs="+", help="WAV files of musiclm generate")


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.systems import provenance

  for path in args.files:
    print(json.dumps({"file": path, **provenance.read(path)}, indent=2))
  return 0
