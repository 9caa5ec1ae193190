# SPDX-License-Identifier: Apache-2.0
"""Makes a judge of one of musicnn's taggers: an artefact with 50 tags.

Reads the TensorFlow checkpoint in the Python package `musicnn` (ISC licence)
once, with the extra [train]; what is written needs no TensorFlow.
"""

import argparse

EPILOG = """example (the package's own requirements are of 2019 and not needed):
  pip install --no-deps musicnn
  musiclm import_tagger --model=MSD_musicnn \\
    --output_dir=artifacts/msd_musicnn"""

_PACKAGE = "musicnn"
MODELS = ("MTT_musicnn", "MTT_vgg", "MSD_musicnn", "MSD_vgg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument(
    "--model",
    default="MSD_musicnn",
    help=f"a folder of the package: {', '.join(MODELS)} (default: %(default)s)",
  )
  parser.add_argument(
    "--package",
    help="folder of the package musicnn (default: the installed one)",
  )
  parser.add_argument(
    "--output_dir", required=True, help="the artefact's folder; replaced"
  )


def find_package() -> str:
  """Folder of the installed package, which is not imported.

  Raises:
    UserError: if it is not installed.
  """
  import importlib.util

  from musiclm_jax.core import errors

  spec = importlib.util.find_spec(_PACKAGE)
  places = list(spec.submodule_search_locations or []) if spec else []
  if not places:
    raise errors.UserError(
      "the package musicnn is not installed: `pip install --no-deps musicnn`, "
      "or name its folder with --package"
    )
  return places[0]


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  import pathlib

  from musiclm_jax.core import errors
  from musiclm_jax.data import tensorflow_checkpoints
  from musiclm_jax.systems import musicnn_import

  package = pathlib.Path(args.package or find_package())
  labels = musicnn_import.read_labels(package, args.model)
  folder = package / args.model
  if not folder.is_dir():
    there = [path.parent.name for path in package.glob("*/.index")]
    raise errors.UserError(
      f"no model {args.model!r} in {package}: expected one of "
      f"{', '.join(sorted(there)) or 'none there'}"
    )
  variables = tensorflow_checkpoints.read(folder)
  mark = musicnn_import.export(
    args.output_dir, args.model, variables, labels, {"package": _PACKAGE}
  )
  print(
    f"{args.output_dir}: {args.model}, {len(labels)} tags, fingerprint {mark}"
  )
  return 0
