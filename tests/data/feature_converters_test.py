# SPDX-License-Identifier: Apache-2.0
"""What a decoder is given: inputs, targets and weights."""

import numpy as np
import pytest

from musiclm_jax.core import stages
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.data import feature_converters

_STREAMS = {
  "mulan": streams_lib.TokenStream("mulan", 8, 3),
  "semantic": streams_lib.TokenStream("semantic", 16, 1, 2.0),
  "acoustic": streams_lib.TokenStream("acoustic", 32, 4, 4.0),
}


def test_weights_are_one_exactly_on_real_target_tokens():
  spec = stages.coarse_stage(3, 2, crop_secs=1.0)
  layout = stages.StageLayout(spec, _STREAMS)
  converter = feature_converters.StageConverter(layout)
  acoustic = np.arange(16, dtype=np.int32).reshape(4, 4)
  acoustic[3:] = -1
  semantic = np.array([[5], [-1]], np.int32)
  mulan = np.array([[0, 1, 2]], np.int32)
  inputs, targets, weights = converter.encode(mulan, semantic, acoustic)
  # Offsets: specials 2, MuLan 3 x 8, semantic 16, acoustic 2 x 32.
  expected = [2, 11, 20, 31, 0, 42, 75, 46, 79, 50, 83, 0, 0]
  np.testing.assert_array_equal(targets, expected)
  np.testing.assert_array_equal(inputs, [stages.BOS_ID, *expected[:-1]])
  np.testing.assert_array_equal(weights, [0] * 5 + [1] * 6 + [0] * 2)
  assert (inputs.dtype, weights.dtype) == (np.int32, np.float32)


def test_the_end_has_a_weight_and_what_follows_has_none():
  spec = stages.semantic_stage(0, 4.0, unique_consecutive=True)
  layout = stages.StageLayout(spec, _STREAMS)
  converter = feature_converters.StageConverter(layout)
  semantic = np.array([[5], [5], [9], [9], [5], [-1], [-1], [-1]], np.int32)
  inputs, targets, weights = converter.encode(semantic)
  np.testing.assert_array_equal(targets, [7, 11, 7, 18, 0, 0, 0, 0])
  np.testing.assert_array_equal(inputs, [1, 7, 11, 7, 18, 0, 0, 0])
  np.testing.assert_array_equal(weights, [1, 1, 1, 1, 0, 0, 0, 0])
  with pytest.raises(ValueError, match="num_packed=2.*without repeats"):
    feature_converters.StageConverter(layout, num_packed=2)


def test_fine_stage_reads_one_stream_twice():
  spec = stages.fine_stage(2, 4, crop_secs=1.0)
  layout = stages.StageLayout(spec, _STREAMS)
  converter = feature_converters.StageConverter(layout)
  acoustic = np.arange(16, dtype=np.int32).reshape(4, 4)
  _, targets, weights = converter.encode(acoustic)
  codes = layout.decode_target(targets[layout.target_start :])
  np.testing.assert_array_equal(codes, acoustic[:, 2:])
  assert weights.sum() == 8


def test_short_examples_are_packed_into_a_row_and_cut_where_it_ends():
  # A row of 4 s: 3 + 8 + 32 tokens; examples of 1, 2 and 2 s.
  layout = stages.StageLayout(stages.coarse_stage(3, 2, 4.0), _STREAMS)
  converter = feature_converters.StageConverter(layout, num_packed=3)
  rng = np.random.default_rng(0)
  secs = (1, 2, 2)
  codes = []
  for name in ("mulan", "semantic", "acoustic"):
    stream = _STREAMS[name]
    frames = stream.num_frames(4.0)
    array = rng.integers(
      0, stream.codebook_size, (3, frames, stream.num_codebooks)
    )
    for row, length in enumerate(secs):
      if stream.frame_rate_hz:
        array[row, int(length * stream.frame_rate_hz) :] = -1
    codes.append(array.astype(np.int32))
  inputs, targets, weights, ids = converter.encode_packed(
    np.ones(3, np.float32), *codes
  )
  # 3 + 2 + 8 and 3 + 4 + 16 tokens; of the third only what is left. One
  # position is skipped where targets would change their level.
  assert [(ids == i).sum() for i in (1, 2)] == [13, 23]
  kept = int((ids == 3).sum())
  assert 0 < kept <= layout.length - 36 and weights[ids == 0].sum() == 0
  for number in (1, 2, 3):
    row = np.flatnonzero(ids == number)
    assert (np.diff(row) == 1).all()
    np.testing.assert_array_equal(
      inputs[row], [stages.BOS_ID, *targets[row[:-1]]]
    )
    first = row[np.flatnonzero(weights[row])[0]]
    assert first % 2 == layout.target_start % 2
    made = targets[first : row[-1] + 1].reshape(-1, 2) - layout.target_offsets
    np.testing.assert_array_equal(made, codes[2][number - 1, : len(made), :2])
