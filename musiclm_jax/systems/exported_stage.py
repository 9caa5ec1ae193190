# SPDX-License-Identifier: Apache-2.0
"""Runs an exported stage: StableHLO in, codes out, without flax or a network.

`stage_export.py` writes what is read here. The decode loop, the window plans
and the draws are those of `StageLM`, so codes are too.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from musiclm_jax.core import artifacts, errors
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.decoding import autoregressive, guidance
from musiclm_jax.decoding import sampling as sampling_lib
from musiclm_jax.systems import stage_config, stage_tokens, token_stage

KIND = "exported_stage"
# Of what the files hold and how they are called.
EXPORT_VERSION = 1
STEP, LOGITS = "step.stablehlo", "logits.stablehlo"


def prefill_name(num_known: int) -> str:
  """File of the program that takes `num_known` known frames in."""
  return f"prefill_{num_known}.stablehlo"


def this_platform() -> str:
  """What jax.export calls the devices of this process."""
  backend = jax.default_backend()
  if backend != "gpu":
    return backend
  version = jax.devices()[0].client.platform_version.lower()
  return "rocm" if "rocm" in version else "cuda"


def _check(config: Mapping[str, Any]) -> None:
  """Raises UserError unless this process can run what was exported."""
  version = config.get("export_version")
  if version != EXPORT_VERSION:
    raise errors.UserError(
      f"export_version={version}: expected {EXPORT_VERSION}; "
      "export it again with this version of musiclm_jax"
    )
  convention = config["calling_convention_version"]
  least = jax.export.minimum_supported_calling_convention_version
  most = jax.export.maximum_supported_calling_convention_version
  if not least <= convention <= most:
    raise errors.UserError(
      f"it was written by jax {config['jax_version']} with calling "
      f"convention {convention}: jax {jax.__version__} reads {least} to {most}"
    )
  platform = this_platform()
  if platform not in config["platforms"]:
    raise errors.UserError(
      f"it is for {', '.join(config['platforms'])}: this process runs on "
      f"{platform}; export it with --platforms={platform}"
    )


class ExportedStage(token_stage.TokenStage):
  """Generates target codes of one stage, in windows of one length.

  Attributes:
    spec: the stage.
    streams: token streams by name.
    tokenizers: fingerprints of the tokenizers it was trained on.
    stage_fingerprint: of the stage that was exported.
  """

  def __init__(self, artifact: artifacts.Artifact):
    """Reads the programs and puts the weights on the device."""
    config = artifact.config
    fields = stage_config.parse(config)
    self.spec, self.tokenizers = fields["spec"], fields["tokenizers"]
    self.streams = {stream.name: stream for stream in fields["streams"]}
    self.stage_fingerprint = config["stage_fingerprint"]
    self._programs = {
      name: jax.export.deserialize(bytearray(content))
      for name, content in artifact.files.items()
    }
    dtype = jnp.dtype(config["compute_dtype"])
    self._params = jax.tree.map(
      lambda leaf: jnp.asarray(leaf, dtype), artifact.arrays
    )
    layout = stages_lib.StageLayout(self.spec, self.streams)
    self._offsets, self._end_code = layout.target_offsets, layout.end_code
    self._generate = jax.jit(
      self._generate_program,
      static_argnames=("num_known", "num_frames", "sampling"),
    )

  @classmethod
  def load(cls, directory: str | os.PathLike) -> "ExportedStage":
    """Opens an artefact of kind 'exported_stage', verified.

    Raises:
      UserError: if it is missing, damaged or of another kind, was written for
        other platforms, or by a version that does not fit.
    """
    artifact = artifacts.load(directory, KIND)
    with stage_config.reading(KIND, directory):
      _check(artifact.config)
      return cls(artifact)

  def _check_window(self, num_known: int, num_frames: int) -> None:
    if num_known + num_frames != self.window_frames:
      raise errors.UserError(
        f"a window of {num_known + num_frames} frames of the {self.spec.name} "
        f"stage: expected {self.window_frames}, for which it was exported "
        f"({self.spec.crop_secs:g} s; generate as much and cut it)"
      )
    if prefill_name(num_known) not in self._programs:
      raise errors.UserError(
        f"{num_known} known frames of the {self.spec.name} stage: expected 0 "
        f"or {self.prefix_frames}, for which it was exported"
      )

  def _sample(self, layout, rows, keys, num_known, num_frames, sampling):
    del layout  # The programs have it in them.
    return self._generate(
      self._params,
      rows,
      keys,
      num_known=num_known,
      num_frames=num_frames,
      sampling=sampling,
    )

  def _generate_program(
    self,
    params: Any,
    rows: stage_tokens.Rows,
    keys: jax.Array,
    num_known: int,
    num_frames: int,
    sampling: sampling_lib.SamplingConfig,
  ) -> jax.Array:
    """Prefill, then the decode loop, as one program."""
    cache, hidden = self._programs[prefill_name(num_known)].call(
      params, rows.tokens
    )

    def step(cache, token):
      return self._programs[STEP].call(params, cache, token)

    def logits(hidden, level):
      return self._programs[LOGITS].call(params, hidden, level)

    if rows.tokens.shape[0] != keys.shape[0]:
      step, logits = guidance.guided(step, logits, sampling.guidance)
    codes, _ = autoregressive.decode(
      step,
      logits,
      cache,
      hidden,
      keys,
      rows.first_positions,
      self._offsets,
      num_frames,
      sampling,
      rows.forced,
      rows.num_forced,
      self._end_code,
    )
    return codes
