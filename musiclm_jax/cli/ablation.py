# SPDX-License-Identifier: Apache-2.0
"""The ablate job: one evaluation by prompts for each arm, then the table."""

import dataclasses
import pathlib
import re
import shlex
from typing import Any

from musiclm_jax.cli import (
  evaluation_jobs,
  prompt_evaluation,
  prompt_evaluation_files,
)
from musiclm_jax.core import errors

ARMS = "arms"
BASE = "base"
# What an arm may change; all else is the same for all of them.
CHANGEABLE = ("bundle", "condition", *evaluation_jobs.DRAWING)


def arms(
  job: evaluation_jobs.AblateJob,
) -> dict[str, evaluation_jobs.EvaluatePromptsJob]:
  """The evaluations of a job by name, the base first.

  Raises:
    UserError: if an arm is not understood, or two have one name.
  """
  told = [_arm(text) for text in job.arm]
  for text in job.sweep:
    told += _sweep(text)
  folder = pathlib.Path(job.output_dir)
  fields = dataclasses.fields(evaluation_jobs.EvaluatePromptsJob)
  shared = {field.name: getattr(job, field.name) for field in fields}
  shared["embeddings_dir"] = shared["embeddings_dir"] or str(
    folder / prompt_evaluation.EMBEDDINGS
  )
  if not shared["embedder"]:
    # Arms with other bundles are heard by the same network.
    shared["embedder"] = (f"mulan:{job.bundle}",)
  found: dict[str, evaluation_jobs.EvaluatePromptsJob] = {}
  slugs: dict[str, str] = {}
  for name, changes in [(BASE, {}), *told]:
    slug = re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")
    if not slug or slug in slugs:
      raise errors.UserError(
        f"arm {name!r}: expected a name of its own"
        + (f", {slugs[slug]!r} is there" if slug in slugs else "")
      )
    slugs[slug] = name
    settings = {**shared, **changes, "output_dir": str(folder / ARMS / slug)}
    found[name] = evaluation_jobs.EvaluatePromptsJob(**settings)
  if len(found) < 2:
    raise errors.UserError("no --arm and no --sweep: nothing to compare with")
  return found


def _arm(text: str) -> tuple[str, dict[str, Any]]:
  """'NAME: FIELD=VALUE ...' as a name and what changes."""
  name, colon, rest = text.partition(":")
  try:
    pairs = shlex.split(rest)
  except ValueError as error:
    raise errors.UserError(f"--arm={text!r}: {error}") from error
  if not colon or not name.strip() or not pairs:
    raise errors.UserError(
      f"--arm={text!r}: expected 'NAME: FIELD=VALUE ...', as 'cooler: "
      "temperatures=0.7,0.7,0.4'"
    )
  return name.strip(), dict(_change(pair, f"--arm={text!r}") for pair in pairs)


def _sweep(text: str) -> list[tuple[str, dict[str, Any]]]:
  """'FIELD=VALUE;VALUE' as an arm for each value."""
  field, equals, values = text.partition("=")
  if not equals or not values.strip():
    raise errors.UserError(
      f"--sweep={text!r}: expected 'FIELD=VALUE;VALUE', as 'num_codebooks=1;4'"
    )
  made = []
  for value in values.split(";"):
    pair = f"{field.strip()}={value.strip()}"
    made.append((pair, dict([_change(pair, f"--sweep={text!r}")])))
  return made


def _change(pair: str, where: str) -> tuple[str, Any]:
  name, equals, value = pair.partition("=")
  if not equals or name not in CHANGEABLE:
    raise errors.UserError(
      f"{where}: {pair!r}: expected FIELD=VALUE with a field of "
      f"{', '.join(CHANGEABLE)}{errors.nearest(name, CHANGEABLE)}"
    )
  kinds = {
    field.name: field.type
    for field in dataclasses.fields(evaluation_jobs.EvaluatePromptsJob)
  }
  try:
    return name, kinds[name](value)
  except ValueError as error:
    raise errors.UserError(
      f"{where}: {pair!r}: expected a number ({kinds[name].__name__})"
    ) from error


def ablate(job: evaluation_jobs.AblateJob) -> None:
  """Runs all arms, those that are finished quickly, and writes the table.

  Raises:
    UserError: as `arms` and `prompt_evaluation.evaluate`.
  """
  jobs = arms(job)
  for name, one in jobs.items():
    print(f"arm {name}", flush=True)
    prompt_evaluation.evaluate(one)
  runs = [
    prompt_evaluation_files.read(one.output_dir, name)
    for name, one in jobs.items()
  ]
  prompt_evaluation_files.write_comparison(job.output_dir, runs, job.num_shown)
