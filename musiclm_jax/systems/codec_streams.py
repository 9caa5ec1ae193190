# SPDX-License-Identifier: Apache-2.0
"""A frozen codec over streams: pieces of any length in, codes or audio out.

The network goes by whole frames; what is left over of a piece waits here, on
the host. Memory does not depend on the length of a stream.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from musiclm_jax.networks import soundstream
from musiclm_jax.systems import embedders

# Frames of one call: more are slower, because they no longer fit the caches.
MAX_CALL_FRAMES = 64


def check_waveform(
  waveform: np.ndarray, num_channels: int, batch_size: int | None = None
) -> np.ndarray:
  """A batch of waveforms as float32.

  Args:
    waveform: `[batch, samples]`, or `[batch, samples, 2]` of two channels.
    num_channels: of the codec.
    batch_size: rows expected; any number by default.

  Raises:
    ValueError: if it has another shape.
    UserError: if a sample is NaN or infinite; names the row.
  """
  waveform = np.asarray(waveform, np.float32)
  tail = () if num_channels == 1 else (num_channels,)
  rows = waveform.shape[0] if batch_size is None else batch_size
  if waveform.ndim < 2 or waveform.shape != (rows, waveform.shape[1], *tail):
    wanted = ["batch" if batch_size is None else str(rows), "samples"]
    wanted += [str(size) for size in tail]
    raise ValueError(
      f"waveform has shape {waveform.shape}: expected [{', '.join(wanted)}]"
    )
  embedders.check_finite(waveform)
  return waveform


def check_codes(
  codes: np.ndarray, codebook_size: int, num_codebooks: int
) -> np.ndarray:
  """Codes as int32 `[batch, frames, levels]`.

  Raises:
    ValueError: if the shape or a code is out of range.
  """
  codes = np.asarray(codes)
  if codes.ndim != 3 or not 1 <= codes.shape[-1] <= num_codebooks:
    raise ValueError(
      f"codes have shape {codes.shape}: expected [batch, frames, 1 to "
      f"{num_codebooks}]"
    )
  if codes.size and (codes.min() < 0 or codes.max() >= codebook_size):
    raise ValueError(
      f"codes lie in [{codes.min()}, {codes.max()}]: expected "
      f"[0, {codebook_size})"
    )
  return codes.astype(np.int32)


class StreamingCodec:
  """The compiled calls that all streams of one codec share.

  Attributes:
    config: of the network.
  """

  def __init__(
    self, config: soundstream.SoundStreamConfig, variables: Mapping[str, Any]
  ):
    """Binds the network to its (unboxed) variables."""
    self.config = config
    self._variables = variables
    self._network = soundstream.SoundStream(config)
    self._starts: dict[tuple[str, int], dict[str, Any]] = {}
    self._calls = {
      "encode": jax.jit(self._network.stream_encode),
      "decode": jax.jit(self._network.stream_decode),
    }

  def start(self, method: str, batch_size: int) -> dict[str, Any]:
    """The state before the first frame of 'encode' or 'decode'."""
    key = (method, batch_size)
    if key not in self._starts:  # Finding its shape traces the network.
      self._starts[key] = self._network.stream_state(
        self._variables, batch_size, method
      )
    return self._starts[key]

  def call(
    self, method: str, state: Mapping[str, Any], x: np.ndarray
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """The next frames of a stream: output and new state."""
    out, state = self._calls[method](self._variables, state, x)
    return np.asarray(jax.device_get(out)), state


class _Stream:
  """What encoder and decoder share: pieces in, whole frames to the network."""

  _method = ""

  def __init__(
    self, codec: StreamingCodec, batch_size: int = 1, chunk_frames: int = 1
  ):
    """Starts a stream.

    Args:
      codec: the network.
      batch_size: streams side by side, of the same length.
      chunk_frames: frames the network gets at least. 1 is the lowest latency;
        with more, every call has this size, which costs one compilation
        instead of one for each power of two up to `MAX_CALL_FRAMES`.

    Raises:
      ValueError: if a number is not positive.
    """
    if batch_size < 1 or chunk_frames < 1:
      raise ValueError(
        f"batch_size={batch_size}, chunk_frames={chunk_frames}: expected >= 1"
      )
    self.batch_size, self.chunk_frames = batch_size, chunk_frames
    self._codec = codec
    self.reset()

  @property
  def latency_frames(self) -> int:
    """Frames that must be in before the first one is out."""
    return self.chunk_frames

  @property
  def latency_ms(self) -> float:
    """`latency_frames` as time; what computing takes comes on top."""
    return 1000.0 * self.chunk_frames / self._codec.config.frame_rate_hz

  def reset(self) -> None:
    """Forgets everything: the next piece starts a new stream."""
    self._state = self._codec.start(self._method, self.batch_size)
    self._rest = None

  def _push(self, x: np.ndarray, unit: int) -> list[np.ndarray]:
    """Outputs of all whole chunks; the rest waits."""
    if self._rest is not None:
      x = np.concatenate([self._rest, x], axis=1)
    outputs, place, left = [], 0, x.shape[1] // unit
    while left >= self.chunk_frames:
      frames = self.chunk_frames
      if frames == 1:
        frames = min(MAX_CALL_FRAMES, 1 << (left.bit_length() - 1))
      part = x[:, place * unit : (place + frames) * unit]
      out, self._state = self._codec.call(self._method, self._state, part)
      outputs.append(out)
      place, left = place + frames, left - frames
    # A copy: a view would keep the whole piece alive.
    self._rest = x[:, place * unit :].copy()
    return outputs

  def _flush(self, unit: int) -> tuple[list[np.ndarray], int]:
    """Outputs of the rest, filled up with zeros, and its frames; resets."""
    rest = self._rest
    if rest is None or not rest.shape[1]:
      self.reset()
      return [], 0
    frames = -(-rest.shape[1] // unit)
    missing = -(-frames // self.chunk_frames) * self.chunk_frames * unit
    padding = [(0, 0)] * rest.ndim
    padding[1] = (0, missing - rest.shape[1])
    self._rest = None
    outputs = self._push(np.pad(rest, padding), unit)
    self.reset()
    return outputs, frames


class StreamEncoder(_Stream):
  """Audio in pieces of any length to the codes of whole frames."""

  _method = "encode"

  def __init__(
    self,
    codec: StreamingCodec,
    batch_size: int = 1,
    chunk_frames: int = 1,
    num_codebooks: int = 0,
  ):
    """Starts a stream; see `_Stream`.

    Args:
      codec: the network.
      batch_size: streams side by side.
      chunk_frames: frames the network gets at least.
      num_codebooks: levels to give; 0 for all.

    Raises:
      ValueError: if a number is out of range.
    """
    most = codec.config.num_codebooks
    if not 0 <= num_codebooks <= most:
      raise ValueError(
        f"num_codebooks={num_codebooks}: expected 1 to {most}, or 0 for all"
      )
    self._levels = num_codebooks or most
    super().__init__(codec, batch_size, chunk_frames)

  def push(self, waveform: np.ndarray) -> np.ndarray:
    """The codes of all frames that are complete now.

    Args:
      waveform: float32 `[batch, samples]` (and channels), any length from 0.

    Returns:
      int32 `[batch, frames, codebooks]`, perhaps of 0 frames.
    """
    config = self._codec.config
    waveform = check_waveform(waveform, config.num_channels, self.batch_size)
    return self._join(self._push(waveform, config.hop_length))

  def flush(self) -> np.ndarray:
    """The codes of what is left, filled up with zeros; a new stream begins."""
    outputs, frames = self._flush(self._codec.config.hop_length)
    return self._join(outputs)[:, :frames]

  def _join(self, outputs: list[np.ndarray]) -> np.ndarray:
    empty = np.zeros((self.batch_size, 0, self._levels), np.int32)
    parts = [out[..., : self._levels] for out in outputs]
    return np.concatenate([empty, *parts], axis=1)


class StreamDecoder(_Stream):
  """Codes in pieces of any number of frames to audio."""

  _method = "decode"

  def push(self, codes: np.ndarray) -> np.ndarray:
    """The audio of all frames up to the last whole chunk.

    Args:
      codes: int32 `[batch, frames, levels]`, any number of frames from 0; the
        same number of levels throughout a stream.

    Returns:
      float32 `[batch, frames * hop_length]` (and channels).

    Raises:
      ValueError: if the shape or a code is out of range.
    """
    config = self._codec.config
    codes = check_codes(codes, config.codebook_size, config.num_codebooks)
    if len(codes) != self.batch_size:
      raise ValueError(
        f"codes have shape {codes.shape}: expected {self.batch_size} rows"
      )
    return self._join(self._push(codes, 1))

  def flush(self) -> np.ndarray:
    """The audio of the frames that wait for a chunk; a new stream begins."""
    outputs, frames = self._flush(1)
    return self._join(outputs)[:, : frames * self._codec.config.hop_length]

  def _join(self, outputs: list[np.ndarray]) -> np.ndarray:
    channels = self._codec.config.num_channels
    tail = () if channels == 1 else (channels,)
    empty = np.zeros((self.batch_size, 0, *tail), np.float32)
    return np.concatenate([empty, *outputs], axis=1)
