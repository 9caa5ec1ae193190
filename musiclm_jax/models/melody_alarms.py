# SPDX-License-Identifier: Apache-2.0
"""What means trouble while a melody embedder is trained: alarm rules."""

import dataclasses

from musiclm_jax.core import alarms


@dataclasses.dataclass(frozen=True)
class MelodyAlarmConfig:
  """When to call out.

  Attributes:
    patience_steps: optimizer steps that a state must last.
    min_spread: the embeddings of a batch lie closer around their mean.
    chance: the loss is within this share of the margin, which is the loss of a
      constant embedding.
    min_active: fewer triplets teach anything.
    heldout_rise: the held-out loss is so many times its smallest.
  """

  patience_steps: int = 100
  min_spread: float = 0.02
  chance: float = 0.01
  min_active: float = 0.01
  heldout_rise: float = 1.5

  def __post_init__(self):
    if self.patience_steps < 0:
      raise ValueError(f"patience_steps={self.patience_steps}: expected >= 0")
    if self.heldout_rise <= 1:
      raise ValueError(f"heldout_rise={self.heldout_rise}: expected > 1")
    for name in ("min_spread", "chance", "min_active"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected in [0, 1)")


def rules(
  config: MelodyAlarmConfig, margin: float
) -> tuple[alarms.AlarmRule, ...]:
  """The rules of a melody embedder.

  Args:
    config: thresholds.
    margin: of the triplet loss.
  """
  patience = config.patience_steps
  return (
    alarms.AlarmRule(
      "melody_collapse",
      "spread",
      "below",
      config.min_spread,
      "All clips get nearly the same embedding. Lower the learning rate, or "
      "warm up longer; a larger margin does not help.",
      patience_steps=patience,
      after_step=patience,
    ),
    alarms.AlarmRule(
      "melody_at_chance",
      "loss",
      "near",
      margin,
      "The loss is the margin: pairs of one melody are no nearer than others. "
      "Lower the learning rate, put more melodies into a batch, or check that "
      "equal ids are equal melodies.",
      tolerance=config.chance * margin,
      patience_steps=patience,
      after_step=patience,
    ),
    alarms.AlarmRule(
      "no_hard_melodies",
      "active",
      "below",
      config.min_active,
      "Hardly any triplet has a loss, so hardly anything is learnt. Put more "
      "melodies into a batch, raise the margin, or change the clips more.",
      patience_steps=patience,
    ),
    alarms.AlarmRule(
      "heldout_rising",
      "loss",
      "risen",
      config.heldout_rise,
      "Held-out melodies get worse while training goes on: export an earlier "
      "checkpoint, or train on more melodies.",
      patience_steps=2 * patience,
      split="heldout",
    ),
  )
