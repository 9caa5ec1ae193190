# SPDX-License-Identifier: Apache-2.0
"""Token streams: what kinds of discrete codes exist, described as data."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TokenStream:
  """A named kind of code, shared by tokenizers, caches, stages and decoding.

  Codes of a stream are int32 `[..., frames, codebooks]`, each in
  `[0, codebook_size)`. A stream with `frame_rate_hz == 0` describes a whole
  clip by one frame (MuLan); the others are sequences in time.

  Attributes:
    name: 'mulan', 'semantic', 'acoustic', ... .
    codebook_size: entries of each codebook.
    num_codebooks: RVQ levels per frame.
    frame_rate_hz: frames per second, or 0 for one frame per clip.
  """

  name: str
  codebook_size: int
  num_codebooks: int = 1
  frame_rate_hz: float = 0.0

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

  def num_frames(self, secs: float) -> int:
    """Frames of this stream in `secs` seconds of audio (at least 1)."""
    if self.frame_rate_hz == 0:
      return 1
    return max(1, round(secs * self.frame_rate_hz))


def published() -> tuple[TokenStream, ...]:
  """The streams of MusicLM (sec. 3.1 and 4.1), for where no cache is yet."""
  return (
    TokenStream("mulan", codebook_size=1024, num_codebooks=12),
    TokenStream("semantic", codebook_size=1024, frame_rate_hz=25.0),
    TokenStream(
      "acoustic", codebook_size=1024, num_codebooks=12, frame_rate_hz=50.0
    ),
  )
