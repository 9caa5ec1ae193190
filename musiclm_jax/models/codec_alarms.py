# SPDX-License-Identifier: Apache-2.0
"""What means trouble while a codec is trained: sizes in, alarm rules out."""

import dataclasses
import math

from musiclm_jax.core import alarms
from musiclm_jax.networks import soundstream

# Metrics by player, in the order in which they are computed.
LOSS_TERMS = {
  "generator": (
    "commitment",
    "reconstruction",
    "waveform",
    "adversarial",
    "feature",
    "gradient_norm/generator",
  ),
  "discriminator": ("discriminator", "gradient_norm/discriminator"),
}


@dataclasses.dataclass(frozen=True)
class CodecAlarmConfig:
  """When to call out.

  Attributes:
    patience_steps: optimizer steps that a state must last before it is called
      out; explosions have a tenth of it.
    min_usage: of the entries that a batch of evenly spread frames would use,
      a level uses less than this share.
    min_perplexity: the perplexity of a level over many batches is below this
      share of what it could be.
    max_replaced: more than this share of a codebook is dead and replaced in
      every step.
    winning: the discriminators' loss is below (0 is certainty).
    losing: the discriminators' loss is within this of 2 (2 is guessing).
    explosion: a loss is so many times its median.
    divergence: the reconstruction loss is so many times its median; this ends
      the training.
    heldout_rise: the held-out log-mel distance is so many times its smallest.
  """

  patience_steps: int = 500
  min_usage: float = 0.2
  min_perplexity: float = 0.05
  max_replaced: float = 0.1
  winning: float = 0.1
  losing: float = 0.01
  explosion: float = 10.0
  divergence: float = 1000.0
  heldout_rise: float = 1.1

  def __post_init__(self):
    for name in ("explosion", "divergence", "heldout_rise"):
      if getattr(self, name) <= 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected > 1")
    if self.patience_steps < 0:
      raise ValueError(f"patience_steps={self.patience_steps}: expected >= 0")


def rules(
  config: CodecAlarmConfig,
  codec: soundstream.SoundStreamConfig,
  frames_per_batch: int,
  discriminator_start_step: int,
) -> tuple[alarms.AlarmRule, ...]:
  """The rules of a codec.

  Args:
    config: thresholds.
    codec: sizes of the quantizer.
    frames_per_batch: frames of the global batch.
    discriminator_start_step: before it the critics rest.
  """
  return (
    *_quantizer_rules(config, codec, frames_per_batch),
    *_player_rules(config, discriminator_start_step),
  )


def _quantizer_rules(config, codec, frames):
  size, patience = codec.codebook_size, config.patience_steps
  evenly = 1.0 - math.exp(-frames / size)
  remembered = frames / (1.0 - codec.codebook_decay)
  found = [
    alarms.AlarmRule(
      "low_codebook_usage",
      "codebook_usage/*",
      "below",
      config.min_usage * evenly,
      f"A batch of {frames} evenly spread frames would use {evenly:.2f} of "
      "this level's entries. Start the codebooks from more batches "
      "(kmeans_batches), raise dead_threshold or the batch, or lower "
      "codebook_size.",
      patience_steps=patience,
    ),
    alarms.AlarmRule(
      "codebook_collapse",
      "codebook_average_perplexity/*",
      "below",
      config.min_perplexity * min(size, remembered),
      f"Nearly all frames get the same few of {size} codes. If it is the first "
      "level, the encoder has collapsed: lower the learning rate or the "
      "commitment weight. If later ones, there is little left to quantize: "
      "fewer codebooks would do.",
      patience_steps=patience,
    ),
    alarms.AlarmRule(
      "commitment_exploding",
      "commitment",
      "grown",
      config.explosion,
      "The encoder runs away from its codebooks: raise the commitment weight, "
      "lower the learning rate or codebook_decay.",
      patience_steps=patience // 10,
    ),
  ]
  if codec.quantizer_kind == "rvq":
    found.append(
      alarms.AlarmRule(
        "dead_codebook",
        "codebook_replaced/*",
        "above",
        config.max_replaced,
        "So many entries of this level die again and again: what replaces "
        "them finds no frames. Raise the batch or the crop, or lower "
        "dead_threshold or codebook_size.",
        patience_steps=patience,
        after_step=patience,
      )
    )
  return found


def _player_rules(config, start):
  patience = config.patience_steps
  sudden = patience // 10
  return (
    alarms.AlarmRule(
      "discriminator_winning",
      "discriminator",
      "below",
      config.winning,
      "The discriminators tell original from decoded without effort, so the "
      "generator learns nothing from them. Lower their learning rate, start "
      "them later, or raise the adversarial weight.",
      patience_steps=patience,
      after_step=start + sudden,
    ),
    alarms.AlarmRule(
      "discriminator_losing",
      "discriminator",
      "near",
      2.0,
      "The discriminators guess. Raise their learning rate or size, or check "
      "that they are trained at all.",
      tolerance=config.losing,
      patience_steps=patience,
      after_step=start + sudden,
    ),
    alarms.AlarmRule(
      "generator_exploding",
      "loss",
      "grown",
      config.explosion,
      "Lower the learning rate or clip_norm, start the discriminators later, "
      "or balance the losses (CodecGANConfig.balancer).",
      patience_steps=sudden,
      after_step=start,
    ),
    alarms.AlarmRule(
      "diverged",
      "reconstruction",
      "grown",
      config.divergence,
      "Go on from an earlier checkpoint with a lower learning rate or "
      "clip_norm.",
      patience_steps=sudden,
      action="stop",
    ),
    alarms.AlarmRule(
      "heldout_rising",
      "log_mel_distance",
      "risen",
      config.heldout_rise,
      "Held-out sound gets worse while training goes on: export an earlier "
      "checkpoint, train on more music, or weigh reconstruction more against "
      "the adversarial losses.",
      patience_steps=2 * patience,
      split="heldout",
    ),
  )
