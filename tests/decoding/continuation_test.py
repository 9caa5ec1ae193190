# SPDX-License-Identifier: Apache-2.0
"""Window plans cover everything once, at one shape."""

import numpy as np
import pytest

from musiclm_jax.decoding import continuation


@pytest.mark.parametrize("total", [1, 9, 10, 11, 15, 16, 37])
@pytest.mark.parametrize("prefix", [0, 5])
def test_windows_cover_all_frames_in_equal_lengths(total, prefix):
  plan = continuation.plan_windows(total, 10, prefix)
  made = [frame for w in plan for frame in range(w.start + w.num_known, w.end)]
  assert made == list(range(total))
  assert {w.num_frames for w in plan} == {min(total, 10)}
  assert plan[0].num_known == 0
  assert all(w.num_known >= prefix for w in plan[1:])
  assert all(w.num_known == prefix for w in plan[1:-1])


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("given", [0, 1, 4, 7, 10, 23, 36, 37, 40])
@pytest.mark.parametrize("cuts", [(), (3,), (12, 14), (30, 37, 50)])
def test_given_frames_stay_and_windows_end_at_cuts(prefix, given, cuts):
  plan = continuation.plan_windows(37, 10, prefix, given, cuts)
  made = [frame for w in plan for frame in range(w.new_start, w.kept_end)]
  assert made == list(range(given, 37))
  for window in plan:
    assert window.start >= 0 and window.end <= 37 and window.num_frames == 10
    assert not any(window.new_start < cut < window.kept_end for cut in cuts)
    if prefix:
      assert window.num_known >= min(prefix, window.new_start)


def test_paper_windows_are_thirty_seconds_by_fifteen():
  plan = continuation.plan_windows(60 * 25, 30 * 25, 15 * 25)
  assert [w.start for w in plan] == [0, 375, 750]
  assert [w.num_known for w in plan] == [0, 375, 375]


def test_run_windows_hands_each_window_what_is_known():
  plan = continuation.plan_windows(13, 6, 3)

  def make(window, known):
    if window.num_known:
      at = np.arange(window.start, window.start + window.num_known)
      np.testing.assert_array_equal(known[0, :, 0], at)
    else:
      assert known is None
    new = np.arange(window.start + window.num_known, window.end)
    return new[None, :, None]

  codes = continuation.run_windows(plan, make)
  np.testing.assert_array_equal(codes[0, :, 0], np.arange(13))


def test_join_windows_drops_overlap_of_the_last():
  plan = continuation.plan_windows(7, 3, 0)
  parts = [np.arange(w.start, w.end)[None, :, None] for w in plan]
  codes = continuation.join_windows(plan, parts)
  np.testing.assert_array_equal(codes[0, :, 0], np.arange(7))


def test_stream_span_stays_inside():
  assert continuation.stream_span(2.0, 10, 25.0, 100) == slice(50, 60)
  assert continuation.stream_span(3.7, 10, 25.0, 100) == slice(90, 100)
  assert continuation.stream_span(3.7, 1, 0.0, 1) == slice(0, 1)
  with pytest.raises(ValueError, match="10"):
    continuation.stream_span(0.0, 10, 25.0, 9)


def test_bad_counts_are_refused():
  with pytest.raises(ValueError, match="total_frames=0"):
    continuation.plan_windows(0, 10, 5)
  with pytest.raises(ValueError, match="prefix_frames=10"):
    continuation.plan_windows(20, 10, 10)
