# SPDX-License-Identifier: Apache-2.0
"""The tokenizers as programs of fixed shapes, for tokenizing at scale.

Artefacts and waveforms flow in. Each program cuts a waveform into windows
(`cut`, on the host), turns a batch of windows into codes or vectors (`apply`,
traced, for the devices), and joins the results of a waveform. A result depends
on its window alone, so it is the same in any batch.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.core import artifacts, errors, streams
from musiclm_jax.core import windows as windows_lib
from musiclm_jax.layers import kmeans
from musiclm_jax.networks import mulan, semantic_encoders, soundstream
from musiclm_jax.systems import embedders

MULAN_STRIDE_SECS = 1.0
# Windows shorter than the longest are filled up to steps of this.
_BUCKET_SECS = 5.0
_MAX_BUCKETS = 4


class Audio:
  """A waveform at any rate; each rate is made once.

  Attributes:
    waveform: float32 `[samples]`, the mean of the channels.
    channels: as given, `[samples]` or `[samples, channels]`.
    sample_rate_hz: rate of both.
  """

  def __init__(self, waveform: np.ndarray, sample_rate_hz: int):
    self.channels = waveform
    self.waveform = files.as_channels(waveform, 1)
    self.sample_rate_hz = sample_rate_hz
    self._rates = {sample_rate_hz: self.waveform}

  def at(self, rate_hz: int) -> np.ndarray:
    """The mean of the channels at `rate_hz`."""
    if rate_hz not in self._rates:
      self._rates[rate_hz] = files.resample(
        self.waveform, self.sample_rate_hz, rate_hz
      )
    return self._rates[rate_hz]

  def channels_at(self, rate_hz: int, num_channels: int) -> np.ndarray:
    """So many channels at `rate_hz`; see `files.as_channels`."""
    if num_channels == 1:
      return self.at(rate_hz)
    wanted = files.as_channels(self.channels, num_channels)
    return files.resample(wanted, self.sample_rate_hz, rate_hz)


class Cut(NamedTuple):
  """A waveform as rows for a program.

  Attributes:
    rows: bucket and arrays (without a batch axis) of each window.
    windows: what to keep of each; empty where every row is a result.
  """

  rows: list[tuple[int, dict[str, np.ndarray]]]
  windows: list[windows_lib.Window]

  def join(self, results: Sequence[np.ndarray]) -> np.ndarray:
    """The result of the waveform from those of its rows."""
    if self.windows:
      return windows_lib.join(self.windows, results)
    return np.stack(results)


def _whole(value: float, what: str) -> int:
  """`value` as an integer.

  Raises:
    UserError: if it is none.
  """
  if abs(value - round(value)) > 1e-6:
    raise errors.UserError(f"{what} is {value:g}: expected a whole number")
  return round(value)


def _buckets(length: int, frame_rate_hz: float) -> tuple[int, ...]:
  step = max(round(_BUCKET_SECS * frame_rate_hz), -(-length // _MAX_BUCKETS))
  return (*range(step, length, step), length)


def encoder_reach(config: soundstream.SoundStreamConfig) -> int:
  """Samples that the code of a frame depends on, up to the frame's end."""
  reach, jump = config.kernel_size, 1
  for stride in config.strides:
    for dilation in config.dilations:
      reach += (config.kernel_size - 1) * dilation * jump
    reach += (2 * stride - 1) * jump
    jump *= stride
  return reach + 2 * jump  # the last convolution has three taps


class AcousticProgram:
  """SoundStream's encoder and quantizer.

  Windows begin one receptive field early: the encoder is causal, so behind
  that the codes are those of the whole file.

  Attributes:
    name: of the arrays in the cache.
    stream: of the codes.
    fingerprint: of the artefact.
    sample_rate_hz: of the waveforms.
    num_channels: of the waveforms.
    weights: for `apply`.
    windows: in frames.
  """

  name = "acoustic"

  def __init__(self, artifact: artifacts.Artifact, window_secs: float):
    """Rebuilds the network.

    Args:
      artifact: of kind 'soundstream'.
      window_secs: new audio per window; the context comes on top.

    Raises:
      UserError: if a window is no whole number of frames.
    """
    config = artifacts.config_from_dict(
      soundstream.SoundStreamConfig, artifact.config
    )
    self.fingerprint, self.weights = artifact.fingerprint, artifact.arrays
    self.sample_rate_hz = config.sample_rate_hz
    self.num_channels = config.num_channels
    self.stream = streams.TokenStream(
      self.name,
      config.codebook_size,
      config.num_codebooks,
      config.frame_rate_hz,
    )
    rate_hz = config.frame_rate_hz
    stride = _whole(window_secs * rate_hz, "acoustic_window_secs in frames")
    halo = -(-encoder_reach(config) // config.hop_length)
    self.windows = windows_lib.WindowConfig(
      stride + halo, left=halo, buckets=_buckets(stride + halo, rate_hz)
    )
    self._config = config
    self._network = soundstream.SoundStream(config)

  def cut(self, audio: Audio) -> Cut:
    """Rows of a waveform at `sample_rate_hz`."""
    hop = self._config.hop_length
    waveform = audio.channels_at(self.sample_rate_hz, self.num_channels)
    plan = self.windows.plan(self._config.num_frames(len(waveform)))
    rows = []
    for window in plan:
      bucket = self.windows.bucket(window.end - window.start)
      part = waveform[window.start * hop : window.end * hop]
      part = embedders.pad_axis(part, bucket * hop, axis=0)
      rows.append((bucket, {"waveform": part}))
    return Cut(rows, plan)

  def apply(self, weights: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Codes int32 `[rows, frames, codebooks]`."""
    return self._network.apply(
      weights, batch["waveform"], method=self._network.encode
    )


class SemanticProgram:
  """w2v-BERT (or an imported encoder) up to its tap, and the nearest cluster.

  Attention sees all of a window, so the windows are part of what the tokens
  mean: a token comes from the one window that keeps its frame.

  Attributes:
    name: of the arrays in the cache.
    stream: of the codes.
    fingerprint: of the artefact.
    weights: for `apply`.
    windows: in frames.
  """

  name = "semantic"

  def __init__(
    self, artifact: artifacts.Artifact, window_secs: float, halo_secs: float
  ):
    """Rebuilds the network.

    Args:
      artifact: of kind 'semantic'.
      window_secs: audio of a window.
      halo_secs: at both ends of a window, context only.

    Raises:
      UserError: if window or halo is no whole number of frames, or the halo
        leaves nothing of the window.
    """
    config = semantic_encoders.from_settings(artifact.config)
    quantizer = artifact.arrays["quantizer"]
    self.fingerprint = artifact.fingerprint
    self.weights = {"params": artifact.arrays["params"], **quantizer}
    rate_hz = config.frame_rate_hz
    self.stream = streams.TokenStream(
      self.name, len(quantizer["centroids"]), 1, rate_hz
    )
    length = _whole(window_secs * rate_hz, "semantic_window_secs in frames")
    halo = _whole(halo_secs * rate_hz, "semantic_halo_secs in frames")
    if 2 * halo >= length:
      raise errors.UserError(
        f"semantic_halo_secs={halo_secs}: expected less than half of "
        f"semantic_window_secs={window_secs}"
      )
    self.windows = windows_lib.WindowConfig(
      length, halo, halo, _buckets(length, rate_hz)
    )
    self._config = config
    self._network = semantic_encoders.make(config)

  def cut(self, audio: Audio) -> Cut:
    """Rows of a waveform; each window is resampled by itself.

    Raises:
      UserError: if the rate of the waveform gives no whole samples per frame.
    """
    rate_hz, per_frame = (
      self._config.sample_rate_hz,
      self._config.samples_per_frame,
    )
    source = _whole(
      audio.sample_rate_hz / self._config.frame_rate_hz,
      f"samples per semantic frame at {audio.sample_rate_hz} Hz",
    )
    num_samples = round(len(audio.waveform) * rate_hz / audio.sample_rate_hz)
    plan = self.windows.plan(-(-num_samples // per_frame))
    rows = []
    for window in plan:
      if len(plan) == 1:
        part = audio.at(rate_hz)
      else:
        # Resampled in one go, the audio beyond a window would reach into it.
        part = files.resample(
          audio.waveform[window.start * source : window.end * source],
          audio.sample_rate_hz,
          rate_hz,
        )
      count = window.end - window.start
      bucket = self.windows.bucket(count)
      part = embedders.pad_axis(
        part[: bucket * per_frame], bucket * per_frame, axis=0
      )
      rows.append(
        (bucket, {"waveform": part, "mask": np.arange(bucket) < count})
      )
    return Cut(rows, plan)

  def apply(self, weights: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Codes int32 `[rows, frames, 1]`."""
    features = self._network.apply(
      {"params": weights["params"]},
      batch["waveform"],
      batch["mask"],
      method=self._network.features,
    )
    points = (features - weights["mean"]) / weights["std"]
    codes, _ = kmeans.assign(
      points.reshape(-1, points.shape[-1]), weights["centroids"]
    )
    return codes.reshape(*points.shape[:2], 1)


class MuLanProgram:
  """MuLan's audio tower on windows of 10 s, one starting every second.

  Attributes:
    name: of the arrays in the cache.
    stream: of the codes that crops get later.
    fingerprint: of the artefact.
    weights: for `apply`.
    codebooks: float32 `[codebooks, codebook_size, output_dim]`.
    window_secs: audio of a window.
  """

  name = "mulan_embeddings"

  def __init__(self, artifact: artifacts.Artifact):
    """Rebuilds the network of an artefact of kind 'mulan'."""
    self._config = artifacts.config_from_dict(
      mulan.MuLanConfig, artifact.config
    )
    self.fingerprint = artifact.fingerprint
    params = artifact.arrays["params"]
    # The text tower stays behind.
    self.weights = {"params": {k: v for k, v in params.items() if k != "text"}}
    self.codebooks = artifact.arrays["codebooks"]
    levels, size, _ = self.codebooks.shape
    self.stream = streams.TokenStream("mulan", size, levels, 0.0)
    self.window_secs = self._config.window_secs
    self._network = mulan.MuLan(self._config)

  def cut(self, audio: Audio) -> Cut:
    """Rows of a waveform; shorter than a window, it is repeated."""
    rate_hz = self._config.mel.sample_rate_hz
    length = round(self.window_secs * rate_hz)
    stride = round(MULAN_STRIDE_SECS * rate_hz)
    windows = embedders.cut_windows(audio.at(rate_hz)[None], length, stride)
    return Cut([(length, {"waveform": part}) for part in windows[0]], [])

  def apply(self, weights: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Unit vectors float32 `[rows, output_dim]`."""
    return self._network.apply(
      weights, batch["waveform"], method=self._network.embed_audio
    )


class Program(Protocol):
  """A frozen tokenizer, as those above and in `melody_program.py`.

  Attributes:
    name: of the arrays in the cache.
    stream: of the codes.
    fingerprint: of the artefact.
    weights: for `apply`.
  """

  name: str
  stream: streams.TokenStream
  fingerprint: str
  weights: Any

  def cut(self, audio: Audio) -> Cut:
    """Rows of a waveform."""

  def apply(self, weights: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The result of each row of a batch."""


def load(
  artifact_dir: str | os.PathLike,
  acoustic_window_secs: float,
  semantic_window_secs: float,
  semantic_halo_secs: float,
) -> tuple[Program, ...]:
  """Programs of the artefacts `soundstream`, `semantic` and `mulan`.

  The last may be missing: for stages that know no text (AudioLM).

  Raises:
    UserError: if another one is missing, one is damaged or of another kind, or
      a window does not fit its frames.
  """
  root = pathlib.Path(artifact_dir)
  mulan = []
  if (root / "mulan").exists():
    mulan = [MuLanProgram(artifacts.load(root / "mulan", "mulan"))]
  return (
    AcousticProgram(
      artifacts.load(root / "soundstream", "soundstream"), acoustic_window_secs
    ),
    SemanticProgram(
      artifacts.load(root / "semantic", "semantic"),
      semantic_window_secs,
      semantic_halo_secs,
    ),
    *mulan,
  )
