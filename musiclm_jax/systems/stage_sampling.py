# SPDX-License-Identifier: Apache-2.0
"""How each stage of MusicLM draws its codes, and with how much guidance."""

from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.core import errors
from musiclm_jax.decoding import sampling as sampling_lib

MULAN = "mulan"
STAGES = ("semantic", "coarse", "fine")

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


def check_guidance(
  configs: Sequence[sampling_lib.SamplingConfig],
  stages: Mapping[str, Any],
  is_negative_given: bool = False,
) -> None:
  """Refuses what the stages were not trained for.

  Args:
    configs: of the stages.
    stages: `stage_lm.StageLM`s in the same order.
    is_negative_given: whether there is a negative prompt.

  Raises:
    UserError: if a stage without dropped streams is to be guided, or a
      negative prompt would change nothing.
  """
  told = list(stages.items())
  # A back end, which is the last then, stands for two stages.
  told += told[-1:] * (len(configs) - len(told))
  for (name, stage), config in zip(told, configs):
    if config.guidance != 1 and not stage.spec.dropped_streams:
      raise errors.UserError(
        f"guidance={config.guidance:g} of the {name} stage: it was trained "
        "without condition_dropout_rate, expected 1 (docs/generating.md)"
      )
  if is_negative_given and not any(
    config.guidance != 1 and MULAN in stage.spec.conditioning_streams
    for (_, stage), config in zip(told, configs)
  ):
    raise errors.UserError(
      "a negative prompt needs guidance other than 1 in a stage that is told "
      "MuLan codes"
    )


def spread_guidance(
  guidance: float, stages: Mapping[str, Any]
) -> tuple[float, ...]:
  """One number for all stages that are told what a prompt says, else 1."""
  numbers = [
    guidance if MULAN in stage.spec.conditioning_streams else 1.0
    for stage in stages.values()
  ]
  # A back end stands for two stages.
  return (*numbers, *[1.0] * (len(STAGES) - len(numbers)))
