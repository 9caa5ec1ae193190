# SPDX-License-Identifier: Apache-2.0
"""Shows whether a listener's metrics get worse with known faults.

Half of the works of a corpus are the reference. Clips of the other half are
heard as they are, with noise, behind a low-pass, slower, with their pieces
shuffled and, with --codec, from ever fewer codebooks; with --samples_dir beside
what a system made for their texts. FAD, KAD, KLD and text score of each, and
what each of them can tell apart, go to faults.json and faults.md. Run it before
you trust a number of a listener that is new to you.
"""

import argparse

EPILOG = """examples:
  musiclm faults --embedder=mulan:runs/quickstart/bundle \\
    --reference=runs/quickstart/data/score_corpus/tiny/1.1.0 \\
    --codec=runs/quickstart/bundle --output_dir=runs/faults
  musiclm faults --embedder=musicnn:artifacts/msd_musicnn \\
    --reference=my_recordings --output_dir=runs/faults
  musiclm faults --embedder=mulan:BUNDLE --reference=CORPUS --codec=BUNDLE \\
    --samples_dir=runs/demo/samples --output_dir=runs/ladder"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument(
    "--embedder",
    action="append",
    required=True,
    help="what listens, as mulan:BUNDLE or musicnn:FOLDER "
    "(docs/embedders.md); repeatable",
  )
  parser.add_argument(
    "--reference",
    required=True,
    help="whole recordings: a prepared corpus or a folder of audio",
  )
  parser.add_argument(
    "--output_dir", required=True, help="gets faults.json and faults.md"
  )
  parser.add_argument(
    "--split", default="test", help="of a corpus (default: %(default)s)"
  )
  parser.add_argument(
    "--samples_dir",
    action="append",
    default=[],
    help="folder of generated clips whose prompts name clips of the reference; "
    "those clips are then the evaluated ones, the other works the reference, "
    "and what was generated is compared with them; repeatable",
  )
  parser.add_argument(
    "--codec",
    metavar="PATH",
    help="a soundstream artefact or a bundle: its copies count as a fault",
  )
  parser.add_argument(
    "--seconds",
    type=float,
    default=10.0,
    help="of each clip, from its start; shorter ones are left out "
    "(default: %(default)s)",
  )
  parser.add_argument(
    "--max_clips",
    type=int,
    default=300,
    help="of both halves, spread over them (default: %(default)s)",
  )
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--seed", type=int, default=0, help="of noise and order")


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import fault_report

  print(fault_report.run(args))
  return 0
