# SPDX-License-Identifier: Apache-2.0
"""The depth-wise acoustic model as a trainable: token batches in, loss out.

Takes the place of the coarse and the fine stage. Batches are those of any
stage (`docs/architecture.md`), of `stages.acoustic_stage`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import protocols, rng
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.layers import transformer
from musiclm_jax.models import acoustic_alarms, acoustic_trainable, code_loss
from musiclm_jax.networks import decoder_lm, depthwise_lm


@dataclasses.dataclass(frozen=True)
class DepthwiseConfig:
  """The model and its loss.

  Attributes:
    spec: segments, target and crop.
    streams: token streams the spec names (others are ignored).
    transformer: over frames.
    depth: over the levels of a frame.
    prefix_conditioning: see `depthwise_lm.DepthwiseLMConfig`.
    conditioning_dropout_rate: share of conditioning tokens that training
      hides, as in `token_lm.TokenLMConfig`.
    target_dropout_rate: share of codes of earlier frames that it hides.
    label_smoothing: share of the target spread over all codes.
    z_loss: weight of the squared log-partition.
    loss_chunk: target codes whose levels are done at a time; they are then
      computed twice. 0 does all at once.
    gather: see `token_lm.TokenLMConfig`.
    precision: dtypes.
    alarms: when the training calls out.
  """

  spec: stages_lib.StageSpec
  streams: tuple[streams_lib.TokenStream, ...]
  transformer: transformer.TransformerConfig
  depth: transformer.TransformerConfig
  prefix_conditioning: bool = True
  conditioning_dropout_rate: float = 0.0
  target_dropout_rate: float = 0.0
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  loss_chunk: int = 0
  gather: str = "layer"
  precision: precision_lib.Precision = precision_lib.Precision()
  alarms: acoustic_alarms.AcousticAlarmConfig = (
    acoustic_alarms.AcousticAlarmConfig()
  )

  def __post_init__(self):
    object.__setattr__(self, "streams", tuple(self.streams))
    for name in (
      "conditioning_dropout_rate",
      "target_dropout_rate",
      "label_smoothing",
    ):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected in [0, 1)")
    if self.gather not in ("layer", "step"):
      raise ValueError(f"gather={self.gather!r}: expected 'layer' or 'step'")
    for name in ("z_loss", "loss_chunk"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)}: expected >= 0")

  @property
  def layout(self) -> stages_lib.StageLayout:
    """Token positions of one training crop."""
    return stages_lib.StageLayout(
      self.spec, {stream.name: stream for stream in self.streams}
    )

  @property
  def network(self) -> depthwise_lm.DepthwiseLMConfig:
    """The network: vocabulary and heads follow from the layout."""
    layout = self.layout
    return depthwise_lm.DepthwiseLMConfig(
      self.transformer,
      self.depth,
      layout.vocab_size,
      layout.num_target_levels,
      layout.target_stream.codebook_size,
      self.prefix_conditioning,
    )


class Depthwise(acoustic_trainable.AcousticTrainable):
  """A `core.protocols.Trainable`: cross-entropy of all codes of a frame.

  Attributes:
    config: as given.
    layout: of a crop.
    network: a `DepthwiseLM`.
    loss_terms: by level.
  """

  def __init__(self, config: DepthwiseConfig):
    """Builds the network of `config`."""
    super().__init__(
      config, depthwise_lm.DepthwiseLM(config.network, config.precision)
    )

  def _codes(self, batch: protocols.Batch) -> jax.Array:
    tokens = batch["decoder_target_tokens"][:, self.layout.target_start :]
    return self.layout.decode_target(tokens)

  def init(self, key: jax.Array, batch: protocols.Batch) -> protocols.Variables:
    """Fresh parameters, boxed with logical axis names."""
    tokens = batch["decoder_target_tokens"]
    return self.network.init(
      key, tokens, self.layout.shapes, self._codes(batch)
    )

  def code_scores(
    self,
    variables: protocols.Variables,
    batch: protocols.Batch,
    dropout_key: jax.Array | None = None,
  ) -> decoder_lm.CodeScores:
    """Teacher-forced scores of the target codes, `loss_chunk` at a time."""
    config, layout = self.config, self.layout
    tokens, rngs = batch["decoder_target_tokens"], None
    if dropout_key is not None:
      rngs = {"dropout": dropout_key}
      rates = np.where(
        np.arange(layout.length) < layout.target_start,
        config.conditioning_dropout_rate,
        config.target_dropout_rate,
      )
      key = rng.named(dropout_key, "tokens")
      tokens = code_loss.hide(tokens, rates, key)
    params = self.gathered_params(variables)
    return self.network.apply(
      {"params": params},
      tokens,
      layout.shapes,
      self._codes(batch),
      chunk_frames=-(-config.loss_chunk // layout.num_target_levels),
      deterministic=dropout_key is None,
      rngs=rngs,
      method="code_scores",
    )

  def loss(
    self,
    variables: protocols.Variables,
    batch: protocols.Batch,
    key: jax.Array,
    step: jax.Array,
    train: bool,
  ) -> tuple[jax.Array, protocols.LossOutput]:
    """Weighted mean loss per code, in nats.

    Args:
      variables: unboxed, with 'params'.
      batch: see `input_shapes`; weights outside the target are ignored.
      key: of this step.
      step: unused.
      train: applies dropout, label smoothing and z-loss.

    Returns:
      The loss and a `LossOutput`, see `code_loss.weighted`.
    """
    del step
    scores = self.code_scores(
      variables, batch, rng.named(key, "dropout") if train else None
    )
    weights = batch["decoder_loss_weights"][:, self.layout.target_start :]
    weights = weights.astype(jnp.float32).reshape(scores.nats.shape)
    per_code, config = scores.nats, self.config
    if train:
      per_code = code_loss.regularized(
        scores, config.label_smoothing, config.z_loss
      )
    return code_loss.weighted(scores, per_code, weights)
