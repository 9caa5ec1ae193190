# SPDX-License-Identifier: Apache-2.0
"""Streams whose frames are windows of audio."""

import numpy as np
import pytest

from musiclm_jax.core import artifacts, streams

MELODY = streams.melody(512, 24)


@pytest.mark.parametrize(
  "secs, count",
  [(1, 1), (4, 1), (6.9, 1), (7, 2), (9.9, 2), (10, 3), (12, 3), (30, 9)],
)
def test_windows_lie_inside(secs, count):
  assert MELODY.num_frames(secs) == count


def test_taken_windows_belong_to_the_span():
  # Stored window n begins at second n.
  stored = np.arange(17)[:, None] * np.ones((1, 2), int)
  taken = streams.take_windows(MELODY, stored, 5.0, 3)
  assert taken.dtype == np.int32
  np.testing.assert_array_equal(taken, [[5, 5], [8, 8], [11, 11]])
  batch = streams.take_windows(MELODY, np.stack([stored] * 2), 5.0, 3)
  np.testing.assert_array_equal(batch, [taken] * 2)
  # Where the audio has ended there is padding.
  np.testing.assert_array_equal(
    streams.take_windows(MELODY, stored, 12.0, 3)[:, 0], [12, 15, -1]
  )
  np.testing.assert_array_equal(
    streams.take_windows(MELODY, stored, 20.0, 3), np.full((3, 2), -1)
  )


def test_windows_survive_json():
  values = artifacts.config_to_dict(MELODY)
  assert artifacts.config_from_dict(streams.TokenStream, values) == MELODY
  # Artefacts from before there were windows.
  old = {"name": "semantic", "codebook_size": 4, "frame_rate_hz": 25.0}
  read = artifacts.config_from_dict(streams.TokenStream, old)
  assert not read.has_windows


@pytest.mark.parametrize(
  "rate_hz, window, stride, text",
  [
    (0.5, 4.0, 0.0, "both positive"),
    (0.5, 0.0, 1.0, "both positive"),
    (0.0, 4.0, 1.0, "multiple of stride_secs"),
    (0.4, 4.0, 1.0, "multiple of stride_secs"),
  ],
)
def test_bad_windows_are_refused(rate_hz, window, stride, text):
  with pytest.raises(ValueError, match=text):
    streams.TokenStream("melody", 4, 1, rate_hz, window, stride)


def test_grid_is_the_common_rate():
  def stream(name, rate):
    return streams.TokenStream(name, 8, 1, rate)

  pair = {"a": stream("a", 25.0), "b": stream("b", 50.0)}
  assert streams.grid_hz(pair) == 25.0
  pair = {"a": stream("a", 25.0), "b": stream("b", 37.5)}
  assert streams.grid_hz(pair) == 12.5
  with pytest.raises(ValueError, match="frame rate"):
    streams.grid_hz({"mulan": stream("mulan", 0.0)})
