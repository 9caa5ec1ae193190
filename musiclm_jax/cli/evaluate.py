# SPDX-License-Identifier: Apache-2.0
"""Scores a bundle on held-out works and its generated samples.

Codec distances by number of codebooks, MuLan retrieval, cross-entropy of the
stages beside n-gram models, and MuLan cycle consistency of samples.
"""

import argparse

from musiclm_jax.cli import jobs

EPILOG = """example:
  musiclm evaluate --bundle=runs/quickstart/bundle \\
    --corpus_dir=runs/quickstart/data/score_corpus/tiny/1.1.0 \\
    --cache_dir=runs/quickstart/tokens \\
    --samples_dir=runs/quickstart/samples --output_dir=runs/evaluation"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  jobs.add_arguments(parser, jobs.EvaluateJob)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import evaluation

  evaluation.evaluate(jobs.build(jobs.EvaluateJob, args))
  return 0
