# SPDX-License-Identifier: Apache-2.0
"""Files block by block: what is written is what `files` writes."""

import os

import numpy as np
import pytest

from musiclm_jax.audio import blocks, files


def test_blocks_make_the_file_of_the_whole(tmp_path):
  waveform = np.random.default_rng(0).normal(0, 0.7, 5000).astype(np.float32)
  files.write_wav(tmp_path / "whole.wav", waveform, 8000)
  with blocks.BlockWriter(tmp_path / "parts.wav", 8000, 1, 5000) as writer:
    for part in (waveform[:0], waveform[:1999], waveform[1999:]):
      writer.write(part)
  whole, _ = files.read_audio(tmp_path / "whole.wav")
  parts, _ = files.read_audio(tmp_path / "parts.wav")
  np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_and_nothing_is_left(tmp_path, value):
  block = np.zeros(100, np.float32)
  block[7] = value
  with (
    pytest.raises(ValueError, match="NaN or infinite"),
    blocks.BlockWriter(tmp_path / "a.wav", 8000, 1, 200) as writer,
  ):
    writer.write(np.zeros(100, np.float32))
    writer.write(block)
  assert os.listdir(tmp_path) == []
