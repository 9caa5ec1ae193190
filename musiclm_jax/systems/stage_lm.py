# SPDX-License-Identifier: Apache-2.0
"""A frozen stage: codes of its conditioning in, codes of its target out."""

import functools
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
from musiclm_jax.layers import transformer as transformer_lib
from musiclm_jax.networks import decoder_lm
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.systems import (
  spread_rows,
  stage_config,
  stage_program,
  stage_weights,
  token_stage,
)

KIND = "stage"


def export_stage(
  directory: str | os.PathLike,
  spec: stages_lib.StageSpec,
  streams: Sequence[streams_lib.TokenStream],
  transformer: transformer_lib.TransformerConfig,
  params: Mapping[str, Any],
  tokenizers: Mapping[str, str],
  precision: precision_lib.Precision | None = None,
  aligned_conditioning: float = 0.0,
  metadata: Mapping[str, Any] | None = None,
) -> str:
  """Writes a trained stage as an artefact of kind 'stage'.

  Args:
    directory: where; replaced when it exists.
    spec: the stage.
    streams: every stream the spec names.
    transformer: shape of the network.
    params: plain nested dict of arrays, as trained.
    tokenizers: fingerprints of the tokenizers the stage was trained on, by
      bundle name ('soundstream', 'semantic', 'mulan').
    precision: dtypes it was trained in.
    aligned_conditioning: see `decoder_lm.DecoderLMConfig`.
    metadata: provenance (step, versions).

  Returns:
    The fingerprint.
  """
  config = {
    "spec": artifacts.config_to_dict(spec),
    "streams": [artifacts.config_to_dict(stream) for stream in streams],
    "transformer": artifacts.config_to_dict(transformer),
    "precision": artifacts.config_to_dict(
      precision or precision_lib.Precision()
    ),
    "aligned_conditioning": aligned_conditioning,
    "tokenizers": dict(tokenizers),
  }
  arrays = jax.tree.map(np.asarray, dict(params))
  return artifacts.save(directory, KIND, config, arrays, metadata)


def read(
  directory: str | os.PathLike,
) -> tuple[artifacts.Artifact, dict[str, Any]]:
  """Loads an artefact of kind 'stage'.

  Returns:
    The artefact, and by name what `StageLM` takes beside its arrays.

  Raises:
    UserError: if it is missing, damaged or of another kind, or lacks something
      in its config.
  """
  artifact = artifacts.load(directory, KIND)
  with stage_config.reading(KIND, directory):
    fields = stage_config.parse(
      artifact.config,
      transformer=transformer_lib.TransformerConfig,
      precision=precision_lib.Precision,
    )
    # True, in older artefacts, is 1.
    aligned = float(artifact.config.get("aligned_conditioning", 0.0))
  return artifact, fields | {"aligned_conditioning": aligned}


class StageLM(token_stage.TokenStage):
  """Generates and scores target codes of one stage.

  Attributes:
    spec: the stage.
    streams: token streams by name.
    tokenizers: fingerprints of the tokenizers it was trained on.
    fingerprint: of the artefact; '' if built from parameters.
    weights: dtype in which its weights lie in memory.
  """

  def __init__(
    self,
    spec: stages_lib.StageSpec,
    streams: Sequence[streams_lib.TokenStream],
    transformer: transformer_lib.TransformerConfig,
    params: Mapping[str, Any],
    precision: precision_lib.Precision | None = None,
    aligned_conditioning: float = 0.0,
    tokenizers: Mapping[str, str] | None = None,
    fingerprint: str = "",
    weights: str = stage_weights.COMPUTE,
  ):
    """Unrolls the layers and puts the weights on the device.

    Args:
      spec: the stage.
      streams: every stream the spec names.
      transformer: shape the parameters were trained in, scanned or not.
      params: plain nested dict of arrays.
      precision: dtypes; on CPU everything is float32 (the fast one there).
      aligned_conditioning: see `decoder_lm.DecoderLMConfig`.
      tokenizers: see the class.
      fingerprint: see the class.
      weights: of `stage_weights.CHOICES`.

    Raises:
      UserError: if `weights` is none of them.
    """
    self.spec = spec
    self.streams = {stream.name: stream for stream in streams}
    self.tokenizers = dict(tokenizers or {})
    self.fingerprint = fingerprint
    precision = precision or precision_lib.Precision()
    if jax.default_backend() == "cpu":
      precision = precision_lib.Precision()
    layout = stages_lib.StageLayout(spec, self.streams)
    self._network = stage_program.decode_network(
      spec, self.streams, transformer, precision, aligned_conditioning
    )
    self.weights = stage_weights.resolve(weights, precision.compute)
    self._variables = stage_weights.stored(
      transformer_lib.unstack_layers(params),
      self.weights,
      precision.compute_dtype,
    )
    self._score = jax.jit(self._score_program, static_argnames=("shapes",))
    self._generate_program = functools.partial(
      stage_program.generate_program,
      self._network,
      layout.target_offsets,
      end_code=layout.end_code,
    )
    self._generate = jax.jit(
      self._generate_program,
      static_argnames=("shapes", "num_frames", "sampling"),
    )

  @classmethod
  def load(
    cls, directory: str | os.PathLike, weights: str = stage_weights.COMPUTE
  ) -> "StageLM":
    """Loads an artefact of kind 'stage'.

    Args:
      directory: of the artefact.
      weights: how they lie in memory, of `stage_weights.CHOICES`.

    Raises:
      UserError: if it is missing, damaged or of another kind, or there is no
        such choice.
    """
    artifact, fields = read(directory)
    return cls(
      params=artifact.arrays,
      fingerprint=artifact.fingerprint,
      weights=weights,
      **fields,
    )

  @property
  def variables(self) -> dict[str, Any]:
    """Its weights, layers unrolled, on the device; not to be changed."""
    return self._variables

  @property
  def compute_dtype(self) -> jnp.dtype:
    """Of activations and of the cache."""
    return self._network.precision.compute_dtype

  def score(self, codes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Negative log-probability of target codes, teacher-forced.

    Args:
      codes: by stream, int32 `[batch, frames, codebooks]`, all over the same
        duration.

    Returns:
      float32 nats `[batch, frames, levels]`; of codes without repeats those
      of `StageLayout.target_codes`, and 0 behind their end.

    Raises:
      ValueError: if the frames of the streams do not fit together.
    """
    target = self.spec.target
    layout = self._layout(np.shape(codes[target.stream])[-2])
    tokens = layout.encode(codes)
    bos = np.full_like(tokens[:, :1], stages_lib.BOS_ID)
    scored = layout.decode_target(tokens[:, layout.target_start :])
    nats = np.asarray(
      self._score(
        self._variables,
        np.concatenate([bos, tokens[:, :-1]], axis=1),
        scored,
        shapes=layout.shapes,
      )
    )
    return nats if layout.end_code is None else np.where(scored < 0, 0, nats)

  def _score_program(
    self,
    variables: Any,
    tokens: jax.Array,
    codes: jax.Array,
    shapes: tuple[tuple[int, int], ...],
  ) -> jax.Array:
    logits = self._network.apply(variables, tokens, shapes)
    return decoder_lm.code_nats(logits, codes)

  def _sample(self, layout, rows, keys, num_known, num_frames, sampling):
    return self._generate(
      self._variables,
      rows.tokens,
      keys,
      rows.first_positions,
      rows.forced,
      rows.num_forced,
      shapes=layout.shapes,
      num_frames=num_frames,
      sampling=sampling,
    )

  def spread(self, partitioner: partitioner_lib.Partitioner) -> None:
    """Splits rows over the devices of a mesh (`spread_rows.py`)."""
    self._variables = jax.device_put(self._variables, partitioner.replicated)
    self._generate = spread_rows.SpreadRows(partitioner, self._generate_program)


def load_found(
  paths: Mapping[str, str | os.PathLike],
  names: Sequence[str],
  weights: str = stage_weights.COMPUTE,
) -> list[StageLM | None]:
  """Stages of a bundle by part name, None for each that it lacks."""
  return [
    StageLM.load(paths[name], weights) if name in paths else None
    for name in names
  ]
