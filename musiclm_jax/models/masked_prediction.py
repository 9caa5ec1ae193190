# SPDX-License-Identifier: Apache-2.0
"""w2v-BERT training: waveforms in, loss and metrics out.

The loss is that of w2v-BERT sec. 3.2: contrastive over the quantizer's code
vectors, plus 0.1 times code diversity, plus cross-entropy of the quantizer's
ids at masked frames.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.core import alarms, protocols, rng
from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import gumbel_quantize
from musiclm_jax.networks import w2v_bert

_MASKED = -1e9
# Less of the codebook than this in use is a collapse (healthy: 0.3 and more).
_LEAST_USED_SHARE = 0.05
# Nothing learns to predict so much so early: the targets are trivial.
_TOO_GOOD_ACCURACY, _EARLY_SHARE = 0.8, 0.25
# Healthy: 0.3 and more; a stack that ignored its input had 1e-11.
_LEAST_SPREAD = 0.02


@dataclasses.dataclass(frozen=True)
class MaskedPredictionConfig:
  """The w2v-BERT loss.

  Attributes:
    num_distractors: code vectors of other masked frames of the clip that the
      contrastive loss tells the right one from.
    contrastive_temperature: divides the cosine similarities.
    diversity_weight: of the diversity loss.
    prediction_weight: of the masked-prediction loss.
    gumbel_start: first temperature of the quantizer.
    gumbel_end: last temperature of the quantizer.
    gumbel_steps: optimizer steps of the geometric way between them.
    crop_secs: audio of one training example.
    kmeans_batches: batches from whose frames k-means starts the quantizer;
      0: starts random, and spends its first thousands of steps on spreading.
  """

  num_distractors: int = 100
  contrastive_temperature: float = 0.1
  diversity_weight: float = 0.1
  prediction_weight: float = 1.0
  gumbel_start: float = 2.0
  gumbel_end: float = 0.5
  gumbel_steps: int = 200_000
  crop_secs: float = 10.0
  kmeans_batches: int = 0

  def __post_init__(self):
    for name in ("num_distractors", "gumbel_steps"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name}={getattr(self, name)}: expected a positive number"
        )
    for name in ("diversity_weight", "prediction_weight", "kmeans_batches"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")
    for name in ("contrastive_temperature", "crop_secs"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name}={getattr(self, name)}: expected > 0")
    if not 0 < self.gumbel_end <= self.gumbel_start:
      raise ValueError(
        f"gumbel_end={self.gumbel_end}: expected in (0, gumbel_start="
        f"{self.gumbel_start}]"
      )

  def gumbel_temperature(self, step: jax.Array | int) -> jax.Array:
    """Temperature of the quantizer at an optimizer step."""
    ratio = self.gumbel_end / self.gumbel_start
    progress = jnp.clip(jnp.asarray(step) / self.gumbel_steps, 0.0, 1.0)
    return self.gumbel_start * ratio**progress


def draw_distractors(
  key: jax.Array, masked: jax.Array, num_distractors: int
) -> jax.Array:
  """For each frame, other masked frames of its row, with replacement.

  Args:
    key: typed key.
    masked: bool `[batch, frames]`.
    num_distractors: frames to draw.

  Returns:
    int32 `[batch, frames, distractors]`, meaningful at masked frames of rows
    with at least two of them.
  """
  frames = masked.shape[1]
  # Masked frames first, in order; the rank of a frame is its place there.
  order = jnp.argsort(~masked, axis=1, stable=True)
  rank = jnp.cumsum(masked, axis=1) - 1
  others = jnp.maximum(masked.sum(1) - 1, 1)[:, None, None]
  shape = (*masked.shape, num_distractors)
  draw = jnp.floor(jax.random.uniform(key, shape) * others).astype(jnp.int32)
  draw = jnp.minimum(draw, others - 1)
  draw = draw + (draw >= rank[..., None])  # steps over the frame itself
  draw = jnp.minimum(draw, frames - 1).reshape(len(masked), -1)
  return jnp.take_along_axis(order, draw, axis=1).reshape(shape)


def contrastive_losses(
  key: jax.Array,
  context: jax.Array,
  codes: jax.Array,
  code_ids: jax.Array,
  masked: jax.Array,
  config: MaskedPredictionConfig,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The wav2vec 2.0 loss (arXiv 2006.11477 eq. 3) of every frame.

  Args:
    key: typed key of the distractors.
    context: float32 `[batch, frames, code_dim]`.
    codes: float32 `[batch, frames, code_dim]`.
    code_ids: int32 `[batch, frames]`, which codes they are.
    masked: bool `[batch, frames]`.
    config: the loss.

  Returns:
    float32 `[batch, frames]` losses, the same of 0/1 (right code first), and
    weights: 1 at masked frames of rows that have a distractor.
  """

  def unit(x):
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-8)

  similarity = jnp.einsum("bqd,btd->bqt", unit(context), unit(codes))
  similarity = similarity / config.contrastive_temperature
  positive = jnp.diagonal(similarity, axis1=1, axis2=2)
  at = draw_distractors(key, masked, config.num_distractors)
  negative = jnp.take_along_axis(similarity, at, axis=2)
  # A distractor that was given the same code is the right answer too.
  same = jnp.take_along_axis(
    code_ids[:, :, None] == code_ids[:, None, :], at, axis=2
  )
  negative = jnp.where(same, _MASKED, negative)
  both = jnp.concatenate([positive[..., None], negative], axis=-1)
  losses = jax.nn.logsumexp(both, axis=-1) - positive
  right = (positive[..., None] > negative).all(-1)
  weights = masked & (masked.sum(1, keepdims=True) > 1)
  return losses, right.astype(jnp.float32), weights.astype(jnp.float32)


def spread(features: jax.Array) -> jax.Array:
  """Share of what features say that differs between clips, in [0, 1].

  A stack of blocks with norms behind them can end in a state where outputs
  follow from the position alone; losses then stay a little under chance.

  Args:
    features: `[batch, frames, embed]`.

  Returns:
    Variance over clips at the same frame, over the mean square.
  """
  features = features.astype(jnp.float32)
  return features.var(0).mean() / jnp.maximum((features**2).mean(), 1e-12)


class MaskedPrediction:
  """Trainable of w2v-BERT (`core/protocols.py`).

  Attributes:
    config: the loss.
    network: the network; its 'params' are all variables.
  """

  def __init__(
    self,
    config: MaskedPredictionConfig,
    network_config: w2v_bert.W2vBertConfig,
    precision: precision_lib.Precision | None = None,
  ):
    """Binds a loss to a network.

    Args:
      config: the loss.
      network_config: sizes.
      precision: dtypes; float32 by default.
    """
    self.config = config
    self.network = w2v_bert.W2vBert(
      network_config, precision or precision_lib.Precision()
    )

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """`waveform` float32 `[batch, samples]`."""
    rate_hz = self.network.config.mel.sample_rate_hz
    shape = (batch_size, round(self.config.crop_secs * rate_hz))
    return {"waveform": jax.ShapeDtypeStruct(shape, jnp.float32)}

  def init(self, key: jax.Array, batch: protocols.Batch) -> protocols.Variables:
    """Fresh boxed variables."""
    keys = {name: rng.named(key, name) for name in ("params", "mask")}
    return self.network.init(keys, batch["waveform"], deterministic=True)

  loss_terms = {
    "w2v-BERT": ("contrastive_loss", "diversity_loss", "prediction_loss")
  }

  def alarm_rules(self, batch_size: int) -> tuple[alarms.AlarmRule, ...]:
    """What a collapse looks like (w2v-BERT sec. 5: all frames get one code).

    Args:
      batch_size: of the run; a batch cannot use more codes than it has frames.
    """
    config, size = self.config, self.network.config.codebook_size
    frames = batch_size * config.crop_secs * self.network.config.frame_rate_hz
    usable = min(size, frames)
    early = max(1, round(_EARLY_SHARE * config.gumbel_steps))
    return (
      alarms.AlarmRule(
        "codebook_collapse",
        "target_perplexity",
        "below",
        max(2.0, _LEAST_USED_SHARE * usable),
        f"Most frames get the same few of {size} codes: nothing is left to "
        "predict. Start the quantizer by k-means (kmeans_batches), or raise "
        "diversity_weight.",
        patience_steps=early // 10,
        after_step=early // 20,
      ),
      alarms.AlarmRule(
        "diversity_lost",
        "diversity_loss",
        "above",
        1.0 - 0.5 * _LEAST_USED_SHARE * usable / size,
        "The mean distribution over codes has all but one point: the "
        "diversity loss does not hold the codebook open. Raise "
        "diversity_weight, or gumbel_start.",
        patience_steps=early // 10,
        after_step=early // 20,
      ),
      alarms.AlarmRule(
        "masked_accuracy_too_good",
        "masked_accuracy",
        "above",
        _TOO_GOOD_ACCURACY,
        "Masked frames are predicted so well so early only where targets are "
        "trivial: look at target_perplexity and codebook_perplexity, and at "
        "whether the contrastive loss is on.",
        until_step=early,
      ),
      alarms.AlarmRule(
        "feature_collapse",
        "feature_spread",
        "below",
        _LEAST_SPREAD,
        "The last block says nearly the same of every clip, whatever is heard "
        "in it: its tokens will tell the time and nothing else. Start anew "
        "with a lower learning rate or a longer warm-up.",
        patience_steps=early // 10,
      ),
      alarms.AlarmRule(
        "contrastive_at_chance",
        "contrastive_accuracy",
        "below",
        2.0 / (1 + config.num_distractors),
        "The context tells no frame from its distractors: the first stack "
        "does not learn. Lower the learning rate, or look at the audio.",
        patience_steps=early // 2,
        after_step=early,
      ),
    )

  @property
  def num_warm_start_batches(self) -> int:
    """Batches that `warm_start` wants."""
    return self.config.kmeans_batches

  def warm_start(
    self, variables: protocols.Variables, batches: Any, key: jax.Array
  ) -> dict[str, Any]:
    """Starts the quantizer from the frames of some batches.

    Args:
      variables: unboxed, fresh.
      batches: iterable of device batches.
      key: typed key.

    Returns:
      New 'params'.
    """
    params = variables["params"]
    frames = jax.jit(
      lambda params, x: self.network.apply(
        {"params": params}, x, method="frames"
      )
    )
    features = jnp.concatenate(
      [frames(params, batch["waveform"]) for batch in batches]
    )
    fitted = gumbel_quantize.fit(
      features.reshape(-1, features.shape[-1]),
      self.network.config.codebook_size,
      rng.named(key, "kmeans"),
    )
    return {"params": {**params, "quantizer": params["quantizer"] | fitted}}

  def loss(
    self,
    variables: protocols.Variables,
    batch: protocols.Batch,
    key: jax.Array,
    step: jax.Array,
    train: bool,
  ) -> tuple[jax.Array, protocols.LossOutput]:
    """Mean loss over masked frames of the global batch.

    Args:
      variables: unboxed, `{'params': ...}`.
      batch: `waveform` float32 `[batch, samples]`.
      key: of this step.
      step: sets the Gumbel temperature.
      train: dropout and Gumbel noise; masks are drawn in any case.

    Returns:
      Loss, and metrics `loss`, `contrastive_loss`, `diversity_loss`,
      `prediction_loss`, `contrastive_accuracy`, `masked_accuracy`,
      `codebook_perplexity` (of the mean distribution), `target_perplexity`
      (of the ids chosen; near 1 = collapse), `feature_spread` (of the last
      block, see `spread`; near 0 = collapse), `masked_share` and
      `gumbel_temperature`.
    """
    config = self.config
    temperature = config.gumbel_temperature(step)
    names = ("mask", "gumbel", "dropout")
    output = self.network.apply(
      {"params": variables["params"]},
      batch["waveform"],
      None,
      temperature,
      deterministic=not train,
      rngs={name: rng.named(key, name) for name in names},
    )
    losses, right, weights = contrastive_losses(
      rng.named(key, "distractors"),
      output.context,
      output.codes,
      output.code_ids,
      output.masked,
      config,
    )
    masked = output.masked.astype(jnp.float32)
    everywhere = jnp.ones_like(masked)
    diversity, perplexity = gumbel_quantize.diversity(
      output.quantizer_logits, everywhere
    )
    targets = output.target_ids
    log_probs = jax.nn.log_softmax(output.prediction_logits)
    prediction = -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)
    hit = (log_probs.argmax(-1) == targets).astype(jnp.float32)
    # Sharp logits: the distribution of the ids themselves.
    chosen = jax.nn.one_hot(targets, log_probs.shape[-1]) * 1e4
    _, target_perplexity = gumbel_quantize.diversity(chosen, everywhere)

    def mean(values, weights):
      return protocols.Mean((values * weights).sum(), weights.sum())

    def value(mean):
      return mean.total / jnp.maximum(mean.count, 1.0)

    one = jnp.float32(1.0)
    metrics = {
      "contrastive_loss": mean(losses, weights),
      "diversity_loss": protocols.Mean(diversity, one),
      "prediction_loss": mean(prediction[..., 0], masked),
      "contrastive_accuracy": mean(right, weights),
      "masked_accuracy": mean(hit, masked),
      "codebook_perplexity": protocols.Mean(perplexity, one),
      "target_perplexity": protocols.Mean(target_perplexity, one),
      "feature_spread": protocols.Mean(spread(output.top), one),
      "masked_share": mean(masked, everywhere),
      "gumbel_temperature": protocols.Mean(temperature, one),
    }
    loss = (
      value(metrics["contrastive_loss"])
      + config.diversity_weight * diversity
      + config.prediction_weight * value(metrics["prediction_loss"])
    )
    metrics["loss"] = protocols.Mean(loss, one)
    return loss, protocols.LossOutput({}, metrics)
