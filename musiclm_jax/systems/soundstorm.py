# SPDX-License-Identifier: Apache-2.0
"""The frozen SoundStorm: all frames of a window at once, in a few passes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.decoding import masked
from musiclm_jax.decoding import sampling as sampling_lib
from musiclm_jax.networks import decoder_lm, soundstorm
from musiclm_jax.systems import acoustic_stage


def generate_program(
  network: soundstorm.SoundStormNet,
  offsets: np.ndarray,
  params: Any,
  tokens: jax.Array,
  keys: jax.Array,
  codes: jax.Array,
  known: jax.Array,
  first_frames: jax.Array,
  shapes: tuple[tuple[int, int], ...],
  schedule: masked.MaskedSchedule,
  sampling: tuple[sampling_lib.SamplingConfig, ...],
) -> jax.Array:
  """All passes over one window, as one program.

  Args:
    network: laid out for decoding.
    offsets: int32 `[levels]`, token id of code 0 of each level.
    params: of the network.
    tokens: int32 `[batch, target_start]`, conditioning.
    keys: typed keys `[batch]`.
    codes: int32 `[batch, frames, levels]`.
    known: bool, same shape.
    first_frames: int32 `[batch]`, see `masked.decode`.
    shapes: of the segments (static).
    schedule: passes of each level (static).
    sampling: of each level (static).

  Returns:
    int32 codes `[batch, frames, levels]`.
  """
  told = network.apply({"params": params}, tokens, shapes, method="told")

  def logits(codes, masked_codes, level):
    return network.apply(
      {"params": params},
      told,
      codes + offsets,
      masked_codes,
      level,
      method="level_logits",
    )

  return masked.decode(
    logits, codes, known, keys, first_frames, schedule, sampling
  )


class SoundStormStage(acoustic_stage.AcousticStage):
  """`AcousticStage` of `networks/soundstorm.py`.

  `score` is the likelihood of one pass per level with nothing known of that
  level: of a decoding that gives each level one pass and samples. More passes
  for the first level, as published, have no likelihood that can be computed.

  Attributes:
    schedule: passes of each level; may be set. `masked.drawn` unless it is.
  """

  KIND = "acoustic_soundstorm"
  NETWORK = soundstorm.SoundStormNetConfig
  STATIC = ("shapes", "schedule", "sampling")

  schedule: masked.MaskedSchedule

  def __init__(self, *args, **kwargs):
    """As `AcousticStage`."""
    super().__init__(*args, **kwargs)
    self.schedule = masked.drawn(self.spec.target.num_levels)

  def describe_decoding(self) -> dict[str, Any]:
    """The schedule."""
    return self.schedule.describe()

  @classmethod
  def decode_network(
    cls,
    network: soundstorm.SoundStormNetConfig,
    precision: precision_lib.Precision,
  ) -> soundstorm.SoundStormNet:
    """Nothing is kept from pass to pass: scanned layers stay scanned."""
    shape = dataclasses.replace(network.conformer, remat=False)
    config = dataclasses.replace(network, conformer=shape)
    return soundstorm.SoundStormNet(config, precision)

  @classmethod
  def decode_params(cls, params: Mapping[str, Any]) -> dict[str, Any]:
    """As trained."""
    return dict(params)

  def _score_program(self, params, tokens, codes, shapes):
    network, levels = self._network, shapes[-1][1]
    told = network.apply({"params": params}, tokens, shapes, method="told")

    def one(level):
      hidden = jnp.arange(levels) >= level
      logits = network.apply(
        {"params": params},
        told,
        codes + self._offsets,
        jnp.broadcast_to(hidden, codes.shape),
        level,
        method="level_logits",
      )
      picked = jax.lax.dynamic_index_in_dim(codes, level, 2, keepdims=False)
      return decoder_lm.code_nats(logits, picked)

    return jnp.moveaxis(jax.lax.map(one, jnp.arange(levels)), 0, -1)

  def _generate_program(self, params, tokens, keys, *args, **static):
    return generate_program(
      self._network, self._offsets, params, tokens, keys, *args, **static
    )

  def _make_window(
    self,
    layout: stages_lib.StageLayout,
    conditioning: np.ndarray,
    prefix: np.ndarray,
    forced: np.ndarray,
    num_forced: np.ndarray,
    first_frames: np.ndarray,
    keys: jax.Array,
    sampling: tuple[sampling_lib.SamplingConfig, ...],
  ) -> jax.Array:
    codes = np.concatenate([prefix, forced], axis=1)
    num_prefixed = prefix.shape[1]
    num_known = num_prefixed + num_forced
    is_known = np.arange(codes.shape[1]) < num_known[:, None]
    made = self._generate(
      self._params,
      conditioning,
      keys,
      codes,
      np.repeat(is_known[..., None], codes.shape[2], axis=2),
      first_frames,
      shapes=layout.shapes,
      schedule=self.schedule,
      sampling=sampling,
    )
    return made[:, num_prefixed:]
