# SPDX-License-Identifier: Apache-2.0
"""What means trouble while a model of all acoustic levels is trained."""

import dataclasses
import math

from musiclm_jax.core import alarms


@dataclasses.dataclass(frozen=True)
class AcousticAlarmConfig:
  """When to call out.

  Attributes:
    patience_steps: optimizer steps that a state must last.
    chance: the cross-entropy is within this share of that of guessing.
    worse: it is so many times that of guessing.
    heldout_rise: held out it is so many times its smallest.
  """

  patience_steps: int = 200
  chance: float = 0.01
  worse: float = 1.2
  heldout_rise: float = 1.1

  def __post_init__(self):
    if self.patience_steps < 0:
      raise ValueError(f"patience_steps={self.patience_steps}: expected >= 0")
    if not 0 <= self.chance < 1:
      raise ValueError(f"chance={self.chance}: expected in [0, 1)")
    for name in ("worse", "heldout_rise"):
      if getattr(self, name) <= 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected > 1")


def loss_terms(num_levels: int) -> dict[str, tuple[str, ...]]:
  """The terms of the loss, for the level that went bad first."""
  names = [f"cross_entropy_level_{level}" for level in range(num_levels)]
  return {"acoustic model": tuple(names)}


def rules(
  config: AcousticAlarmConfig, codebook_size: int
) -> tuple[alarms.AlarmRule, ...]:
  """The rules of an acoustic model.

  Args:
    config: thresholds.
    codebook_size: of each level; guessing costs its logarithm.
  """
  guessing, patience = math.log(codebook_size), config.patience_steps
  return (
    alarms.AlarmRule(
      "codes_at_chance",
      "cross_entropy",
      "near",
      guessing,
      "The codes are guessed: nothing is learnt. Raise the learning rate, "
      "shorten its warm-up, or check that the token cache holds music.",
      tolerance=config.chance * guessing,
      patience_steps=patience,
      after_step=patience,
    ),
    alarms.AlarmRule(
      "codes_worse_than_chance",
      "cross_entropy",
      "above",
      config.worse * guessing,
      "The model is sure of wrong codes: lower the learning rate, or warm up "
      "longer.",
      after_step=patience,
    ),
    alarms.AlarmRule(
      "heldout_rising",
      "cross_entropy",
      "risen",
      config.heldout_rise,
      "Held-out codes get worse while training goes on: export an earlier "
      "checkpoint, hide more tokens, or train on more music.",
      patience_steps=2 * patience,
      split="heldout",
    ),
  )
