# SPDX-License-Identifier: Apache-2.0
"""What a decoder is given: inputs, targets and weights."""

import numpy as np

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


def test_fine_stage_reads_one_stream_twice():
  spec = stages.fine_stage(2, 4, crop_secs=1.0)
  layout = stages.StageLayout(spec, _STREAMS)
  converter = feature_converters.StageConverter(layout)
  acoustic = np.arange(16, dtype=np.int32).reshape(4, 4)
  _, targets, weights = converter.encode(acoustic)
  codes = layout.decode_target(targets[layout.target_start :])
  np.testing.assert_array_equal(codes, acoustic[:, 2:])
  assert weights.sum() == 8
