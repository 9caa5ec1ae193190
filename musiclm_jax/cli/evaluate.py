# SPDX-License-Identifier: Apache-2.0
"""Scores a bundle: tokenizers and stages on a corpus, or music from prompts.

On a corpus: codec distances, MuLan retrieval, cross-entropy of the stages, MCC
of samples. With --prompts: generates, scores against --reference with every
--embedder, and writes metric cards and a page; go on by the same command.
"""

import argparse
import dataclasses

from musiclm_jax.cli import evaluation_jobs, jobs
from musiclm_jax.core import errors

EPILOG = """examples:
  musiclm evaluate --bundle=runs/quickstart/bundle \\
    --corpus_dir=runs/quickstart/data/score_corpus/tiny/1.1.0 \\
    --cache_dir=runs/quickstart/tokens \\
    --samples_dir=runs/quickstart/samples --output_dir=runs/evaluation
  musiclm evaluate --bundle=B --prompts=score_corpus_test \\
    --reference=runs/quickstart/data/score_corpus/tiny/1.1.0 \\
    --embedder=mulan:B --output_dir=runs/demo
  musiclm evaluate --bundle=B --prompts=musiccaps-public.csv \\
    --subset=balanced --reference=musiccaps_audio --embedder=mulan:B \\
    --embedder=musicnn:MODELS --output_dir=runs/musiccaps
  musiclm evaluate --samples_dir=made_elsewhere --embedder=mulan:B \\
    --prompts=musiccaps-public.csv --output_dir=runs/elsewhere
  musiclm evaluate --run=runs/one --run=runs/other --output_dir=runs/both"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  jobs.add_arguments(parser, jobs.EvaluateJob)
  known = {field.name for field in dataclasses.fields(jobs.EvaluateJob)}
  jobs.add_fields(parser, evaluation_jobs.EvaluatePromptsJob, known)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  if evaluation_jobs.is_asked(args):
    from musiclm_jax.cli import prompt_evaluation

    for name in ("corpus_dir", "cache_dir"):
      if getattr(args, name) is not None:
        raise errors.UserError(
          f"--{name} belongs to the evaluation of tokenizers and stages: "
          "expected it without --prompts, --reference, --embedder and --run"
        )
    job = jobs.build(evaluation_jobs.EvaluatePromptsJob, args)
    prompt_evaluation.evaluate(job)
    return 0
  from musiclm_jax.cli import evaluation

  evaluation.evaluate(jobs.build(jobs.EvaluateJob, args))
  return 0
