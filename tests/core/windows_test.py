# SPDX-License-Identifier: Apache-2.0
"""Windows keep each frame once, and lie on a grid that knows no end."""

import numpy as np
import pytest

from musiclm_jax.core import windows


def test_every_frame_is_kept_once_from_a_window_that_holds_it():
  config = windows.WindowConfig(length=10, left=2, right=1, buckets=(4, 10))
  for count in range(1, 60):
    plan = config.plan(count)
    kept = [f for w in plan for f in range(w.keep_start, w.keep_end)]
    assert kept == list(range(count))
    for window in plan:
      assert window.start % config.stride == 0
      assert window.start <= window.keep_start < window.keep_end <= window.end
      assert window.end - window.start <= config.bucket(
        window.end - window.start
      )
    results = [np.arange(w.start, w.start + 10) for w in plan]
    np.testing.assert_array_equal(windows.join(plan, results), range(count))
  assert len(config.plan(10)) == 1
  assert config.bucket(4) == 4 and config.bucket(5) == 10


def test_a_frame_has_the_same_window_in_files_of_any_length():
  config = windows.WindowConfig(length=10, left=2, right=2)

  def window_of(frame, count):
    return next(
      (w.start, w.end)
      for w in config.plan(count)
      if w.keep_start <= frame < w.keep_end
    )

  # The whole windows of a shorter file are those of a longer one.
  for frame in range(20):
    assert window_of(frame, 28) == window_of(frame, 97)


@pytest.mark.parametrize(
  "fields", [{"left": 6, "right": 4}, {"left": -1}, {"buckets": (4, 8)}]
)
def test_windows_without_a_middle_are_refused(fields):
  with pytest.raises(ValueError, match="expected"):
    windows.WindowConfig(length=10, **fields)
