# SPDX-License-Identifier: Apache-2.0
"""Turns a corpus or a folder of audio into a token cache, resuming.

Each clip gives acoustic and semantic codes and MuLan window embeddings; the
cache records the tokenizers' fingerprints. Start the same command as often and
on as many hosts as you like: they share the work.
"""

import argparse

from musiclm_jax.cli import jobs

EPILOG = """example:
  musiclm tokenize --corpus_dir=runs/quickstart/data/score_corpus/tiny/1.1.0 \\
    --artifact_dir=runs/quickstart/artifacts --output_dir=runs/tokens"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  jobs.add_arguments(parser, jobs.TokenizeJob)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import tokenization

  tokenization.run(jobs.build(jobs.TokenizeJob, args))
  return 0
