# SPDX-License-Identifier: Apache-2.0
"""What MuLan hears and reads: retrieval, tagging by texts, linear probes.

All scores have 95 % bootstrap intervals over works.
"""

import argparse

EPILOG = """example:
  musiclm prepare paraphrases --output=test.jsonl \\
    --corpus_dir=runs/quickstart/data/score_corpus/tiny/1.1.0
  musiclm mulan evaluate --mulan=runs/quickstart/artifacts/mulan \\
    --corpus_dir=runs/quickstart/data/score_corpus/tiny/1.1.0 \\
    --descriptions=test.jsonl --output_dir=runs/mulan_evaluation"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  actions = parser.add_subparsers(
    dest="action", metavar="ACTION", required=True
  )
  one = actions.add_parser(
    "evaluate",
    help="retrieval both ways, zero-shot tagging, linear probes",
    description=__doc__,
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  one.add_argument(
    "--mulan", required=True, metavar="DIR", help="a mulan artefact or a bundle"
  )
  one.add_argument(
    "--output_dir",
    required=True,
    help="gets mulan_evaluation.json and mulan_evaluation.md",
  )
  one.add_argument("--corpus_dir", default="", help="a prepared corpus")
  one.add_argument(
    "--cache_dir",
    default="",
    help="or its token cache, whose embeddings spare embedding the audio",
  )
  one.add_argument("--split", default="test", help="default: %(default)s")
  one.add_argument(
    "--descriptions",
    action="append",
    default=[],
    metavar="FILE",
    help="JSONL with clip_id, paraphrase, tags; also of the train and "
    "validation splits, for probes; repeatable",
  )
  one.add_argument(
    "--tags",
    default="instrument,tempo",
    metavar="KIND,...",
    help="kinds of tags for zero-shot tagging (default: %(default)s)",
  )
  one.add_argument(
    "--probe_tags",
    default="lead,tempo",
    metavar="KIND,...",
    help="kinds of tags, one for each clip, for probes (default: %(default)s)",
  )
  one.add_argument(
    "--template",
    action="append",
    default=[],
    metavar="KIND=TEXT",
    help="a prompt with {} for the name of the tag, in place of the usual "
    "ones; repeatable",
  )
  one.add_argument(
    "--max_probe_clips",
    type=int,
    default=1000,
    help="most clips of a split that probes see (default: %(default)s)",
  )
  one.add_argument(
    "--magnatagatune",
    default="",
    metavar="CSV",
    help="annotations_final.csv, tab-separated",
  )
  one.add_argument("--audio_dir", default="", help="what its mp3_path is below")
  one.add_argument(
    "--magnatagatune_folders",
    default="d,e,f",
    metavar="NAME,...",
    help="folders of its audio, '' for all (default: %(default)s, the test)",
  )
  one.add_argument(
    "--num_tags",
    type=int,
    default=50,
    help="of its tags, the most frequent (default: %(default)s)",
  )
  one.add_argument(
    "--max_bad_fraction",
    type=float,
    default=0.5,
    help="fail where more of its files cannot be read (default: %(default)s)",
  )
  one.add_argument("--num_resamples", type=int, default=1000)
  one.add_argument("--seed", type=int, default=0, help="of the bootstrap")


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import mulan_evaluation

  print(mulan_evaluation.run(args))
  return 0
