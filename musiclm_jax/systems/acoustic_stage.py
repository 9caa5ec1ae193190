# SPDX-License-Identifier: Apache-2.0
"""Frozen back ends that make all acoustic levels, beside coarse and fine stage.

Codes of the conditioning of a window flow in, its acoustic codes flow out;
`stage_windows.py` makes items of any length of that. What the back ends share;
each is a module of its own.
"""

import abc
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import artifacts
from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.decoding import sampling as sampling_lib
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.systems import (
  spread_rows,
  stage_config,
  stage_tokens,
  stage_windows,
)

# MusicLM sec. 4.1: levels of the coarse stage, and temperatures of both.
NUM_COARSE_LEVELS = 4
TEMPERATURES = (0.95, 0.4)


def level_sampling(
  sampling: stage_windows.Sampling, num_levels: int
) -> tuple[sampling_lib.SamplingConfig, ...]:
  """How the codes of each level are drawn.

  Args:
    sampling: of all levels, or of the coarse and of the fine ones; a number is
      the temperature.
    num_levels: of a frame.

  Raises:
    ValueError: if guidance is asked for.
  """
  if not isinstance(sampling, Sequence):
    sampling = (sampling, sampling)
  coarse, fine = map(sampling_lib.as_config, sampling)
  for one in (coarse, fine):
    if one.guidance != 1:
      raise ValueError(
        f"guidance={one.guidance}: expected 1, back ends are not guided"
      )
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


class AcousticStage(stage_windows.StageWindows):
  """Generates and scores acoustic codes of all levels.

  Attributes:
    KIND: of its artefact, and its name in a bundle.
    NETWORK: class of the configuration of its network.
    STATIC: settings that are compiled into `_generate_program`.
    spec: the stage.
    streams: token streams by name.
    tokenizers: fingerprints of the tokenizers it was trained on.
    fingerprint: of the artefact; '' if built from parameters.
  """

  KIND: str
  NETWORK: type
  STATIC: tuple[str, ...]

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
    self._offsets = stages_lib.StageLayout(spec, self.streams).target_offsets
    self._params = jax.tree.map(
      lambda leaf: jnp.asarray(leaf, precision.compute_dtype),
      self.decode_params(params),
    )
    self._score = jax.jit(self._score_program, static_argnames=("shapes",))
    self._generate = jax.jit(
      self._generate_program, static_argnames=self.STATIC
    )

  def describe_decoding(self) -> dict[str, Any]:
    """What else than sampling decides the codes, as JSON-compatible values."""
    return {}

  @classmethod
  def load(cls, directory: str | os.PathLike) -> "AcousticStage":
    """Loads its artefact.

    Raises:
      UserError: if it is missing, damaged or of another kind.
    """
    artifact = artifacts.load(directory, cls.KIND)
    with stage_config.reading(cls.KIND, directory):
      fields = stage_config.parse(
        artifact.config, network=cls.NETWORK, precision=precision_lib.Precision
      )
    return cls(
      params=artifact.arrays, fingerprint=artifact.fingerprint, **fields
    )

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
  def _score_program(
    self,
    params: Any,
    tokens: jax.Array,
    codes: jax.Array,
    shapes: tuple[tuple[int, int], ...],
  ) -> jax.Array:
    """Nats of the target codes of whole sequences `[batch, length]`."""

  @abc.abstractmethod
  def _generate_program(
    self, params: Any, tokens: jax.Array, keys: jax.Array, *args, **static
  ) -> jax.Array:
    """What `_make_window` calls; see `spread_rows.SpreadRows`."""

  @abc.abstractmethod
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
    """Codes of one window after the prefix, in the shape of `forced`.

    Args:
      layout: of the window.
      conditioning: its tokens, `[batch, target_start]`.
      prefix: known leading codes, int32 `[batch, frames, levels]`, perhaps of
        no frames.
      forced: of all frames after the prefix.
      num_forced: int32 `[batch]`, leading frames of `forced` that are known.
      first_frames: int32 `[batch]`, of the window in the item; only randomness
        depends on it.
      keys: typed keys `[batch]`.
      sampling: of each level.
    """

  def num_rows(self, keys: jax.Array, sampling: stage_windows.Sampling) -> int:
    """One for each item: there is no guidance."""
    del sampling
    return keys.shape[0]

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
    layout = self._layout(np.shape(codes[self.spec.target.stream])[-2])
    tokens = layout.encode(codes)
    return np.asarray(
      self._score(
        self._params,
        tokens,
        layout.decode_target(tokens[:, layout.target_start :]),
        shapes=layout.shapes,
      )
    )

  def spread(self, partitioner: partitioner_lib.Partitioner) -> None:
    """Splits rows over the devices of a mesh (`spread_rows.py`)."""
    self._params = jax.device_put(self._params, partitioner.replicated)
    self._generate = spread_rows.SpreadRows(partitioner, self._generate_program)

  def generate(
    self,
    conditioning: Mapping[str, np.ndarray],
    prefix: np.ndarray | None,
    num_frames: int,
    sampling: stage_windows.Sampling,
    keys: jax.Array,
    first_frames: np.ndarray | int = 0,
    forced: np.ndarray | None = None,
    negative: Mapping[str, np.ndarray] | None = None,
    num_forced: np.ndarray | int | None = None,
  ) -> np.ndarray:
    """Samples one window; arguments and result as of `StageLM.generate`.

    Args:
      conditioning: see there.
      prefix: see there.
      num_frames: see there.
      sampling: see `level_sampling`.
      keys: see there.
      first_frames: see there.
      forced: see there.
      negative: ignored, for there is no guidance here.
      num_forced: see there.

    Returns:
      int32 `[batch, num_frames, levels]`, without the prefix.

    Raises:
      ValueError: if frames do not fit, or guidance is asked for.
    """
    del negative
    batch, levels = keys.shape[0], self.spec.target.num_levels
    if prefix is None:
      prefix = np.zeros((batch, 0, levels), np.int32)
    layout = self._layout(prefix.shape[1] + num_frames)
    tokens = stage_tokens.told_tokens(layout, conditioning)
    made = self._make_window(
      layout,
      np.concatenate(tokens, axis=1).astype(np.int32),
      np.asarray(prefix, np.int32),
      *stage_tokens.forced_codes(batch, num_frames, levels, forced, num_forced),
      np.broadcast_to(first_frames, (batch,)).astype(np.int32),
      keys,
      level_sampling(sampling, levels),
    )
    return np.asarray(made)
