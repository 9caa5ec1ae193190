# SPDX-License-Identifier: Apache-2.0
"""Flags of the generate verb that have a value per stage."""

import math
from collections.abc import Callable

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
  return values * 3 if len(values) == 1 else values


def sampling(
  job: jobs.GenerateJob,
) -> tuple[sampling_lib.SamplingConfig, ...]:
  """How the stages draw.

  Raises:
    UserError: if a flag does not fit.
  """
  temperatures = _per_stage(
    "temperatures", job.temperatures, ">= 0", lambda value: value >= 0
  )
  top_k = _per_stage(
    "top_k",
    job.top_k,
    "that are whole and >= 0",
    lambda value: value >= 0 and value == int(value),
  )
  top_p = _per_stage(
    "top_p", job.top_p, "in (0, 1]", lambda value: 0 < value <= 1
  )
  return tuple(
    sampling_lib.SamplingConfig(*values)
    for values in zip(temperatures, map(int, top_k), top_p)
  )
