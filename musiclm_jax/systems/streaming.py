# SPDX-License-Identifier: Apache-2.0
"""Audio while later tokens are still being sampled.

A request flows in; pieces of audio flow out, each as soon as its codes are
there: a semantic window, a coarse window, then fine windows, which the codec
decodes with the state it was left in. Codes equal those of `Cascade.sample`,
and what is no longer needed is forgotten: memory does not grow with length.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from musiclm_jax.decoding import continuation, tracks
from musiclm_jax.systems import (
  cascade,
  codec_streams,
  stage_windows,
)


@dataclasses.dataclass(frozen=True)
class Piece:
  """The next audio of a stream.

  Attributes:
    waveform: float32 `[batch, samples]` (and channels), at least a sample.
    acoustic_codes: int32 `[batch, frames, codebooks]`, what was decoded since
      the last piece; a codec that works in chunks lags behind.
  """

  waveform: np.ndarray
  acoustic_codes: np.ndarray


class _Maker:
  """One stage, window by window, as far as it is asked.

  Attributes:
    stage: the stage.
    track: its target codes.
    plan: windows.
    next: the first window that is not made yet.
    consumer: the stage that reads `track`, or None.
  """

  def __init__(
    self,
    name: str,
    stage: stage_windows.StageWindows,
    request: cascade.Request,
    sampling: stage_windows.Sampling,
    known: dict[str, Any],
    sources: Mapping[str, "_Maker"],
  ):
    """Plans.

    Args:
      name: of the stage.
      stage: the stage.
      request: what is known.
      sampling: of the stage.
      known: conditioning by stream, with tracks of the stages before.
      sources: the stages before, by the stream they make.
    """
    self.stage, self.next, self.consumer = stage, 0, None
    self._sampling, self._known = sampling, known
    self._negative = request.negative
    self._keys = request.stage_keys(name)
    self._given = request.given_codes(stage)
    self._is_parallel = cascade.is_parallel(name)
    conditioning = {s.stream for s in stage.spec.segments[:-1]}
    self._sources = {n: m for n, m in sources.items() if n in conditioning}
    for source in self._sources.values():
      source.consumer = self
    self.track = tracks.Track(request.num_frames(stage), self._given)
    self.plan = cascade.plan_of(name, stage, request, known)
    self._has_begun = False

  def reach(self, frame: int) -> None:
    """Makes windows until the track has `frame` frames, or all."""
    frame = min(frame, self.track.total_frames)
    while self.track.end < frame:
      self._ask(self.plan[self.next])
      if self._is_parallel:
        self._run_parallel()
      else:
        self._run_window()

  def _ask(self, window: continuation.Window) -> None:
    for name, source in self._sources.items():
      source.reach(self._needed(window, name).stop)

  def _needed(self, window: continuation.Window, name: str) -> slice:
    total = self._sources[name].track.total_frames
    return self.stage.needed_span(window, name, total)

  def _run_window(self) -> None:
    window = self.plan[self.next]
    known = None
    if window.num_known:
      known = self.track.take(window.start, window.new_start)
    self.track.append(
      self.stage.run_window(
        self._known,
        window,
        known,
        self._sampling,
        self._keys,
        self._negative,
      )
    )
    self.next += 1

  def _run_parallel(self) -> None:
    """All windows whose conditioning is there; the very first one alone.

    A power of two of them, so that few shapes are compiled.
    """
    windows = itertools.takewhile(self._is_ready, self.plan[self.next :])
    ready = list(windows)
    count = 1 << (len(ready).bit_length() - 1) if self._has_begun else 1
    rows = self.stage.num_rows(self._keys, self._sampling)
    count = min(count, max(1, stage_windows.MAX_ROWS // rows))
    self._has_begun = True
    windows = ready[:count]
    parts = self.stage.run_parallel(
      self._known,
      windows,
      self._sampling,
      self._keys,
      self._given,
      self._negative,
    )
    self.track.append(continuation.join_windows(windows, parts))
    self.next += count

  def _is_ready(self, window: continuation.Window) -> bool:
    return all(
      self._needed(window, name).stop <= source.track.end
      for name, source in self._sources.items()
    )

  def first_needed(self, name: str) -> int:
    """First frame of a source that is still to be read."""
    if self.next >= len(self.plan):
      return self._sources[name].track.total_frames
    return self._needed(self.plan[self.next], name).start

  def forget(self, emitted: int) -> None:
    """Drops what neither this stage, nor the next, nor the codec will read."""
    keep = [emitted]
    if self.next < len(self.plan):
      keep.append(self.plan[self.next].start)
    if self.consumer is not None:
      keep.append(self.consumer.first_needed(self.stage.target_stream.name))
    self.track.drop_before(min(keep))


def _makers(system: cascade.Cascade, request: cascade.Request) -> list[_Maker]:
  known: dict[str, Any] = dict(request.conditioning)
  sources: dict[str, _Maker] = {}
  makers = []
  for name, stage, sampling in system.steps(request):
    maker = _Maker(name, stage, request, sampling, known, sources)
    stream = stage.target_stream.name
    # Each stage has its own view: a later one may make the same stream.
    known = {**known, stream: maker.track}
    sources = {**sources, stream: maker}
    makers.append(maker)
  return makers


def _chunk_frames(window_frames: int) -> int:
  """Frames per call of the codec: a divisor of a window, for one shape."""
  most = min(window_frames, codec_streams.MAX_CALL_FRAMES)
  return next(n for n in range(most, 0, -1) if window_frames % n == 0)


class Stream:
  """Pieces of the items of a request, made as they are asked for.

  Iterate over it once; together the pieces have `round(seconds *
  sample_rate_hz)` samples. The first needs one window of each stage, or none
  if the begin is given.
  """

  def __init__(self, system: cascade.Cascade, request: cascade.Request):
    """Plans; samples nothing yet.

    Args:
      system: MusicLM or AudioLM.
      request: text, a story, a continuation, ... .

    Raises:
      UserError: if a number is out of range.
    """
    system.check_request(request)
    self._makers = _makers(system, request)
    name = system.codec.stream.name
    self._acoustic = [
      maker for maker in self._makers if maker.stage.target_stream.name == name
    ]
    self._num_frames = cascade.needed_frames(
      request.seconds, system.codec.stream.frame_rate_hz
    )
    self._num_samples = round(request.seconds * system.codec.sample_rate_hz)
    window = self._acoustic[-1].stage.window_frames
    self._decoder = system.codec.stream_decoder(
      len(request.seeds), _chunk_frames(window)
    )

  @property
  def held_frames(self) -> int:
    """Frames of all streams that are in memory: bounded, whatever is made."""
    return sum(maker.track.end - maker.track.start for maker in self._makers)

  def __iter__(self) -> Iterator[Piece]:
    frame = sample = 0
    fresh: list[np.ndarray] = []
    while frame < self._num_frames:
      codes = self._next_codes(frame)
      frame += codes.shape[1]
      fresh.append(codes)
      waveform = self._decoder.push(codes)
      if frame == self._num_frames:
        waveform = np.concatenate([waveform, self._decoder.flush()], axis=1)
      waveform = waveform[:, : self._num_samples - sample]
      if waveform.shape[1]:
        sample += waveform.shape[1]
        yield Piece(np.clip(waveform, -1.0, 1.0), np.concatenate(fresh, axis=1))
        fresh = []

  def _next_codes(self, frame: int) -> np.ndarray:
    """Acoustic codes from `frame` on, as far as the next windows make them."""
    last = self._acoustic[-1]
    last.reach(frame + 1)
    end = min(last.track.end, self._num_frames)
    parts = [maker.track.take(frame, end) for maker in self._acoustic]
    for maker in self._makers:
      # Tracks of other streams are read by stages only.
      read_to = end if maker in self._acoustic else maker.track.total_frames
      maker.forget(read_to)
    return np.concatenate(parts, axis=-1)
