# SPDX-License-Identifier: Apache-2.0
"""The frozen depth-wise back end: a step per frame, a small one per level."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.decoding import framewise
from musiclm_jax.decoding import sampling as sampling_lib
from musiclm_jax.layers import transformer
from musiclm_jax.networks import depthwise_lm
from musiclm_jax.systems import acoustic_stage


def generate_program(
  network: depthwise_lm.DepthwiseLM,
  offsets: np.ndarray,
  params: Any,
  tokens: jax.Array,
  keys: jax.Array,
  first_frames: jax.Array,
  forced: jax.Array,
  num_forced: jax.Array,
  shapes: tuple[tuple[int, int], ...],
  sampling: tuple[sampling_lib.SamplingConfig, ...],
) -> jax.Array:
  """Prefill, then every frame, as one program.

  Args:
    network: laid out for decoding.
    offsets: int32 `[levels]`, token id of code 0 of each level.
    params: of the network.
    tokens: int32 `[batch, prefix]`, conditioning and known frames.
    keys: typed keys `[batch]`.
    first_frames: int32 `[batch]`, see `framewise.decode`.
    forced: int32 `[batch, frames, levels]`: all frames that `tokens` lacks.
    num_forced: see `framewise.decode`.
    shapes: of the segments (static).
    sampling: of each level (static).

  Returns:
    int32 codes in the shape of `forced`.
  """

  def apply(method, cache, *args):
    out, state = network.apply(
      {"params": params, "cache": cache}, *args, method=method, mutable="cache"
    )
    return state["cache"], out

  def level_step(cache, hidden, code, level):
    return apply("depth_step", cache or {}, hidden, code, level)

  cache, hidden = apply("prefill", {}, tokens, shapes)
  return framewise.decode(
    lambda cache, codes: apply("step", cache, codes + offsets),
    level_step,
    cache,
    hidden,
    keys,
    first_frames,
    forced.shape[1],
    sampling,
    forced,
    num_forced,
  )


class DepthwiseStage(acoustic_stage.AcousticStage):
  """`AcousticStage` of `networks/depthwise_lm.py`.

  `score` is teacher-forced: the likelihood that is sampled from.
  """

  KIND = "acoustic_depthwise"
  NETWORK = depthwise_lm.DepthwiseLMConfig
  STATIC = ("shapes", "sampling")

  @classmethod
  def decode_network(
    cls,
    network: depthwise_lm.DepthwiseLMConfig,
    precision: precision_lib.Precision,
  ) -> depthwise_lm.DepthwiseLM:
    """Unrolled: each layer has a cache of its own, updated in place."""
    unrolled = {
      name: dataclasses.replace(
        getattr(network, name), scan_layers=False, remat="none"
      )
      for name in ("transformer", "depth")
    }
    config = dataclasses.replace(network, **unrolled)
    return depthwise_lm.DepthwiseLM(config, precision)

  @classmethod
  def decode_params(cls, params: Mapping[str, Any]) -> dict[str, Any]:
    """Layers one by one."""
    return transformer.unstack_layers(params)

  def _score_program(self, params, tokens, codes, shapes):
    scores = self._network.apply(
      {"params": params}, tokens, shapes, codes, method="code_scores"
    )
    return scores.nats

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
    tokens = (prefix + layout.target_offsets).reshape(len(prefix), -1)
    return self._generate(
      self._params,
      np.concatenate([conditioning, tokens], axis=1).astype(np.int32),
      keys,
      first_frames + prefix.shape[1],
      forced,
      num_forced,
      shapes=layout.shapes,
      sampling=sampling,
    )
