# SPDX-License-Identifier: Apache-2.0
"""How each stage of MusicLM draws its codes, and with how much guidance."""

from collections.abc import Sequence
from typing import Any

from musiclm_jax.core import errors
from musiclm_jax.decoding import sampling as sampling_lib

STAGES = ("semantic", "coarse", "fine")
# MusicLM sec. 4.1: temperatures; no other filter is published.
PUBLISHED = tuple(map(sampling_lib.SamplingConfig, (1.0, 0.95, 0.4)))

StageSampling = Sequence[sampling_lib.SamplingConfig | float]


def as_configs(
  sampling: StageSampling,
) -> tuple[sampling_lib.SamplingConfig, ...]:
  """One config per stage; a number is the temperature.

  Raises:
    UserError: if they are not three, or a number is out of range.
  """
  try:
    configs = tuple(map(sampling_lib.as_config, sampling))
  except (TypeError, ValueError) as error:
    raise errors.UserError(f"sampling={sampling}: {error}") from error
  if len(configs) != len(STAGES):
    raise errors.UserError(
      f"sampling={sampling}: expected three ({', '.join(STAGES)})"
    )
  return configs


def describe(
  configs: Sequence[sampling_lib.SamplingConfig],
) -> dict[str, dict[str, Any]]:
  """Settings by stage, as JSON-compatible values."""
  return {
    name: {
      "temperature": config.temperature,
      "top_k": config.top_k,
      "top_p": config.top_p,
      "guidance": config.guidance,
    }
    for name, config in zip(STAGES, configs)
  }
