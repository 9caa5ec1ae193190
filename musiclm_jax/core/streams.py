# SPDX-License-Identifier: Apache-2.0
"""Token streams: what kinds of discrete codes exist, described as data."""

import dataclasses
import fractions
import math
from collections.abc import Mapping

import numpy as np

# Of the windows of the melody stream (MusicLM appendix C): 0-4, 3-7, 6-10 s.
MELODY_WINDOW_SECS = 4.0
MELODY_HOP_SECS = 3.0
# They are stored for every second, so that a crop that begins at any second
# finds its own.
MELODY_STRIDE_SECS = 1.0


@dataclasses.dataclass(frozen=True)
class TokenStream:
  """A named kind of code, shared by tokenizers, caches, stages and decoding.

  Codes of a stream are int32 `[..., frames, codebooks]`, each in
  `[0, codebook_size)`. A stream with `frame_rate_hz == 0` describes a whole
  clip by one frame (MuLan); the others are sequences in time. A frame of a
  stream with `window_secs` describes a window of audio that begins with it
  (melody): a sequence has the windows that lie inside, `1 / frame_rate_hz`
  apart, while caches hold one every `stride_secs`.

  Attributes:
    name: 'mulan', 'semantic', 'acoustic', ... .
    codebook_size: entries of each codebook.
    num_codebooks: RVQ levels per frame.
    frame_rate_hz: frames per second, or 0 for one frame per clip.
    window_secs: audio that a frame describes; 0: what lies between two.
    stride_secs: of a stream with windows, between those that are stored.
  """

  name: str
  codebook_size: int
  num_codebooks: int = 1
  frame_rate_hz: float = 0.0
  window_secs: float = 0.0
  stride_secs: float = 0.0

  def __post_init__(self):
    if not self.name:
      raise ValueError(f"name={self.name!r}: expected a non-empty name")
    if self.codebook_size < 1:
      raise ValueError(
        f"codebook_size={self.codebook_size} of stream {self.name!r}: "
        "expected a positive number"
      )
    if self.num_codebooks < 1:
      raise ValueError(
        f"num_codebooks={self.num_codebooks} of stream {self.name!r}: "
        "expected a positive number"
      )
    if self.frame_rate_hz < 0:
      raise ValueError(
        f"frame_rate_hz={self.frame_rate_hz} of stream {self.name!r}: "
        "expected 0 (one frame per clip) or a positive rate"
      )
    if not self.window_secs and not self.stride_secs:
      return
    if not (self.window_secs > 0 and self.stride_secs > 0):
      raise ValueError(
        f"window_secs={self.window_secs}, stride_secs={self.stride_secs} of "
        f"stream {self.name!r}: expected both positive, or both 0"
      )
    hop = self.frame_rate_hz * self.stride_secs
    if not hop or abs(1 / hop - round(1 / hop)) > 1e-6:
      raise ValueError(
        f"frame_rate_hz={self.frame_rate_hz} of stream {self.name!r}: expected "
        f"windows a multiple of stride_secs={self.stride_secs} apart"
      )

  @property
  def has_windows(self) -> bool:
    """Whether frames are windows of audio, stored more often than used."""
    return self.window_secs > 0

  def num_frames(self, secs: float) -> int:
    """Frames of this stream in `secs` seconds of audio (at least 1)."""
    if self.frame_rate_hz == 0:
      return 1
    if self.has_windows:
      hops = (secs - self.window_secs) * self.frame_rate_hz
      return max(0, math.floor(hops + 1e-6)) + 1
    return max(1, round(secs * self.frame_rate_hz))


def grid_hz(streams: Mapping[str, TokenStream]) -> float:
  """The rate on which frames of all timed streams start together.

  The greatest common divisor of the frame rates: 25 Hz for 25 and 50 Hz.

  Raises:
    ValueError: if no stream has a frame rate.
  """
  rates = [
    fractions.Fraction(stream.frame_rate_hz).limit_denominator(1000)
    for stream in streams.values()
    if stream.frame_rate_hz
  ]
  if not rates:
    raise ValueError(
      f"streams={sorted(streams)}: expected one with a frame rate"
    )
  common = rates[0]
  for rate in rates[1:]:
    common = fractions.Fraction(
      math.gcd(
        common.numerator * rate.denominator, rate.numerator * common.denominator
      ),
      common.denominator * rate.denominator,
    )
  return float(common)


def melody(codebook_size: int, num_codebooks: int) -> TokenStream:
  """The stream of a melody tokenizer (MusicLM appendix C)."""
  return TokenStream(
    "melody",
    codebook_size,
    num_codebooks,
    1 / MELODY_HOP_SECS,
    MELODY_WINDOW_SECS,
    MELODY_STRIDE_SECS,
  )


def take_windows(
  stream: TokenStream, stored: np.ndarray, start_secs: float, num_frames: int
) -> np.ndarray:
  """Codes of the windows of a span of audio, out of all that are stored.

  Args:
    stream: one with windows.
    stored: int `[..., stored windows, codebooks]`, `stride_secs` apart from
      the start of the audio on.
    start_secs: of the span; the nearest stored window is its first.
    num_frames: windows of the span, `1 / frame_rate_hz` apart.

  Returns:
    int32 `[..., num_frames, codebooks]`, -1 where nothing is stored.
  """
  first = round(start_secs / stream.stride_secs)
  step = round(1 / (stream.frame_rate_hz * stream.stride_secs))
  rows = stored[..., first::step, :][..., :num_frames, :]
  shape = (*rows.shape[:-2], num_frames, rows.shape[-1])
  out = np.full(shape, -1, np.int32)
  out[..., : rows.shape[-2], :] = rows
  return out


def published() -> tuple[TokenStream, ...]:
  """The streams of MusicLM (sec. 3.1, 4.1, C), for where no cache is yet."""
  return (
    TokenStream("mulan", codebook_size=1024, num_codebooks=12),
    TokenStream("semantic", codebook_size=1024, frame_rate_hz=25.0),
    TokenStream(
      "acoustic", codebook_size=1024, num_codebooks=12, frame_rate_hz=50.0
    ),
    melody(codebook_size=512, num_codebooks=24),
  )
