# SPDX-License-Identifier: Apache-2.0
"""What means trouble while a joint embedding is trained: alarm rules out."""

import dataclasses

from musiclm_jax.core import alarms


@dataclasses.dataclass(frozen=True)
class ContrastiveAlarmConfig:
  """When to call out.

  Attributes:
    patience_steps: optimizer steps that a state must last before it is called
      out.
    chance: the loss is within this share of that of a constant encoder, or
      above it.
    min_spread: the total variance of a modality's embeddings is below this.
    min_rank: the embeddings of a modality vary in fewer directions than this.
    max_hub_share: more than this share of a batch finds the same item.
    temperature: the temperature is within this share of its smallest value.
  """

  patience_steps: int = 500
  chance: float = 0.01
  min_spread: float = 0.01
  min_rank: float = 1.5
  max_hub_share: float = 0.5
  temperature: float = 0.001

  def __post_init__(self):
    if self.patience_steps < 0:
      raise ValueError(f"patience_steps={self.patience_steps}: expected >= 0")
    if self.min_rank < 1:
      raise ValueError(f"min_rank={self.min_rank}: expected >= 1")
    for name in ("chance", "min_spread", "max_hub_share", "temperature"):
      if not 0 < getattr(self, name) < 1:
        raise ValueError(
          f"{name}={getattr(self, name)}: expected between 0 and 1"
        )


def rules(
  config: ContrastiveAlarmConfig,
  batch_size: int,
  output_dim: int,
  min_temperature: float,
) -> tuple[alarms.AlarmRule, ...]:
  """The rules of a contrastive model.

  Args:
    config: thresholds.
    batch_size: global; a batch varies in at most one direction less.
    output_dim: width of the joint space, which bounds them too.
    min_temperature: that the temperature is clipped to.
  """
  patience = config.patience_steps
  found = [
    alarms.AlarmRule(
      "loss_at_chance",
      "loss_over_chance",
      "above",
      1.0 - config.chance,
      "The loss is that of an encoder that gives all inputs one vector: text "
      "and audio are not told apart. Lower the learning rate or lengthen the "
      "warm-up, and look whether captions belong to their clips "
      "(embedding_spread_* says which tower is constant, if one is).",
      patience_steps=patience,
    ),
    alarms.AlarmRule(
      "embedding_collapse",
      "embedding_spread_*",
      "below",
      config.min_spread,
      "This tower gives nearly the same vector to all inputs. Lower the "
      "learning rate, and look at its inputs: silence, or empty texts, are "
      "all alike.",
      patience_steps=patience,
    ),
    alarms.AlarmRule(
      "temperature_at_floor",
      "temperature",
      "below",
      min_temperature * (1 + config.temperature),
      "The temperature has reached min_temperature, where it has no gradient "
      "that would bring it back. Pairs are nearly memorised, or repeat: use "
      "more data or augmentation, or lower its learning rate "
      "(OptimizerConfig.rate_scales).",
      patience_steps=patience,
    ),
  ]
  # A small batch has neither many directions nor many items.
  if min(batch_size - 1, output_dim) >= 4 * config.min_rank:
    found.append(
      alarms.AlarmRule(
        "embedding_rank_collapse",
        "embedding_rank_*",
        "below",
        config.min_rank,
        f"Embeddings of this modality vary along a line, where {output_dim} "
        "directions are there. Raise the batch or the learning rate's "
        "warm-up, or look whether inputs differ in one thing only.",
        patience_steps=patience,
      )
    )
  if batch_size * config.max_hub_share >= 4:
    found.append(
      alarms.AlarmRule(
        "hub",
        "hub_share_*",
        "above",
        config.max_hub_share,
        "One item is the nearest to most others: a text or clip so common "
        "that it lies in the middle of all. Look for repeated captions and "
        "for a tower that learns too slowly.",
        patience_steps=patience,
      )
    )
  return tuple(found)
