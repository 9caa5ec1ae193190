# SPDX-License-Identifier: Apache-2.0
"""What a window is told: codes of a whole item in, those of a window out."""

from collections.abc import Mapping

import numpy as np

from musiclm_jax.core import stages as stages_lib
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.decoding import continuation


def cut(
  layout: stages_lib.StageLayout,
  codes: Mapping[str, np.ndarray],
  window: continuation.Window,
) -> dict[str, np.ndarray]:
  """Conditioning codes of one window, cut from those of the whole item.

  Args:
    layout: of the window.
    codes: by stream over the whole item, `[batch, frames, codebooks]`; of a
      stream with windows all that are stored.
    window: in frames of the target.

  Returns:
    By stream, `[batch, frames of the window, codebooks]`.
  """
  start_secs = window.start / (layout.target_stream.frame_rate_hz or 1.0)
  cut = {}
  for index, segment in enumerate(layout.spec.segments[:-1]):
    stream = layout.streams[segment.stream]
    array = np.asarray(codes[segment.stream])
    if stream.has_windows:
      cut[segment.stream] = streams_lib.take_windows(
        stream, array, start_secs, layout.segment_frames(index)
      )
      continue
    span = continuation.stream_span(
      start_secs,
      layout.segment_frames(index),
      stream.frame_rate_hz,
      array.shape[1],
    )
    cut[segment.stream] = array[:, span]
  return cut
