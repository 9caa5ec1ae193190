# SPDX-License-Identifier: Apache-2.0
"""Frozen back ends that make all acoustic levels, beside coarse and fine stage.

Codes of the conditioning of a whole item flow in, its acoustic codes flow out,
window after window. What the back ends share; each is a module of its own.
"""

import abc
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import artifacts, errors
from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.decoding import continuation
from musiclm_jax.decoding import sampling as sampling_lib
from musiclm_jax.systems import window_conditioning

# MusicLM sec. 4.1: levels of the coarse stage, and temperatures of both.
NUM_COARSE_LEVELS = 4
TEMPERATURES = (0.95, 0.4)


Sampling = float | sampling_lib.SamplingConfig


def level_sampling(
  sampling: Sampling | Sequence[Sampling], num_levels: int
) -> tuple[sampling_lib.SamplingConfig, ...]:
  """How the codes of each level are drawn.

  Args:
    sampling: of all levels, or of the coarse and of the fine ones; a number is
      the temperature.
    num_levels: of a frame.
  """
  if not isinstance(sampling, Sequence):
    sampling = (sampling, sampling)
  coarse, fine = map(sampling_lib.as_config, sampling)
  return tuple(
    coarse if level < NUM_COARSE_LEVELS else fine for level in range(num_levels)
  )


def export(
  directory: str | os.PathLike,
  kind: str,
  spec: stages_lib.StageSpec,
  streams: Sequence[streams_lib.TokenStream],
  network: Any,
  params: Mapping[str, Any],
  tokenizers: Mapping[str, str],
  precision: precision_lib.Precision | None = None,
  metadata: Mapping[str, Any] | None = None,
) -> str:
  """Writes a trained back end as an artefact.

  Args:
    directory: where; replaced when it exists.
    kind: of artefact: the `KIND` of a back end.
    spec: its stage.
    streams: every stream the spec names.
    network: the configuration of its network.
    params: plain nested dict of arrays, as trained.
    tokenizers: fingerprints of the tokenizers it was trained on, by bundle
      name.
    precision: dtypes it was trained in.
    metadata: provenance (step, versions).

  Returns:
    The fingerprint.
  """
  config = {
    "spec": artifacts.config_to_dict(spec),
    "streams": [artifacts.config_to_dict(stream) for stream in streams],
    "network": artifacts.config_to_dict(network),
    "precision": artifacts.config_to_dict(
      precision or precision_lib.Precision()
    ),
    "tokenizers": dict(tokenizers),
  }
  arrays = jax.tree.map(np.asarray, dict(params))
  return artifacts.save(directory, kind, config, arrays, metadata)


class AcousticStage(abc.ABC):
  """Generates and scores acoustic codes of all levels.

  Attributes:
    KIND: of its artefact, and its name in a bundle.
    NETWORK: class of the configuration of its network.
    spec: the stage.
    streams: token streams by name.
    tokenizers: fingerprints of the tokenizers it was trained on.
    fingerprint: of the artefact; '' if built from parameters.
  """

  KIND: str
  NETWORK: type

  def __init__(
    self,
    spec: stages_lib.StageSpec,
    streams: Sequence[streams_lib.TokenStream],
    network: Any,
    params: Mapping[str, Any],
    precision: precision_lib.Precision | None = None,
    tokenizers: Mapping[str, str] | None = None,
    fingerprint: str = "",
  ):
    """Puts the weights on the device.

    Args:
      spec: the stage.
      streams: every stream the spec names.
      network: the shape the parameters were trained in.
      params: plain nested dict of arrays.
      precision: dtypes; on CPU everything is float32 (the fast one there).
      tokenizers: see the class.
      fingerprint: see the class.
    """
    self.spec = spec
    self.streams = {stream.name: stream for stream in streams}
    self.tokenizers = dict(tokenizers or {})
    self.fingerprint = fingerprint
    precision = precision or precision_lib.Precision()
    if jax.default_backend() == "cpu":
      precision = precision_lib.Precision()
    self._network = self.decode_network(network, precision)
    self._params = jax.tree.map(
      lambda leaf: jnp.asarray(leaf, precision.compute_dtype),
      self.decode_params(params),
    )
    self._build_programs()

  @classmethod
  def load(cls, directory: str | os.PathLike) -> "AcousticStage":
    """Loads its artefact.

    Raises:
      UserError: if it is missing, damaged or of another kind.
    """
    artifact = artifacts.load(directory, cls.KIND)
    config, build = artifact.config, artifacts.config_from_dict
    try:
      return cls(
        build(stages_lib.StageSpec, config["spec"]),
        [build(streams_lib.TokenStream, one) for one in config["streams"]],
        build(cls.NETWORK, config["network"]),
        artifact.arrays,
        build(precision_lib.Precision, config["precision"]),
        config["tokenizers"],
        artifact.fingerprint,
      )
    except KeyError as error:
      raise errors.UserError(
        f"{cls.KIND} artefact at {directory} has no {error} in its config"
      ) from error

  @classmethod
  @abc.abstractmethod
  def decode_network(
    cls, network: Any, precision: precision_lib.Precision
  ) -> Any:
    """The trained network, laid out for decoding."""

  @classmethod
  @abc.abstractmethod
  def decode_params(cls, params: Mapping[str, Any]) -> dict[str, Any]:
    """Trained parameters as those of `decode_network`."""

  @abc.abstractmethod
  def _build_programs(self) -> None:
    """Compiled functions of `_score_window` and `_make_window`."""

  @abc.abstractmethod
  def _score_window(
    self, layout: stages_lib.StageLayout, tokens: np.ndarray
  ) -> jax.Array:
    """Nats of the target codes of whole sequences `[batch, length]`."""

  @abc.abstractmethod
  def _make_window(
    self,
    layout: stages_lib.StageLayout,
    conditioning: np.ndarray,
    known: np.ndarray,
    first_frame: int,
    keys: jax.Array,
    sampling: tuple[sampling_lib.SamplingConfig, ...],
  ) -> np.ndarray:
    """All codes of one window, int32 `[batch, frames, levels]`.

    Args:
      layout: of the window.
      conditioning: its tokens, `[batch, target_start]`.
      known: leading codes, `[batch, known frames, levels]`; part of the result.
      first_frame: of the window in the item; only randomness depends on it.
      keys: typed keys `[batch]`.
      sampling: of each level.
    """

  @property
  def target_stream(self) -> streams_lib.TokenStream:
    """Stream of the generated codes."""
    return self.streams[self.spec.target.stream]

  @property
  def window_frames(self) -> int:
    """Target frames of one training crop."""
    return self.target_stream.num_frames(self.spec.crop_secs)

  @property
  def prefix_frames(self) -> int:
    """Frames that a window shares with the one before."""
    return self.window_frames // 2

  def layout(self, num_frames: int) -> stages_lib.StageLayout:
    """Token positions of a window."""
    secs = num_frames / self.target_stream.frame_rate_hz
    return stages_lib.StageLayout(self.spec, self.streams, secs)

  def score(self, codes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Negative log-probability of the acoustic codes, as the back end defines.

    Args:
      codes: by stream, int32 `[batch, frames, codebooks]`, all over the same
        duration.

    Returns:
      float32 nats `[batch, frames, levels]`.

    Raises:
      ValueError: if the frames of the streams do not fit together.
    """
    layout = self.layout(np.shape(codes[self.spec.target.stream])[-2])
    return np.asarray(self._score_window(layout, layout.encode(codes)))

  def generate(
    self,
    conditioning: Mapping[str, np.ndarray],
    seconds: float,
    keys: jax.Array,
    sampling: Sampling | Sequence[Sampling] = TEMPERATURES,
    given: np.ndarray | None = None,
  ) -> np.ndarray:
    """`generate_long` for a duration."""
    frames = self.target_stream.num_frames(seconds)
    return self.generate_long(conditioning, frames, sampling, keys, given=given)

  def generate_long(
    self,
    conditioning: Mapping[str, np.ndarray],
    total_frames: int,
    sampling: Sampling | Sequence[Sampling],
    keys: jax.Array,
    negative: Mapping[str, np.ndarray] | None = None,
    given: np.ndarray | None = None,
  ) -> np.ndarray:
    """Acoustic codes of any length: half of each window is known.

    Args:
      conditioning: codes by stream over the whole item, int32 `[batch, frames,
        codebooks]`; of a stream with windows all that are stored.
      total_frames: to make, with the given ones.
      sampling: see `level_sampling`.
      keys: typed keys `[batch]`. An item depends on its own codes and key
        only, not on its neighbours.
      negative: as stages take it; ignored, for there is no guidance here.
      given: first codes of the item, `[batch, frames, levels]`; they are the
        begin of the result.

    Returns:
      int32 `[batch, total_frames, levels]`.

    Raises:
      ValueError: if the conditioning is too short.
    """
    del negative
    levels, batch = self.spec.target.num_levels, keys.shape[0]
    plan = continuation.plan_windows(
      total_frames, self.window_frames, self.prefix_frames
    )
    codes = np.zeros((batch, 0, levels), np.int32)
    if given is not None:
      codes = np.asarray(given, np.int32)[:, :total_frames]
    by_level = level_sampling(sampling, levels)
    for window in plan:
      known = codes[:, window.start : window.end]
      if known.shape[1] == window.num_frames:
        continue
      layout = self.layout(window.num_frames)
      cut = window_conditioning.cut(layout, conditioning, window)
      tokens = [
        layout.encode_segment(index, cut[segment.stream])
        for index, segment in enumerate(self.spec.segments[:-1])
      ]
      made = self._make_window(
        layout,
        np.concatenate(tokens, axis=1).astype(np.int32),
        known,
        window.start,
        keys,
        by_level,
      )
      new = np.asarray(made)[:, known.shape[1] :]
      codes = np.concatenate([codes, new], axis=1)
    return codes

  def num_windows(self, seconds: float) -> int:
    """Windows that `generate` makes one after the other."""
    new = self.window_frames - self.prefix_frames
    rest = self.target_stream.num_frames(seconds) - self.window_frames
    return 1 + max(0, math.ceil(rest / new))
