# SPDX-License-Identifier: Apache-2.0
"""How a stage makes music of any length: windows after or beside each other.

What `generate` of a stage makes of one window flows in; codes of a whole item
flow out. The windows themselves are planned in `decoding/continuation.py`.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import stages as stages_lib
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.decoding import continuation, tracks
from musiclm_jax.decoding import sampling as sampling_lib

# Rows decoded at once when a stage's windows are independent of each other.
MAX_ROWS = 64


# Of a stage; a number is the temperature. What makes coarse and fine levels at
# once (`acoustic_stage.py`) may have one for each.
Sampling = (
  sampling_lib.SamplingConfig
  | float
  | Sequence[sampling_lib.SamplingConfig | float]
)


@dataclasses.dataclass(frozen=True)
class WindowInput:
  """What `generate` is told of one window; arrays have the leading `[batch]`.

  Attributes:
    conditioning: codes by stream over the window.
    prefix: known codes whose number is compiled in, or None.
    forced: known codes after them, or None.
    num_frames: frames after the prefix.
  """

  conditioning: dict[str, np.ndarray]
  prefix: np.ndarray | None
  forced: np.ndarray | None
  num_frames: int

  @property
  def num_forced(self) -> int:
    """Frames that are known after the prefix."""
    return 0 if self.forced is None else self.forced.shape[1]


class StageWindows(abc.ABC):
  """Windows of a stage whose `generate` makes one of them.

  Attributes:
    spec: the stage.
    streams: token streams by name.
  """

  spec: stages_lib.StageSpec
  streams: Mapping[str, streams_lib.TokenStream]

  @abc.abstractmethod
  def generate(
    self,
    conditioning: Mapping[str, np.ndarray],
    prefix: np.ndarray | None,
    num_frames: int,
    sampling: Sampling,
    keys: jax.Array,
    first_frames: np.ndarray | int = 0,
    forced: np.ndarray | None = None,
    negative: Mapping[str, np.ndarray] | None = None,
    *,
    num_forced: np.ndarray | int | None = None,
  ) -> np.ndarray:
    """Samples one window; see `stage_lm.StageLM.generate`."""

  def spread(self, partitioner: Any) -> None:
    """Splits the rows of `generate` over devices, if the stage can do that.

    What is made does not depend on it.

    Args:
      partitioner: a `partitioner.Partitioner` of the devices. (Its module
        imports flax, without which exported stages run.)
    """
    del partitioner

  @property
  def target_stream(self) -> streams_lib.TokenStream:
    """Stream of the generated codes."""
    return self.streams[self.spec.target.stream]

  @property
  def window_frames(self) -> int:
    """Target frames of one training crop."""
    return self.target_stream.num_frames(self.spec.crop_secs)

  def num_rows(self, keys: jax.Array, sampling: Sampling) -> int:
    """Rows that a window of each item takes: twice as many with guidance."""
    is_guided = sampling_lib.as_config(sampling).guidance != 1
    return keys.shape[0] * (2 if is_guided else 1)

  def windows_per_call(self, keys: jax.Array, sampling: Sampling) -> int:
    """Windows of each item that `generate_parallel` makes at once, at most."""
    return max(1, MAX_ROWS // self.num_rows(keys, sampling))

  @property
  def prefix_frames(self) -> int:
    """Frames that windows after one another share (MusicLM sec. 5.3).

    None where codes have no time, and so but one window.
    """
    if self.spec.target.unique_consecutive:
      return 0
    return self.window_frames // 2

  def _layout(self, num_frames: int) -> stages_lib.StageLayout:
    rate = self.target_stream.frame_rate_hz
    secs = num_frames / rate if rate else self.spec.crop_secs
    return stages_lib.StageLayout(self.spec, self.streams, secs)

  def _conditioning(
    self,
    codes: Mapping[str, tracks.Conditioning],
    window: continuation.Window,
  ) -> dict[str, np.ndarray]:
    """Conditioning codes of one window, cut from those of the whole item."""
    rate_hz = self.target_stream.frame_rate_hz or 1.0
    cut = {}
    for segment in self.spec.segments[:-1]:
      stream, given = self.streams[segment.stream], codes[segment.stream]
      if isinstance(given, tracks.Scenes):
        middle = (window.new_start + window.kept_end) / 2
        cut[stream.name] = given.at(middle / rate_hz)
        continue
      if stream.has_windows:
        frames = stream.num_frames(window.num_frames / rate_hz)
        cut[stream.name] = streams_lib.take_windows(
          stream, np.asarray(given), window.start / rate_hz, frames
        )
        continue
      track = tracks.as_track(given)
      span = self.needed_span(window, stream.name, track.total_frames)
      cut[stream.name] = track.take(span.start, span.stop)
    return cut

  def needed_span(
    self, window: continuation.Window, name: str, total_frames: int
  ) -> slice:
    """Frames of a conditioning stream that one window is told.

    Args:
      window: of this stage.
      name: of a stream among the conditioning.
      total_frames: of that stream, in the whole item.
    """
    for segment in self.spec.segments[:-1]:
      if segment.stream == name and segment.unique_consecutive:
        return slice(0, total_frames)
    rate_hz = self.target_stream.frame_rate_hz or 1.0
    stream = self.streams[name]
    return continuation.stream_span(
      window.start / rate_hz,
      stream.num_frames(window.num_frames / rate_hz),
      stream.frame_rate_hz,
      total_frames,
    )

  def plan(
    self,
    conditioning: Mapping[str, tracks.Conditioning],
    total_frames: int,
    given_frames: int = 0,
  ) -> tuple[continuation.Window, ...]:
    """Windows of `generate_long`; they end where scenes end."""
    scenes = [c for c in conditioning.values() if isinstance(c, tracks.Scenes)]
    rate_hz = self.target_stream.frame_rate_hz
    cuts = {frame for one in scenes for frame in one.cut_frames(rate_hz)}
    window_frames = self.window_frames
    return continuation.plan_windows(
      total_frames,
      window_frames,
      self.prefix_frames,
      given_frames,
      sorted(cuts),
    )

  def window_input(
    self,
    conditioning: Mapping[str, tracks.Conditioning],
    window: continuation.Window,
    known: np.ndarray | None,
    prefix_frames: int | None,
  ) -> WindowInput:
    """What `generate` is told of a window.

    Args:
      conditioning: as in `run_window`.
      window: of a plan.
      known: as in `run_window`.
      prefix_frames: compiled in where so many are known; None: never.
    """
    prefix, forced = None, known
    new_frames = window.num_frames
    if prefix_frames and known is not None and known.shape[1] >= prefix_frames:
      # A fixed prefix, so that a window that knows more of its frames than
      # others reuses their compiled program; so does one that knows less, for
      # it has no prefix, as the first window.
      prefix, forced = known[:, :prefix_frames], known[:, prefix_frames:]
      new_frames -= prefix_frames
    told = self._conditioning(conditioning, window)
    return WindowInput(told, prefix, forced, new_frames)

  def run_window(
    self,
    conditioning: Mapping[str, tracks.Conditioning],
    window: continuation.Window,
    known: np.ndarray | None,
    sampling: Sampling,
    keys: jax.Array,
    negative: Mapping[str, np.ndarray] | None = None,
  ) -> np.ndarray:
    """The new frames of one window of a plan.

    Args:
      conditioning: as in `generate_long`; tracks must reach to the window's
        end.
      window: of `plan`.
      known: its leading `num_known` frames `[batch, frames, levels]`, or None.
      sampling: see `generate`.
      keys: typed keys `[batch]`.
      negative: see `generate`.

    Returns:
      int32 `[batch, window.num_new, levels]`.
    """
    told = self.window_input(conditioning, window, known, self.prefix_frames)
    codes = self.generate(
      told.conditioning,
      told.prefix,
      told.num_frames,
      sampling,
      keys,
      window.start,
      told.forced,
      negative,
    )
    return codes[:, told.num_forced :][:, : window.num_new]

  def generate_long(
    self,
    conditioning: Mapping[str, tracks.Conditioning],
    total_frames: int,
    sampling: Sampling,
    keys: jax.Array,
    given: np.ndarray | None = None,
    negative: Mapping[str, np.ndarray] | None = None,
  ) -> np.ndarray:
    """Any length: half of each window is the end of the one before.

    MusicLM sec. 5.3: 15 s of known semantic tokens, 15 s of new ones.

    Args:
      conditioning: codes by stream over the whole item; of a stream with
        windows all that are stored, `stride_secs` apart.
      total_frames: target frames to make.
      sampling: see `generate`.
      keys: typed keys `[batch]`.
      given: codes of leading frames, `[batch, frames, levels]`: they are the
        begin of the result, and what is new goes on from them (AudioLM).
      negative: see `generate`.

    Returns:
      int32 `[batch, total_frames, levels]`.
    """
    if given is not None:
      given = given[:, :total_frames]
    plan = self.plan(
      conditioning, total_frames, 0 if given is None else given.shape[1]
    )

    def make(window, known):
      return self.run_window(
        conditioning, window, known, sampling, keys, negative
      )

    return continuation.run_windows(plan, make, given)

  def plan_parallel(
    self, total_frames: int, given_frames: int = 0
  ) -> tuple[continuation.Window, ...]:
    """Windows of `generate_parallel`."""
    return continuation.plan_windows(
      total_frames, self.window_frames, 0, given_frames
    )

  def run_parallel(
    self,
    conditioning: Mapping[str, tracks.Conditioning],
    windows: Sequence[continuation.Window],
    sampling: Sampling,
    keys: jax.Array,
    given: np.ndarray | None = None,
    negative: Mapping[str, np.ndarray] | None = None,
  ) -> list[np.ndarray]:
    """Windows of `plan_parallel` side by side, in one call.

    Returns:
      Whole windows, int32 `[batch, frames, levels]` each.
    """
    batch = keys.shape[0]
    starts = [window.start for window in windows]
    cuts = [self._conditioning(conditioning, window) for window in windows]
    forced = num_forced = None
    if given is not None:
      frames = windows[0].num_frames
      num_forced = [max(0, given.shape[1] - start) for start in starts]
      num_forced = np.repeat(np.minimum(num_forced, frames), batch)
      parts = [given[:, start : start + frames] for start in starts]
      longest = max(part.shape[1] for part in parts)
      forced = np.concatenate(
        [np.pad(p, ((0, 0), (0, longest - p.shape[1]), (0, 0))) for p in parts]
      )
    codes = self.generate(
      {name: np.concatenate([cut[name] for cut in cuts]) for name in cuts[0]},
      None,
      windows[0].num_frames,
      sampling,
      jnp.tile(keys, len(windows)),
      np.repeat(starts, batch),
      forced,
      {
        name: np.concatenate([array] * len(windows))
        for name, array in (negative or {}).items()
      },
      num_forced=num_forced,
    )
    return np.split(codes, len(windows))

  def generate_parallel(
    self,
    conditioning: Mapping[str, tracks.Conditioning],
    total_frames: int,
    sampling: Sampling,
    keys: jax.Array,
    given: np.ndarray | None = None,
    negative: Mapping[str, np.ndarray] | None = None,
  ) -> np.ndarray:
    """Any length, in independent windows decoded side by side.

    AudioLM sec. III-C: fine codes of non-overlapping crops. Arguments and
    result as in `generate_long`; of the given frames, only those that lie in
    the first new window are seen by it.
    """
    if given is not None:
      given = given[:, :total_frames]
    plan = self.plan_parallel(
      total_frames, 0 if given is None else given.shape[1]
    )
    per_call = self.windows_per_call(keys, sampling)
    parts = []
    for start in range(0, len(plan), per_call):
      chunk = list(plan[start : start + per_call])
      if start:  # Repeats fill the last call up to the compiled shape.
        chunk += [chunk[-1]] * (per_call - len(chunk))
      parts += self.run_parallel(
        conditioning, chunk, sampling, keys, given, negative
      )
    return continuation.join_windows(plan, parts, given)
