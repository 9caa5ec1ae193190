# SPDX-License-Identifier: Apache-2.0
"""Flags of the generate verb that have a value per stage."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from musiclm_jax.cli import jobs
from musiclm_jax.core import errors
from musiclm_jax.decoding import sampling as sampling_lib
from musiclm_jax.systems import stage_sampling


def _per_stage(
  name: str,
  text: str,
  wanted: str,
  is_valid: Callable[[float], bool],
) -> tuple[float, ...]:
  """One number for all stages, or one for each.

  Raises:
    UserError: if it is something else.
  """
  message = (
    f"--{name}={text}: expected one or three numbers {wanted} "
    f"({', '.join(stage_sampling.STAGES)})"
  )
  try:
    values = tuple(float(part) for part in text.split(","))
  except ValueError as error:
    raise errors.UserError(message) from error
  if len(values) not in (1, 3):
    raise errors.UserError(message)
  if not all(math.isfinite(value) and is_valid(value) for value in values):
    raise errors.UserError(message)
  return values


def check(job: jobs.GenerateJob) -> None:
  """Refuses what does not fit, before anything is loaded.

  Raises:
    UserError: if a flag does not fit.
  """
  guidance = _numbers(job)["guidance"]
  if job.negative_prompt and all(value == 1 for value in guidance):
    raise errors.UserError(
      f"--negative_prompt needs --guidance above 1, got {job.guidance}"
    )


def _numbers(job: jobs.GenerateJob) -> dict[str, tuple[float, ...]]:
  """One or three values of each flag."""

  def read(name, wanted, is_valid):
    return _per_stage(name, getattr(job, name), wanted, is_valid)

  return {
    "temperatures": read("temperatures", ">= 0", lambda x: x >= 0)
    if job.temperatures
    else (),
    "top_k": read(
      "top_k", "that are whole and >= 0", lambda x: x >= 0 and x == int(x)
    ),
    "top_p": read("top_p", "in (0, 1]", lambda x: 0 < x <= 1),
    "guidance": read("guidance", ">= 0", lambda x: x >= 0),
  }


def sampling(
  job: jobs.GenerateJob,
  stages: Mapping[str, Any],
  temperatures: Sequence[float],
) -> tuple[sampling_lib.SamplingConfig, ...]:
  """How the stages draw.

  Args:
    job: its flags.
    stages: `stage_lm.StageLM`s in order. One number for guidance is meant for
      those that are told what the prompt says.
    temperatures: where none are given.

  Raises:
    UserError: if a flag does not fit, or a stage cannot be guided.
  """
  numbers = _numbers(job)
  numbers["temperatures"] = numbers["temperatures"] or tuple(temperatures)
  if len(numbers["guidance"]) == 1:
    (value,) = numbers["guidance"]
    numbers["guidance"] = stage_sampling.spread_guidance(value, stages)
  configs = tuple(
    sampling_lib.SamplingConfig(temperature, int(top_k), top_p, guidance)
    for temperature, top_k, top_p, guidance in zip(
      *(x * 3 if len(x) == 1 else x for x in numbers.values())
    )
  )
  is_negative_given = bool(job.negative_prompt)
  stage_sampling.check_guidance(configs, stages, is_negative_given)
  return configs
