# SPDX-License-Identifier: Apache-2.0
"""Evaluates variants of a system on the same prompts, side by side.

Each --arm is an evaluation by prompts with some settings changed: another
bundle, audio in place of text, other temperatures, fewer codebooks. Writes a
table of all metrics by arm, and a page; go on by the same command.
"""

import argparse

from musiclm_jax.cli import evaluation_jobs, jobs

EPILOG = """examples:
  musiclm ablate --bundle=B --prompts=score_corpus_test --max_prompts=16 \\
    --reference=runs/quickstart/data/score_corpus/tiny/1.1.0 \\
    --embedder=mulan:B --output_dir=runs/ablation \\
    --arm="no semantic tokens: bundle=runs/no_semantic/bundle" \\
    --arm="audio tokens: condition=audio" \\
    --sweep="temperatures=0.7,0.7,0.4;1.3,1.2,0.4" --sweep="num_codebooks=1;4"
  musiclm ablate --gin_file=runs/ablate.gin --gin_file=mine.gin"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  jobs.add_arguments(parser, evaluation_jobs.AblateJob)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import ablation

  ablation.ablate(jobs.build(evaluation_jobs.AblateJob, args))
  return 0
