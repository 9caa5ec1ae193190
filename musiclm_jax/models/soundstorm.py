# SPDX-License-Identifier: Apache-2.0
"""SoundStorm as a trainable: token batches in, loss on masked codes out.

Masking after arXiv 2305.09636 sec. 3.2. Batches are those of any stage
(`docs/architecture.md`), of `stages.acoustic_stage`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import protocols, rng
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.layers import conformer as conformer_lib
from musiclm_jax.models import acoustic_alarms, acoustic_trainable, code_loss
from musiclm_jax.networks import decoder_lm, soundstorm


@dataclasses.dataclass(frozen=True)
class SoundStormConfig:
  """The model and its loss.

  Attributes:
    spec: segments, target and crop.
    streams: token streams the spec names (others are ignored).
    conformer: over frames.
    first_level_share: of training rows whose level is the first one, beside
      the share that an equal draw gives it; 0 is published.
    conditioning_dropout_rate: share of conditioning tokens that training
      hides, as in `token_lm.TokenLMConfig`.
    label_smoothing: share of the target spread over all codes.
    z_loss: weight of the squared log-partition.
    gather: see `token_lm.TokenLMConfig`.
    precision: dtypes.
    alarms: when the training calls out.
  """

  spec: stages_lib.StageSpec
  streams: tuple[streams_lib.TokenStream, ...]
  conformer: conformer_lib.ConformerConfig
  first_level_share: float = 0.0
  conditioning_dropout_rate: float = 0.0
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  gather: str = "layer"
  precision: precision_lib.Precision = precision_lib.Precision()
  alarms: acoustic_alarms.AcousticAlarmConfig = (
    acoustic_alarms.AcousticAlarmConfig()
  )

  def __post_init__(self):
    object.__setattr__(self, "streams", tuple(self.streams))
    for name in (
      "first_level_share",
      "conditioning_dropout_rate",
      "label_smoothing",
    ):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected in [0, 1)")
    if self.gather not in ("layer", "step"):
      raise ValueError(f"gather={self.gather!r}: expected 'layer' or 'step'")
    if self.z_loss < 0:
      raise ValueError(f"z_loss={self.z_loss}: expected >= 0")

  @property
  def layout(self) -> stages_lib.StageLayout:
    """Token positions of one training crop."""
    return stages_lib.StageLayout(
      self.spec, {stream.name: stream for stream in self.streams}
    )

  @property
  def network(self) -> soundstorm.SoundStormNetConfig:
    """The network: vocabulary and heads follow from the layout."""
    layout = self.layout
    return soundstorm.SoundStormNetConfig(
      self.conformer,
      layout.vocab_size,
      layout.num_target_levels,
      layout.target_stream.codebook_size,
    )


class Masking(NamedTuple):
  """What is hidden from the network, and what it is asked for.

  Attributes:
    levels: int32 `[batch]`: the level that a row learns.
    masked: bool `[batch, frames, levels]`.
    asked: bool `[batch, frames]`: masked frames of that level.
  """

  levels: jax.Array
  masked: jax.Array
  asked: jax.Array


def draw_masking(
  key: jax.Array,
  num_real: jax.Array,
  num_frames: int,
  num_levels: int,
  first_level_share: float = 0.0,
) -> Masking:
  """The masking of a batch (SoundStorm sec. 3.2).

  A prompt of uniform length is never masked. After it, of one level, drawn
  anew for each row, each frame is masked with the chance cos(u), u uniform in
  [0, pi / 2]; coarser levels are seen and finer ones hidden.

  Args:
    key: of this step.
    num_real: int32 `[batch]`, frames that are not padding.
    num_frames: of a row.
    num_levels: of a frame.
    first_level_share: see `SoundStormConfig`.
  """
  batch = num_real.shape[0]

  def uniform(name, shape):
    return jax.random.uniform(rng.named(key, name), shape)

  prompts = jnp.floor(uniform("prompt", (batch,)) * num_real)
  levels = jnp.floor(uniform("level", (batch,)) * num_levels).astype(jnp.int32)
  is_first = uniform("first_level", (batch,)) < first_level_share
  levels = jnp.where(is_first, 0, levels)
  rates = jnp.cos(uniform("rate", (batch,)) * (np.pi / 2))
  drawn = uniform("frames", (batch, num_frames)) < rates[:, None]
  free = jnp.arange(num_frames) >= prompts[:, None]
  asked = drawn & free
  level = jnp.arange(num_levels)
  masked = jnp.where(
    level == levels[:, None, None],
    asked[..., None],
    free[..., None] & (level > levels[:, None, None]),
  )
  return Masking(levels, masked, asked)


class SoundStorm(acoustic_trainable.AcousticTrainable):
  """A `core.protocols.Trainable`: cross-entropy of masked codes of a level.

  Attributes:
    config: as given.
    layout: of a crop.
    network: a `SoundStormNet`.
    loss_terms: by level.
  """

  def __init__(self, config: SoundStormConfig):
    """Builds the network of `config`."""
    super().__init__(
      config, soundstorm.SoundStormNet(config.network, config.precision)
    )

  def init(self, key: jax.Array, batch: protocols.Batch) -> protocols.Variables:
    """Fresh parameters, boxed with logical axis names."""
    tokens, shapes = batch["decoder_target_tokens"], self.layout.shapes
    masked = jnp.ones((len(tokens), *shapes[-1]), bool)
    return self.network.init(key, tokens, shapes, masked, jnp.int32(0))

  def _target(self, batch: protocols.Batch, name: str) -> jax.Array:
    """`[batch, frames, levels]` of a feature."""
    array = batch[name][:, self.layout.target_start :]
    return array.reshape(len(array), *self.layout.shapes[-1])

  def masked_scores(
    self,
    variables: protocols.Variables,
    batch: protocols.Batch,
    masking: Masking,
    dropout_key: jax.Array | None = None,
  ) -> decoder_lm.CodeScores:
    """Scores of the codes of one level of each row, `[batch, frames]`."""
    config, layout = self.config, self.layout
    tokens, rngs = batch["decoder_target_tokens"], None
    target = self._target(batch, "decoder_target_tokens")
    if dropout_key is not None:
      rngs = {"dropout": dropout_key}
      rates = np.where(
        np.arange(layout.length) < layout.target_start,
        config.conditioning_dropout_rate,
        0.0,
      )
      key = rng.named(dropout_key, "tokens")
      tokens = code_loss.hide(tokens, rates, key)
    params = self.gathered_params(variables)
    logits = self.network.apply(
      {"params": params},
      tokens,
      layout.shapes,
      masking.masked,
      masking.levels,
      target[..., 0] != stages_lib.PAD_ID,
      deterministic=dropout_key is None,
      rngs=rngs,
    )
    codes = target - jnp.asarray(layout.target_offsets)
    codes = jnp.take_along_axis(codes, masking.levels[:, None, None], axis=-1)
    return decoder_lm.scores_of_logits(logits, codes[..., 0])

  def loss(
    self,
    variables: protocols.Variables,
    batch: protocols.Batch,
    key: jax.Array,
    step: jax.Array,
    train: bool,
  ) -> tuple[jax.Array, protocols.LossOutput]:
    """Mean loss per masked code of the drawn levels, in nats.

    Args:
      variables: unboxed, with 'params'.
      batch: see `input_shapes`; weights outside the target are ignored.
      key: of this step; draws the masking, in evaluation too.
      step: unused.
      train: applies dropout, label smoothing and z-loss.

    Returns:
      The loss and a `LossOutput`, see `code_loss.weighted`; 'cross_entropy' is
      no likelihood: it depends on how much is masked.
    """
    del step
    config, layout = self.config, self.layout
    weights = self._target(batch, "decoder_loss_weights").astype(jnp.float32)
    tokens = self._target(batch, "decoder_target_tokens")
    masking = draw_masking(
      rng.named(key, "masking"),
      (tokens[..., 0] != stages_lib.PAD_ID).sum(1),
      *layout.shapes[-1],
      config.first_level_share,
    )
    scores = self.masked_scores(
      variables, batch, masking, rng.named(key, "dropout") if train else None
    )
    per_code = scores.nats
    if train:
      per_code = code_loss.regularized(
        scores, config.label_smoothing, config.z_loss
      )
    level = jnp.arange(layout.num_target_levels)
    asked = masking.asked[..., None] & (level == masking.levels[:, None, None])
    return code_loss.weighted(
      decoder_lm.CodeScores(*(one[..., None] for one in scores)),
      per_code[..., None],
      weights * asked,
    )
