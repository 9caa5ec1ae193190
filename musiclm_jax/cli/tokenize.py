# SPDX-License-Identifier: Apache-2.0
"""Turns a prepared corpus into a token cache, resuming after any kill.

Each clip gives acoustic and semantic codes and MuLan window embeddings; the
cache records the tokenizers' fingerprints.
"""

import argparse

from musiclm_jax.cli import jobs

EPILOG = """example:
  musiclm tokenize --corpus_dir=runs/quickstart/data/score_corpus/tiny/1.0.0 \\
    --artifact_dir=runs/quickstart/artifacts --output_dir=runs/tokens"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  jobs.add_arguments(parser, jobs.TokenizeJob)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import tokenization

  job = jobs.build(jobs.TokenizeJob, args)
  tokenization.tokenize_corpus(
    job.corpus_dir,
    job.artifact_dir,
    job.output_dir,
    [split for split in job.splits.split(",") if split],
    job.batch_size,
    job.max_bad_fraction,
  )
  return 0
