# SPDX-License-Identifier: Apache-2.0
"""One stage of the cascade as a trainable: token batches in, loss out."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import protocols, rng
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.layers import transformer
from musiclm_jax.models import code_loss
from musiclm_jax.networks import decoder_lm


@dataclasses.dataclass(frozen=True)
class TokenLMConfig:
  """A stage's language model and its loss.

  Attributes:
    spec: segments, target and crop of the stage.
    streams: token streams the spec names (others are ignored).
    transformer: shape of the network.
    aligned_conditioning: see `decoder_lm.DecoderLMConfig`.
    conditioning_dropout_rate: share of conditioning tokens that training
      hides, each on its own: a few hundred clips are else told apart by their
      MuLan codes, and text does not find all codes of audio.
    condition_dropout_rate: share of examples of which training hides all
      tokens of `dropped_streams` together, behind an id of its own. Without
      it a stage cannot be guided (`decoding/guidance.py`).
    dropped_streams: conditioning it hides; becomes part of the spec.
    target_dropout_rate: share of earlier target tokens that training hides,
      which teaches the stage to rely on its conditioning too.
    label_smoothing: share of the target spread over all codes.
    z_loss: weight of the squared log-partition (keeps bfloat16 logits small).
    loss_chunk: target positions whose logits are held at a time, in float32;
      they are then computed twice. 0 holds those of all positions.
    packed: rows hold several examples (`data.tasks.StageTaskConfig`), told
      apart by the feature `decoder_segment_ids`.
    gather: where a mesh splits parameters over 'fsdp', they are sent to the
      devices in the compute dtype as each 'layer' runs, which takes little
      memory; or once per 'step', which takes a third of the traffic.
    precision: dtypes.
  """

  spec: stages_lib.StageSpec
  streams: tuple[streams_lib.TokenStream, ...]
  transformer: transformer.TransformerConfig
  aligned_conditioning: float = 0.0
  conditioning_dropout_rate: float = 0.0
  condition_dropout_rate: float = 0.0
  dropped_streams: tuple[str, ...] = ("mulan",)
  target_dropout_rate: float = 0.0
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  loss_chunk: int = 0
  packed: bool = False
  gather: str = "layer"
  precision: precision_lib.Precision = precision_lib.Precision()

  def __post_init__(self):
    object.__setattr__(self, "streams", tuple(self.streams))
    for name in (
      "conditioning_dropout_rate",
      "condition_dropout_rate",
      "target_dropout_rate",
      "label_smoothing",
    ):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected in [0, 1)")
    for name in (
      "aligned_conditioning",
      "conditioning_dropout_rate",
      "target_dropout_rate",
    ):
      if self.packed and getattr(self, name):
        raise ValueError(
          f"{name}={getattr(self, name)}: expected none with packed=True, "
          "where conditioning stands anywhere in a row"
        )
    if self.packed and not self.spec.is_timed:
      raise ValueError(
        "packed=True: expected False for codes without repeats, which are "
        "padded to a crop"
      )
    if self.gather not in ("layer", "step"):
      raise ValueError(f"gather={self.gather!r}: expected 'layer' or 'step'")
    for name in ("z_loss", "loss_chunk"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)}: expected >= 0")
    if self.condition_dropout_rate:
      spec = dataclasses.replace(
        self.spec, dropped_streams=tuple(self.dropped_streams)
      )
      object.__setattr__(self, "spec", spec)
      if not spec.dropped_streams:
        raise ValueError(
          f"dropped_streams=() with condition_dropout_rate="
          f"{self.condition_dropout_rate}: expected at least one"
        )

  @property
  def layout(self) -> stages_lib.StageLayout:
    """Token positions of one training crop."""
    return stages_lib.StageLayout(
      self.spec, {stream.name: stream for stream in self.streams}
    )


def network_config(config: TokenLMConfig) -> decoder_lm.DecoderLMConfig:
  """The network a stage needs: vocabulary and heads follow from its layout."""
  layout = config.layout
  return decoder_lm.DecoderLMConfig(
    config.transformer,
    layout.vocab_size,
    layout.num_target_levels,
    layout.num_target_codes,
    config.aligned_conditioning,
    config.spec.pads_conditioning,
  )


class TokenLM:
  """A `core.protocols.Trainable`: next-code cross-entropy on the target."""

  def __init__(self, config: TokenLMConfig):
    """Builds the network of `config`."""
    self.config = config
    self.layout = config.layout
    self.network = decoder_lm.DecoderLM(
      network_config(config), config.precision
    )

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Features the loss reads."""
    shape = (batch_size, self.layout.length)
    shapes = {
      "decoder_input_tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
      "decoder_target_tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
      "decoder_loss_weights": jax.ShapeDtypeStruct(shape, jnp.float32),
    }
    if self.config.packed:
      shapes["decoder_segment_ids"] = jax.ShapeDtypeStruct(shape, jnp.int32)
    return shapes

  @property
  def _shapes(self) -> tuple[tuple[int, int], ...]:
    """Shapes of segments; packed, all that may be a target is the target."""
    layout = self.layout
    if not self.config.packed:
      return layout.shapes
    levels = layout.num_target_levels
    start = layout.target_start % levels
    return ((start, 1), ((layout.length - start) // levels, levels))

  def _targets(self, batch: protocols.Batch, name: str) -> jax.Array:
    """Target positions of a feature `[batch, length]`."""
    frames, levels = self._shapes[-1]
    start = decoder_lm.target_start(self._shapes)
    return batch[name][:, start : start + frames * levels]

  def init(self, key: jax.Array, batch: protocols.Batch) -> protocols.Variables:
    """Fresh parameters, boxed with logical axis names."""
    return self.network.init(key, batch["decoder_input_tokens"], self._shapes)

  def logits(
    self,
    variables: protocols.Variables,
    batch: protocols.Batch,
    dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """Teacher-forced logits, float32 `[batch, frames, levels, codes]`."""
    return self._apply("__call__", variables, batch, dropout_key)

  def _apply(
    self,
    method: str,
    variables: protocols.Variables,
    batch: protocols.Batch,
    dropout_key: jax.Array | None,
    **arguments: Any,
  ) -> Any:
    tokens = batch["decoder_input_tokens"]
    rngs = None
    if dropout_key is not None:
      rngs = {"dropout": dropout_key}
      tokens = self.hide(batch, dropout_key)
    return self.network.apply(
      {"params": self._gathered(variables["params"])},
      tokens,
      self._shapes,
      segment_ids=batch["decoder_segment_ids"] if self.config.packed else None,
      deterministic=dropout_key is None,
      rngs=rngs,
      method=method,
      **arguments,
    )

  def _gathered(self, params: Any) -> Any:
    """Parameters as the network computes with them, on a mesh."""
    return code_loss.gathered(
      self.init,
      self.input_shapes(1),
      params,
      self.config.precision.compute_dtype,
      self.config.gather == "step",
    )

  def code_scores(
    self,
    variables: protocols.Variables,
    batch: protocols.Batch,
    dropout_key: jax.Array | None = None,
  ) -> decoder_lm.CodeScores:
    """Teacher-forced scores of the target codes, `loss_chunk` at a time."""
    return self._apply(
      "code_scores",
      variables,
      batch,
      dropout_key,
      codes=self.layout.decode_target(
        self._targets(batch, "decoder_target_tokens")
      ),
      chunk_frames=-(-self.config.loss_chunk // self.layout.num_target_levels),
    )

  def hide(self, batch: protocols.Batch, dropout_key: jax.Array) -> jax.Array:
    """Input tokens `[batch, length]` of which training hides some.

    Of some examples all of `dropped_streams`, behind one id; of the others
    some tokens, never BOS, behind padding.
    """
    config, tokens = self.config, batch["decoder_input_tokens"]
    position = np.arange(self.layout.length)
    rates = np.where(
      position <= self.layout.target_start,
      config.conditioning_dropout_rate,
      config.target_dropout_rate,
    )
    rates[0] = 0.0
    key = rng.named(dropout_key, "tokens")
    shown = code_loss.hide(tokens, rates, key)
    if not config.condition_dropout_rate:
      return shown
    key = rng.named(dropout_key, "conditions")
    if config.packed:
      ids = batch["decoder_segment_ids"]  # No row has more examples than this.
      drawn = jax.random.uniform(key, (len(ids), self.layout.length + 1))
      drawn = jnp.take_along_axis(drawn, ids, axis=1)
    else:
      drawn = jax.random.uniform(key, (len(tokens), 1))
    dropped = self.layout.drop(tokens)
    is_dropped = (drawn < config.condition_dropout_rate) & (dropped != tokens)
    # Decoding leaves out all or nothing, so no token of these is padding.
    return jnp.where(is_dropped, dropped, shown)

  def loss(
    self,
    variables: protocols.Variables,
    batch: protocols.Batch,
    key: jax.Array,
    step: jax.Array,
    train: bool,
  ) -> tuple[jax.Array, protocols.LossOutput]:
    """Weighted mean loss per target token, in nats.

    Args:
      variables: unboxed, with 'params'.
      batch: see `input_shapes`; weights outside the target are ignored.
      key: of this step.
      step: unused.
      train: applies dropout, label smoothing and z-loss.

    Returns:
      The loss and a `LossOutput` with metrics 'loss', 'cross_entropy',
      'accuracy' and 'cross_entropy_level_<n>'.
    """
    del step
    scores = self.code_scores(
      variables, batch, rng.named(key, "dropout") if train else None
    )
    weights = self._targets(batch, "decoder_loss_weights")
    weights = weights.astype(jnp.float32).reshape(scores.nats.shape)
    per_token, config = scores.nats, self.config
    if train:
      per_token = code_loss.regularized(
        scores, config.label_smoothing, config.z_loss
      )
    return code_loss.weighted(scores, per_token, weights)


def token_cross_entropy(
  model: TokenLM,
  variables: protocols.Variables,
  batch: Mapping[str, jax.Array],
) -> jax.Array:
  """Nats of each target code, float32 `[batch, frames, levels]`."""
  return model.code_scores(variables, batch).nats
