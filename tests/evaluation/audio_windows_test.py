# SPDX-License-Identifier: Apache-2.0
"""Windows of waveforms: how many, what fills them, at what level."""

import numpy as np
import pytest

from musiclm_jax.core import errors
from musiclm_jax.evaluation import audio_windows


@pytest.mark.parametrize(
  ("count", "short_audio", "tail", "expected"),
  [
    (10, "repeat", "drop", [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]),
    (9, "repeat", "drop", [[0, 1, 2, 3], [3, 4, 5, 6]]),
    (9, "repeat", "zeros", [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 99]]),
    (10, "zeros", "zeros", [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]),
    (3, "repeat", "drop", [[0, 1, 2, 0]]),
    (3, "zeros", "drop", [[0, 1, 2, 99]]),
    (3, "repeatpad", "drop", [[0, 1, 2, 99]]),
    (2, "repeatpad", "drop", [[0, 1, 0, 1]]),
    (1, "repeat", "zeros", [[0, 0, 0, 0]]),
  ],
)
def test_windows_hold_these_samples(count, short_audio, tail, expected):
  config = audio_windows.WindowConfig(
    8000, 4, 3, short_audio=short_audio, tail=tail
  )
  samples = np.arange(count, dtype=np.float32) / 100
  found = config.cut(samples[None], 8000)[0]
  # 99 stands for a zero that was put there.
  wanted = np.array(expected)
  np.testing.assert_array_equal(
    found, np.where(wanted == 99, 0, wanted / 100).astype(np.float32)
  )


def test_peak_gain_divides_by_the_greatest_sample():
  config = audio_windows.WindowConfig(8000, 4, 4, gain="peak")
  clips = np.array([[0.2, -0.8, 0.1, 0], [0.05, 0, 0, -0.02]], np.float32)
  found = config.cut(clips, 8000)[:, 0]
  np.testing.assert_allclose(found[0], [1, -4, 0.5, 0], rtol=1e-6)
  np.testing.assert_allclose(found[1], [0.5, 0, 0, -0.2], rtol=1e-6)


def test_resamples_before_windows_are_cut():
  config = audio_windows.WindowConfig.of_secs(16000, 0.5, 0.25)
  assert config.cut(np.ones((2, 8000)), 8000).shape == (2, 3, 8000)
  with pytest.raises(errors.UserError, match="1 samples at 48000 Hz"):
    config.cut(np.ones((1, 1)), 48000)


@pytest.mark.parametrize(
  ("settings", "match"),
  [
    ({"hop_samples": 0}, "hop_samples=0"),
    ({"short_audio": "mirror"}, "short_audio='mirror'"),
    ({"tail": "keep"}, "tail='keep'"),
    ({"gain": "loud"}, "gain='loud'"),
  ],
)
def test_bad_settings_are_refused(settings, match):
  values = {"sample_rate_hz": 8000, "window_samples": 4, "hop_samples": 4}
  with pytest.raises(ValueError, match=match):
    audio_windows.WindowConfig(**{**values, **settings})


def test_bad_lengths_are_refused():
  with pytest.raises(ValueError, match="window_secs=nan"):
    audio_windows.WindowConfig.of_secs(8000, float("nan"), 1.0)
