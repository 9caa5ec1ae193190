# SPDX-License-Identifier: Apache-2.0
"""Does a semantic stage know its training clips by heart; do results copy any.

`audit` (the default) lets the stage of a bundle go on greedily from training
examples and counts exact and approximate matches with what really follows
(MusicLM sec. 5.6), as JSON and as a page. `search` finds the training clips
nearest to generated audio, by MuLan and by runs of semantic tokens.
"""

import argparse

EPILOG = """examples:
  musiclm memorization --bundle=runs/quickstart/bundle \\
    --cache_dir=runs/quickstart/tokens --output_dir=runs/memorization \\
    --max_exact=0.002 --max_approximate=0.01
  musiclm memorization search --bundle=runs/quickstart/bundle \\
    --cache_dir=runs/quickstart/tokens --output_dir=runs/memorization_search \\
    --generated=runs/quickstart/samples
An audit that was killed goes on behind its finished parts; any number of
processes may share the folder and the work."""
MIXED_ARGUMENTS = True
ACTIONS = ("audit", "search")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument(
    "action", nargs="?", choices=ACTIONS, default="audit", help="default: audit"
  )
  parser.add_argument("--bundle", required=True, help="folder of the bundle")
  parser.add_argument(
    "--cache_dir", required=True, help="token cache the stage was trained on"
  )
  parser.add_argument(
    "--output_dir", required=True, help="gets the report, JSON and HTML"
  )
  parser.add_argument(
    "--split", default="train", help="trained on (default: %(default)s)"
  )
  parser.add_argument(
    "--seed", type=int, default=0, help="of all draws (default: %(default)s)"
  )
  parser.add_argument(
    "--num_shown", type=int, default=20, help="on the page (default: 20)"
  )
  _add_audit_arguments(parser.add_argument_group("audit"))
  _add_search_arguments(parser.add_argument_group("search"))


def _add_audit_arguments(group) -> None:
  group.add_argument(
    "--num_examples",
    type=int,
    default=10_000,
    help="clips, chosen at random; 0 for all (default: %(default)s)",
  )
  group.add_argument(
    "--prompt_tokens",
    default="0,50,100,150,200,250",
    metavar="T,...",
    help="semantic tokens that are given; cut to what the stage's crop leaves "
    "(default: %(default)s)",
  )
  group.add_argument(
    "--continuation_tokens",
    type=int,
    default=125,
    help="that must be equal (default: %(default)s, 5 s)",
  )
  group.add_argument(
    "--part_size",
    type=int,
    default=256,
    help="examples of a part, the most work a killed job repeats "
    "(default: %(default)s)",
  )
  group.add_argument(
    "--tau",
    type=float,
    help="threshold of approximate matches in centroid distances; set on "
    "permuted pairs by default",
  )
  group.add_argument(
    "--num_control_pairs",
    type=int,
    default=100_000,
    help="permuted pairs, half to set the threshold and half to check it "
    "(default: %(default)s)",
  )
  group.add_argument(
    "--num_control_examples",
    type=int,
    default=1000,
    help="that the pairs are made of (default: %(default)s)",
  )
  group.add_argument(
    "--regularization",
    type=float,
    default=0.02,
    help="of Sinkhorn, in mean centroid distances (default: %(default)s)",
  )
  for name in ("exact", "approximate"):
    group.add_argument(
      f"--max_{name}",
      type=float,
      metavar="SHARE",
      help=f"exit with 1 if more {name} matches are found at any prompt length",
    )


def _add_search_arguments(group) -> None:
  group.add_argument(
    "--generated",
    action="append",
    default=[],
    metavar="PATH",
    help="audio files, or folders of them; repeatable",
  )
  group.add_argument(
    "--top_k", type=int, default=5, help="clips of each (default: %(default)s)"
  )
  group.add_argument(
    "--ngram",
    type=int,
    default=10,
    help="semantic tokens; shorter common runs are not seen (default: "
    "%(default)s, 0.4 s)",
  )
  group.add_argument(
    "--heldout_split",
    default="test",
    help="clips that were not trained on: what is nearer than all of them is "
    "flagged; '' for none (default: %(default)s)",
  )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.core import errors

  for name in (
    "num_shown",
    "continuation_tokens",
    "part_size",
    "num_control_pairs",
    "num_control_examples",
    "top_k",
    "ngram",
  ):
    if getattr(args, name) < 1:
      raise errors.UserError(f"--{name}={getattr(args, name)}: expected >= 1")
  for name in ("max_exact", "max_approximate", "tau"):
    value = getattr(args, name)
    if value is not None and not value >= 0:
      raise errors.UserError(f"--{name}={value}: expected >= 0")
  if not args.regularization > 0:
    raise errors.UserError(
      f"--regularization={args.regularization}: expected > 0"
    )
  if args.num_examples < 0:
    raise errors.UserError(
      f"--num_examples={args.num_examples}: expected >= 0, 0 for all"
    )
  if args.action == "search":
    from musiclm_jax.cli import memorization_search

    return memorization_search.run(args)
  from musiclm_jax.cli import memorization_audit

  return memorization_audit.run(args)
