# SPDX-License-Identifier: Apache-2.0
"""Chroma names the pitch class, in every octave, and levels are in dB."""

import numpy as np
import pytest

from musiclm_jax.audio import chroma


@pytest.mark.parametrize("midi, pitch_class", [(57, 9), (60, 0), (78, 6)])
def test_pitch_class(midi, pitch_class):
  hz = 440 * 2 ** ((midi - 69) / 12)
  waveform = np.sin(2 * np.pi * hz * np.arange(24000) / 24000)
  out = np.asarray(chroma.chroma(waveform.astype(np.float32), 24000))
  assert out.shape == (25, 12)
  assert (out[3:-3].argmax(-1) == pitch_class).all()
  np.testing.assert_allclose(out[3:-3].max(-1), 1.0, rtol=1e-5)


def test_silence_has_no_chroma():
  np.testing.assert_array_equal(chroma.chroma(np.zeros(4800), 24000), 0.0)
