# SPDX-License-Identifier: Apache-2.0
"""The melody tokenizer as a program of one shape, for tokenizing at scale.

Beside those of `window_programs.py`, and like them: waveforms are cut into
rows on the host, rows become codes on the devices.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import artifacts, streams
from musiclm_jax.layers import kmeans
from musiclm_jax.networks import melody
from musiclm_jax.systems import melody_tokenizer, window_programs


class MelodyProgram:
  """Embedder and RVQ on windows of 4 s, one starting every second.

  Attributes:
    name: of the arrays in the cache.
    stream: of the codes; crops take every third of them.
    fingerprint: of the artefact.
    weights: for `apply`.
  """

  name = "melody"

  def __init__(self, artifact: artifacts.Artifact):
    """Rebuilds the network of an artefact of kind 'melody'."""
    self._config = artifacts.config_from_dict(
      melody.MelodyConfig, artifact.config
    )
    self.fingerprint, self.weights = artifact.fingerprint, artifact.arrays
    levels, size, _ = artifact.arrays["codebooks"].shape
    self.stream = streams.melody(size, levels)
    self._network = melody.MelodyEmbedder(self._config)

  def cut(self, audio: window_programs.Audio) -> window_programs.Cut:
    """Rows of a waveform; what is missing at its end is masked."""
    rate_hz = self._config.mel.sample_rate_hz
    windows, num_samples = melody_tokenizer.cut_windows(
      audio.at(rate_hz),
      self._config.num_samples,
      round(self.stream.stride_secs * rate_hz),
    )
    rows = [
      (self._config.num_samples, {"waveform": part, "num_samples": count})
      for part, count in zip(windows, num_samples)
    ]
    return window_programs.Cut(rows, [])

  def apply(self, weights: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Codes int32 `[rows, codebooks]`."""
    residual = self._network.apply(
      {"params": weights["params"]}, batch["waveform"], batch["num_samples"]
    )
    codes = []
    for codebook in weights["codebooks"]:
      found, _ = kmeans.assign(residual, codebook)
      residual = residual - codebook[found]
      codes.append(found)
    return jnp.stack(codes, axis=-1).astype(np.int32)


def load(artifact_dir: str | os.PathLike) -> tuple[MelodyProgram, ...]:
  """The program of the artefact `melody`; none where there is no such folder.

  Raises:
    UserError: if it is damaged or of another kind.
  """
  path = pathlib.Path(artifact_dir) / melody_tokenizer.KIND
  if not path.exists():
    return ()
  return (MelodyProgram(artifacts.load(path, melody_tokenizer.KIND)),)
