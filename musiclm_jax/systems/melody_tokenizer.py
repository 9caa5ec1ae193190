# SPDX-License-Identifier: Apache-2.0
"""The frozen melody tokenizer: waveforms in, codes of the melody out.

Audio is cut into windows of 4 s (MusicLM appendix C), each of which the
embedder turns into a unit vector and a residual quantizer into 24 codes. A
window that reaches beyond the end of the audio is embedded from what is there,
as the network can: begun windows count from half their length on, and the
first always.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from musiclm_jax.core import artifacts, rvq, streams
from musiclm_jax.networks import melody
from musiclm_jax.systems import embedders

KIND = "melody"
_MIN_SHARE = 0.5


def cut_windows(
  waveform: np.ndarray, length: int, stride: int
) -> tuple[np.ndarray, np.ndarray]:
  """Windows of waveforms, of which the last may be partly filling.

  Args:
    waveform: float32 `[..., samples]`, not empty.
    length: samples of a window.
    stride: samples between the starts of two.

  Returns:
    float32 `[..., windows, length]`, zeros behind the end, and int32
    `[windows]`, samples of each that are real.
  """
  num_samples = waveform.shape[-1]
  whole = round(length * _MIN_SHARE)
  count = max(0, (num_samples - whole) // stride) + 1
  starts = np.arange(count) * stride
  missing = max(0, int(starts[-1]) + length - num_samples)
  padding = [(0, 0)] * (waveform.ndim - 1) + [(0, missing)]
  windows = np.lib.stride_tricks.sliding_window_view(
    np.pad(waveform, padding), length, axis=-1
  )[..., ::stride, :][..., :count, :]
  return windows, np.minimum(length, num_samples - starts).astype(np.int32)


class MelodyEmbeddings:
  """A frozen melody embedder on windows of audio.

  Attributes:
    config: of the network.
    sample_rate_hz: rate the network listens at; others are resampled.
  """

  def __init__(self, config: melody.MelodyConfig, params: Mapping[str, Any]):
    """Binds the network to its (unboxed) parameters."""
    self.config = config
    self.sample_rate_hz = config.mel.sample_rate_hz
    self._variables = {"params": jax.device_put(params)}
    network = melody.MelodyEmbedder(config)
    self._apply = jax.jit(network.apply)

  def embed_windows(
    self,
    waveform: np.ndarray,
    sample_rate_hz: float,
    hop_secs: float = streams.MELODY_HOP_SECS,
  ) -> np.ndarray:
    """Embeds windows of 4 s, one starting every `hop_secs`.

    Args:
      waveform: float32 `[batch, samples]` in [-1, 1].
      sample_rate_hz: its rate.
      hop_secs: between the starts of two windows.

    Returns:
      float32 `[batch, windows, output_dim]` of unit length; 10 s of audio give
      3 windows.

    Raises:
      ValueError: if the waveforms are empty.
      UserError: if a sample is NaN or infinite.
    """
    waveform = embedders.resample(waveform, sample_rate_hz, self.sample_rate_hz)
    windows, num_samples = cut_windows(
      waveform, self.config.num_samples, round(hop_secs * self.sample_rate_hz)
    )
    batch, count, length = windows.shape
    embedded = embedders.in_chunks(
      lambda *parts: self._apply(self._variables, *parts),
      windows.reshape(-1, length),
      np.tile(num_samples, batch),
    )
    return embedded.reshape(batch, count, -1)


def export_melody(
  directory: str | os.PathLike,
  config: melody.MelodyConfig,
  params: Mapping[str, Any],
  codebooks: np.ndarray,
  metadata: Mapping[str, Any] | None = None,
) -> str:
  """Writes a melody tokenizer.

  Args:
    directory: target.
    config: of the network.
    params: of the network (unboxed).
    codebooks: float32 `[codebooks, codebook_size, output_dim]` (MusicLM: 24 of
      512), fitted on embeddings of windows.
    metadata: provenance.

  Returns:
    The fingerprint.

  Raises:
    ValueError: if the codebooks do not fit the embedding, or the windows of
      the network are not those of the stream.
  """
  codebooks = np.asarray(codebooks, np.float32)
  if codebooks.ndim != 3 or codebooks.shape[-1] != config.output_dim:
    raise ValueError(
      f"codebooks have shape {codebooks.shape}: expected [codebooks, "
      f"codebook_size, {config.output_dim}]"
    )
  if config.window_secs != streams.MELODY_WINDOW_SECS:
    raise ValueError(
      f"window_secs={config.window_secs}: expected "
      f"{streams.MELODY_WINDOW_SECS}, as in the melody stream"
    )
  params = jax.tree.map(np.asarray, jax.device_get(dict(params)))
  return artifacts.save(
    directory,
    KIND,
    artifacts.config_to_dict(config),
    {"params": params, "codebooks": codebooks},
    metadata,
  )


class MelodyTokenizer(MelodyEmbeddings):
  """A frozen melody embedder with the RVQ of its embedding.

  Attributes:
    stream: 'melody'.
    codebooks: float32 `[codebooks, codebook_size, output_dim]`.
    fingerprint: of the artefact.
  """

  def __init__(self, artifact: artifacts.Artifact):
    """Rebuilds the network of a loaded artefact."""
    super().__init__(
      artifacts.config_from_dict(melody.MelodyConfig, artifact.config),
      artifact.arrays["params"],
    )
    self.codebooks = artifact.arrays["codebooks"]
    self.fingerprint = artifact.fingerprint
    levels, size, _ = self.codebooks.shape
    self.stream = streams.melody(size, levels)

  @classmethod
  def load(cls, directory: str | os.PathLike) -> "MelodyTokenizer":
    """Opens an artefact of kind 'melody', verified.

    Raises:
      UserError: if it is missing, damaged or of another kind.
    """
    return cls(artifacts.load(directory, KIND))

  def quantize(self, embeddings: np.ndarray) -> np.ndarray:
    """Embeddings `[..., output_dim]` to int32 `[..., codebooks]`."""
    return rvq.encode(np.asarray(embeddings), self.codebooks)

  def encode(
    self,
    waveform: np.ndarray,
    sample_rate_hz: float,
    hop_secs: float = streams.MELODY_HOP_SECS,
  ) -> np.ndarray:
    """Waveforms `[batch, samples]` to int32 `[batch, windows, codebooks]`.

    See `embed_windows`.
    """
    return self.quantize(self.embed_windows(waveform, sample_rate_hz, hop_secs))
