# SPDX-License-Identifier: Apache-2.0
"""Stage specs: one language model of the cascade, described as data.

Codes of token streams flow in; the flat token sequence a decoder-only
Transformer is trained on flows out, and back. All layouts of MusicLM sec. 3.2
are instances of `StageSpec`: nothing here knows a network.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from musiclm_jax.core import streams as streams_lib
from musiclm_jax.core import unique_codes

PAD_ID = 0
BOS_ID = 1
NUM_SPECIAL_IDS = 2


@dataclasses.dataclass(frozen=True)
class Segment:
  """Levels `[first_level, end_level)` of one token stream, row-major in time.

  Attributes:
    stream: name of the token stream.
    first_level: first RVQ level included.
    end_level: one past the last RVQ level included.
    unique_consecutive: of codes that are the same several times in a row, the
      first alone is kept (AudioLM sec. III-B). What is left has no time: its
      room is that of a crop, whatever the duration, and it is padded: as
      conditioning in front, so that it ends where the target begins; as a
      target behind an end code, if there is room for one.
  """

  stream: str
  first_level: int
  end_level: int
  unique_consecutive: bool = False

  def __post_init__(self):
    if not 0 <= self.first_level < self.end_level:
      raise ValueError(
        f"levels [{self.first_level}, {self.end_level}) of segment "
        f"{self.stream!r}: expected 0 <= first_level < end_level"
      )
    if self.unique_consecutive and (self.first_level, self.end_level) != (0, 1):
      raise ValueError(
        f"unique_consecutive=True of segment {self.stream!r} with levels "
        f"[{self.first_level}, {self.end_level}): expected the first level only"
      )

  @property
  def num_levels(self) -> int:
    return self.end_level - self.first_level


@dataclasses.dataclass(frozen=True)
class StageSpec:
  """One stage: conditioning segments, then the target segment with the loss.

  Attributes:
    name: 'semantic', 'coarse', 'fine', ... .
    segments: in sequence order; the last is the target.
    crop_secs: seconds of audio in one training example (MusicLM sec. 4.1:
      30 semantic, 10 coarse, 3 fine).
    dropped_streams: conditioning that some training examples hid as a whole,
      and that guidance can therefore leave out.
  """

  name: str
  segments: tuple[Segment, ...]
  crop_secs: float
  dropped_streams: tuple[str, ...] = ()

  def __post_init__(self):
    object.__setattr__(self, "segments", tuple(self.segments))
    object.__setattr__(self, "dropped_streams", tuple(self.dropped_streams))
    if not self.segments:
      raise ValueError(f"segments of stage {self.name!r}: expected at least 1")
    if not self.crop_secs > 0:
      raise ValueError(
        f"crop_secs={self.crop_secs} of stage {self.name!r}: expected > 0"
      )

    known = self.conditioning_streams
    for stream in self.dropped_streams:
      if stream not in known:
        raise ValueError(
          f"dropped_streams={self.dropped_streams} of stage {self.name!r}: "
          f"expected some of its conditioning, {list(known)}"
        )

  @property
  def target(self) -> Segment:
    return self.segments[-1]

  @property
  def conditioning_streams(self) -> tuple[str, ...]:
    """Streams before the target."""
    names = [segment.stream for segment in self.segments[:-1]]
    return tuple(dict.fromkeys(names))

  @property
  def pads_conditioning(self) -> bool:
    """Whether tokens before the target may be padding, not to be attended."""
    return any(segment.unique_consecutive for segment in self.segments[:-1])

  @property
  def is_timed(self) -> bool:
    """Whether all its codes go by time: none are without repeats."""
    return not any(segment.unique_consecutive for segment in self.segments)


class StageLayout:
  """Token positions of a stage for one duration, and its vocabulary.

  Ids: 0 padding, 1 begin of sequence, then `codebook_size` ids for each
  (segment, level) in sequence order, so that no two levels share an id. A
  target without repeats has one more: its end.
  The vocabulary does not depend on the duration. A stage with dropped streams
  has one id more, the last, which stands for a token of theirs. Sequences are
  time-major: all levels of frame 0, then of frame 1 (AudioLM sec. III-C).

  Attributes:
    spec: the stage.
    streams: token streams by name.
    secs: seconds of audio this layout covers.
    vocab_size: ids including the special ones.
    length: tokens of the whole sequence, without BOS.
    target_start: position of the first target token.
  """

  def __init__(
    self,
    spec: StageSpec,
    streams: Mapping[str, streams_lib.TokenStream],
    secs: float | None = None,
  ):
    """Lays out `spec` for `secs` seconds (its own crop by default).

    Args:
      spec: the stage.
      streams: every stream the stage names, and perhaps others.
      secs: duration; conditioning and target cover the same audio.

    Raises:
      ValueError: if a stream is missing or has too few codebooks.
    """
    self.spec = spec
    self.streams = dict(streams)
    self.secs = spec.crop_secs if secs is None else secs
    if not self.secs > 0:
      raise ValueError(f"secs={self.secs} of stage {spec.name!r}: expected > 0")
    offset = NUM_SPECIAL_IDS
    self._offsets, self._frames = [], []
    for segment in spec.segments:
      stream = self._stream(segment)
      levels = np.arange(segment.num_levels, dtype=np.int32)
      self._offsets.append(offset + levels * stream.codebook_size)
      self._frames.append(
        stream.num_frames(
          spec.crop_secs if segment.unique_consecutive else self.secs
        )
      )
      offset += segment.num_levels * stream.codebook_size
    offset += self.end_code is not None
    self.vocab_size = int(offset) + bool(spec.dropped_streams)
    lengths = [
      frames * segment.num_levels
      for frames, segment in zip(self._frames, spec.segments)
    ]
    self.length = int(sum(lengths))
    self.target_start = int(sum(lengths[:-1]))

  def _stream(self, segment: Segment) -> streams_lib.TokenStream:
    if segment.stream not in self.streams:
      raise ValueError(
        f"stream {segment.stream!r} of stage {self.spec.name!r}: expected one "
        f"of {sorted(self.streams)}"
      )
    stream = self.streams[segment.stream]
    if segment.end_level > stream.num_codebooks:
      raise ValueError(
        f"end_level={segment.end_level} of stage {self.spec.name!r}: stream "
        f"{stream.name!r} has {stream.num_codebooks} codebooks"
      )
    return stream

  @property
  def target_stream(self) -> streams_lib.TokenStream:
    return self.streams[self.spec.target.stream]

  @property
  def num_target_levels(self) -> int:
    return self.spec.target.num_levels

  @property
  def end_code(self) -> int | None:
    """What ends a target without repeats; None where targets go by time."""
    if not self.spec.target.unique_consecutive:
      return None
    return self.target_stream.codebook_size

  @property
  def num_target_codes(self) -> int:
    """Codes among which each target code is drawn, the end included."""
    return self.target_stream.codebook_size + (self.end_code is not None)

  @property
  def shapes(self) -> tuple[tuple[int, int], ...]:
    """(frames, levels) of each segment, in sequence order."""
    return tuple(
      (frames, segment.num_levels)
      for frames, segment in zip(self._frames, self.spec.segments)
    )

  @property
  def num_target_frames(self) -> int:
    return self._frames[-1]

  @property
  def target_offsets(self) -> np.ndarray:
    """First id of each target level, int32 `[levels]`."""
    return self._offsets[-1]

  def segment_frames(self, index: int) -> int:
    """Frames of segment `index` in this layout."""
    return self._frames[index]

  def encode_segment(self, index: int, codes):
    """Codes of one segment to tokens.

    Args:
      index: which segment.
      codes: integers `[..., frames, codebooks]` with ALL codebooks of the
        stream; the segment's levels are selected here. Negative codes mean
        padding and become `PAD_ID`. numpy or jax; without repeats numpy, and
        it does not matter whether repeats are left out already.

    Returns:
      Tokens `[..., frames * levels]`, same array kind as `codes`.
    """
    segment = self.spec.segments[index]
    codes = codes[..., segment.first_level : segment.end_level]
    if segment.unique_consecutive:
      is_target = index in (-1, len(self.spec.segments) - 1)
      codes = unique_codes.collapse(
        codes,
        self.streams[segment.stream].codebook_size,
        self.end_code if is_target else None,
        pad_in_front=not is_target,
      )
    tokens = codes + self._offsets[index].astype(codes.dtype)
    tokens = tokens * (codes >= 0)  # PAD_ID is 0.
    return tokens.reshape(*codes.shape[:-2], -1)

  def drop(self, tokens):
    """Tokens `[..., length]` with those of dropped streams hidden.

    Padding stays padding. numpy or jax; target tokens and BOS stay.

    Raises:
      ValueError: if the stage has no dropped streams.
    """
    if not self.spec.dropped_streams:
      raise ValueError(
        f"dropped_streams=() of stage {self.spec.name!r}: expected some"
      )
    is_dropped = tokens < 0
    for segment, offsets in zip(self.spec.segments[:-1], self._offsets):
      if segment.stream in self.spec.dropped_streams:
        size = self.streams[segment.stream].codebook_size
        first, end = int(offsets[0]), int(offsets[-1]) + size
        is_dropped |= (tokens >= first) & (tokens < end)
    return tokens + is_dropped * (self.vocab_size - 1 - tokens)

  def encode(self, codes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Codes by stream name, `[batch, frames, codebooks]`, to `[batch, length]`.

    Raises:
      ValueError: if a stream has another number of frames than the layout.
    """
    parts = []
    for index, segment in enumerate(self.spec.segments):
      array = np.asarray(codes[segment.stream])
      if array.shape[-2] != self._frames[index]:
        raise ValueError(
          f"{segment.stream!r} codes of stage {self.spec.name!r} have shape "
          f"{array.shape}: expected {self._frames[index]} frames"
        )
      parts.append(self.encode_segment(index, array))
    return np.concatenate(parts, axis=-1).astype(np.int32)

  def target_codes(self, codes: np.ndarray) -> np.ndarray:
    """Target codes as the stage models them, `[..., frames, levels]`.

    Args:
      codes: of the target's stream, `[..., frames, codebooks]`.

    Returns:
      Codes of the target's levels; without repeats, with `end_code` behind
      them. Negative on padding.
    """
    return self.decode_target(self.encode_segment(-1, codes))

  def decode_target(self, tokens):
    """Target tokens `[..., frames * levels]` to codes `[..., frames, levels]`.

    The inverse of `encode_segment` for the last segment, with `end_code` where
    there is one; padding gives a negative code.
    """
    codes = tokens.reshape(*tokens.shape[:-1], -1, self.num_target_levels)
    return codes - self.target_offsets.astype(codes.dtype)


def _behind_mulan(
  num_codebooks: int, *segments: Segment
) -> tuple[Segment, ...]:
  if not num_codebooks:
    return segments
  return (Segment("mulan", 0, num_codebooks), *segments)


def semantic_stage(
  num_mulan_codebooks: int = 12,
  crop_secs: float = 30.0,
  unique_consecutive: bool = False,
) -> StageSpec:
  """p(S_t | S_<t, M): MuLan tokens, then semantic (MusicLM sec. 3.2).

  Without MuLan codebooks it is AudioLM's p(S_t | S_<t), which also leaves out
  repeated codes (`unique_consecutive`; see `Segment`).
  """
  segments = _behind_mulan(
    num_mulan_codebooks, Segment("semantic", 0, 1, unique_consecutive)
  )
  return StageSpec("semantic", segments, crop_secs)


def semantic_melody_stage(
  num_mulan_codebooks: int = 12,
  num_melody_codebooks: int = 24,
  crop_secs: float = 10.0,
) -> StageSpec:
  """MuLan, then melody tokens, then semantic (MusicLM appendix C).

  The order of the two is not published. 10 s have 3 windows of melody.
  """
  return StageSpec(
    "semantic_melody",
    (
      Segment("mulan", 0, num_mulan_codebooks),
      Segment("melody", 0, num_melody_codebooks),
      Segment("semantic", 0, 1),
    ),
    crop_secs,
  )


def coarse_stage(
  num_mulan_codebooks: int = 12,
  num_coarse_codebooks: int = 4,
  crop_secs: float = 10.0,
  num_semantic_codebooks: int = 1,
  unique_consecutive: bool = False,
) -> StageSpec:
  """MuLan and semantic tokens, then coarse acoustic (MusicLM sec. 3.2).

  Without MuLan codebooks it is AudioLM's; without semantic ones the paper's
  ablation p(A_t | A_<t, M) (sec. 5.2): semantic tokens are then not heard.
  `unique_consecutive` leaves out repeated semantic codes (see `Segment`).
  """
  segments = (Segment("acoustic", 0, num_coarse_codebooks),)
  if num_semantic_codebooks:
    semantic = Segment(
      "semantic", 0, num_semantic_codebooks, unique_consecutive
    )
    segments = (semantic, *segments)
  return StageSpec(
    "coarse", _behind_mulan(num_mulan_codebooks, *segments), crop_secs
  )


def fine_stage(
  num_coarse_codebooks: int = 4,
  num_codebooks: int = 12,
  crop_secs: float = 3.0,
  num_mulan_codebooks: int = 0,
) -> StageSpec:
  """Coarse, then fine acoustic (AudioLM sec. III-C); MuLan optional."""
  segments = _behind_mulan(
    num_mulan_codebooks,
    Segment("acoustic", 0, num_coarse_codebooks),
    Segment("acoustic", num_coarse_codebooks, num_codebooks),
  )
  return StageSpec("fine", segments, crop_secs)


def acoustic_stage(
  num_mulan_codebooks: int = 12,
  num_codebooks: int = 12,
  crop_secs: float = 10.0,
) -> StageSpec:
  """MuLan and semantic tokens, then all acoustic levels; MuLan optional.

  Of the back ends that take the place of coarse and fine stage
  (`networks/depthwise_lm.py`, `networks/soundstorm.py`).
  """
  segments = (
    Segment("semantic", 0, 1),
    Segment("acoustic", 0, num_codebooks),
  )
  if num_mulan_codebooks:
    segments = (Segment("mulan", 0, num_mulan_codebooks), *segments)
  return StageSpec("acoustic", segments, crop_secs)
