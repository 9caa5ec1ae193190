# SPDX-License-Identifier: Apache-2.0
"""A blinded listening test: builds it, serves it, scores it.

Raters read a text, hear two clips of 10 s and say which one they prefer, on a
scale of five (MusicLM, section 5.2; docs/listening.md). Nothing that is served
tells which system made a clip.
"""

import argparse

EPILOG = """examples:
  musiclm listen reference --corpus_dir=DIR/score_corpus/tiny/1.1.0 \\
    --prompts=runs/quickstart/prompts.jsonl --output_dir=runs/truth
  musiclm listen build --system truth=runs/truth \\
    --system tiny=runs/quickstart/samples --output_dir=runs/listening
  musiclm listen serve --test_dir=runs/listening
  musiclm listen score --test_dir=runs/listening"""


def _add_build(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--system",
    action="append",
    required=True,
    metavar="NAME=DIR",
    help="a system and the folder of its clips, of `musiclm generate` or with "
    "captions.jsonl; twice or more. Clips of the first are set against noise "
    "in attention checks",
  )
  parser.add_argument(
    "--output_dir", required=True, help="a new folder for the test"
  )
  parser.add_argument(
    "--captions",
    default="",
    metavar="FILE",
    help='JSON lines with "file" and "prompt", for files without a text',
  )
  parser.add_argument("--num_raters", type=int, default=20, help="default: 20")
  parser.add_argument(
    "--comparisons_per_rater",
    type=int,
    help="a multiple of the number of pairs, without attention checks "
    "(default: 60, or what there is)",
  )
  parser.add_argument(
    "--raters_per_comparison",
    type=int,
    default=1,
    help="raters who compare the same clips, for their agreement (default: 1)",
  )
  parser.add_argument(
    "--num_checks",
    type=int,
    help="attention checks of each rater (default: one for ten comparisons, at "
    "least 2)",
  )
  parser.add_argument(
    "--seconds", type=float, default=10.0, help="of each clip (default: 10)"
  )
  parser.add_argument(
    "--sample_rate_hz",
    type=int,
    help="of all clips (default: the lowest of all sources)",
  )
  parser.add_argument(
    "--lufs",
    type=float,
    default=-20.0,
    help="loudness of all clips, or less for all clips of a text where a peak "
    "of one forbids it (default: %(default)g)",
  )
  parser.add_argument(
    "--keep_loudness",
    action="store_true",
    help="leave it as it is in the files",
  )
  parser.add_argument(
    "--min_played_share",
    type=float,
    default=1.0,
    help="of both clips that has to be heard before an answer (default: 1)",
  )
  parser.add_argument(
    "--title", default="Listening test", help="(default: %(default)s)"
  )
  parser.add_argument(
    "--question",
    default="Which clip fits the text better?",
    help="(default: %(default)s)",
  )
  parser.add_argument(
    "--seed",
    type=int,
    help="of who compares what. Who knows it can tell systems apart, so raters "
    "must not (default: drawn, and kept in key.json)",
  )


def _add_serve(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--test_dir", required=True, help="of `listen build`")
  parser.add_argument(
    "--host",
    default="127.0.0.1",
    help="address to serve; a name of this machine needs no token (default: "
    "%(default)s)",
  )
  parser.add_argument(
    "--port", type=int, default=7870, help="0: any (default: %(default)s)"
  )
  parser.add_argument(
    "--token",
    default="",
    help="that raters need, of at least 8 letters, digits, - and _; by default "
    "MUSICLM_LISTEN_TOKEN, else made up for a --host that is not this machine",
  )


def _add_score(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--test_dir", required=True, help="of `listen build`")
  parser.add_argument(
    "--answers",
    default="",
    metavar="FILE",
    help="default: answers.jsonl in the folder of the test",
  )
  parser.add_argument(
    "--output_dir",
    default="",
    help="gets listening.json, listening.md, index.html (default: score/ in "
    "the folder of the test)",
  )
  parser.add_argument(
    "--max_failed_share",
    type=float,
    default=0.2,
    help="of attention checks; raters with more are left out (default: 0.2)",
  )
  parser.add_argument(
    "--alpha",
    type=float,
    default=0.01,
    help="level of the tests, shared by all pairs (default: 0.01)",
  )
  parser.add_argument(
    "--num_resamples", type=int, default=2000, help="of the bootstrap"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")


def _add_reference(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--corpus_dir", required=True, help="a prepared corpus")
  parser.add_argument("--split", default="test", help="default: %(default)s")
  parser.add_argument(
    "--prompts",
    required=True,
    metavar="FILE",
    help='JSON lines with "prompt" and "source", the id of a clip, as '
    "`musiclm prepare prompts` writes them",
  )
  parser.add_argument(
    "--output_dir", required=True, help="gets WAV files and captions.jsonl"
  )


_ACTIONS = {
  "build": (_add_build, "folders of clips to a test"),
  "serve": (_add_serve, "the page for raters, and what keeps their answers"),
  "score": (_add_score, "answers to wins, tests, intervals and a page"),
  "reference": (_add_reference, "the corpus's own clips of prompts"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  actions = parser.add_subparsers(
    dest="action", metavar="ACTION", required=True
  )
  for name, (add, text) in _ACTIONS.items():
    add(
      actions.add_parser(
        name,
        help=text,
        description=__doc__.split("\n\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
      )
    )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  if args.action == "serve":
    from musiclm_jax.cli import listen_server

    listen_server.serve(args)
    return 0
  from musiclm_jax.cli import listening

  getattr(listening, args.action)(args)
  return 0
