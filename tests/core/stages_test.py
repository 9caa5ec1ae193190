# SPDX-License-Identifier: Apache-2.0
"""Stage layouts: published lengths, round trips, disjoint ids."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import stages, streams

STREAMS = {
  "mulan": streams.TokenStream("mulan", 1024, 12),
  "semantic": streams.TokenStream("semantic", 1024, 1, 25.0),
  "acoustic": streams.TokenStream("acoustic", 1024, 12, 50.0),
}


@pytest.mark.parametrize(
  "spec, length, target_start",
  [
    (stages.semantic_stage(), 762, 12),
    (stages.coarse_stage(), 2262, 262),
    # MusicLM sec. 5.2, the ablation without a semantic stage.
    (stages.coarse_stage(num_semantic_codebooks=0), 2012, 12),
    (stages.fine_stage(), 1800, 600),
    # Codes without repeats have the room of all, whatever is left out.
    (stages.semantic_stage(unique_consecutive=True), 762, 12),
    (stages.coarse_stage(unique_consecutive=True), 2262, 262),
  ],
)
def test_published_lengths(spec, length, target_start):
  layout = stages.StageLayout(spec, STREAMS)
  assert layout.length == length
  assert layout.target_start == target_start


def _random_codes(layout, batch=2):
  rng = np.random.default_rng(0)
  return {
    name: rng.integers(
      0,
      stream.codebook_size,
      (batch, stream.num_frames(layout.secs), stream.num_codebooks),
      dtype=np.int32,
    )
    for name, stream in STREAMS.items()
  }


@pytest.mark.parametrize(
  "spec",
  [stages.semantic_stage(), stages.coarse_stage(), stages.fine_stage()],
  ids=lambda spec: spec.name,
)
def test_round_trip_and_disjoint_levels(spec):
  layout = stages.StageLayout(spec, STREAMS, secs=2.0)
  codes = _random_codes(layout)
  tokens = layout.encode(codes)
  assert tokens.shape == (2, layout.length)
  assert tokens.min() >= stages.NUM_SPECIAL_IDS
  assert tokens.max() < layout.vocab_size
  target = spec.target
  np.testing.assert_array_equal(
    layout.decode_target(tokens[:, layout.target_start :]),
    codes[target.stream][..., target.first_level : target.end_level],
  )
  # Each (segment, level) owns a range of its own.
  offsets = [
    offset
    for index, segment in enumerate(spec.segments)
    for offset in layout.encode_segment(
      index, np.zeros((1, STREAMS[segment.stream].num_codebooks), int)
    )
  ]
  assert len(set(offsets)) == len(offsets)
  assert min(np.diff(sorted(offsets))) >= 1024


def test_time_major_order():
  layout = stages.StageLayout(stages.fine_stage(), STREAMS, secs=0.04)
  codes = _random_codes(layout, batch=1)["acoustic"]
  tokens = layout.encode_segment(0, codes)
  np.testing.assert_array_equal(
    (tokens - stages.NUM_SPECIAL_IDS) % 1024, codes[:, :, :4].reshape(1, -1)
  )


def test_padding_becomes_pad_id():
  layout = stages.StageLayout(stages.semantic_stage(), STREAMS, secs=1.0)
  codes = np.full((1, 25, 1), -1, np.int32)
  assert (layout.encode_segment(1, codes) == stages.PAD_ID).all()


def _unique(spec_of, codes, secs=None):
  """Layout of 0.2 s, and tokens of a row of semantic codes."""
  spec = spec_of(num_mulan_codebooks=0, crop_secs=0.2, unique_consecutive=True)
  layout = stages.StageLayout(spec, STREAMS, secs)
  return layout, {"semantic": np.array([codes], np.int32)[..., np.newaxis]}


def test_target_without_repeats_ends_with_an_id_of_its_own():
  layout, codes = _unique(stages.semantic_stage, [7, 7, 9, 9, 7])
  plain = stages.StageLayout(stages.semantic_stage(0, 0.2), STREAMS)
  assert (plain.end_code, plain.num_target_codes) == (None, 1024)
  assert (layout.end_code, layout.num_target_codes) == (1024, 1025)
  assert layout.vocab_size == plain.vocab_size + 1
  tokens = layout.encode(codes)
  np.testing.assert_array_equal(
    tokens, [[9, 11, 9, layout.vocab_size - 1, stages.PAD_ID]]
  )
  decoded = layout.target_codes(codes["semantic"])[0, :, 0]
  np.testing.assert_array_equal(decoded[:4], [7, 9, 7, 1024])
  assert decoded[4] < 0
  # What is without repeats already, with its end, stays.
  again = layout.encode({"semantic": layout.decode_target(tokens)})
  np.testing.assert_array_equal(again, tokens)


def test_conditioning_without_repeats_ends_where_the_target_begins():
  for secs in (None, 0.04):  # Of a crop, whatever the duration.
    layout, codes = _unique(stages.coarse_stage, [7, 7, 9, 9, 7], secs)
    assert layout.target_start == 5 and layout.end_code is None
    tokens = layout.encode_segment(0, codes["semantic"])
    np.testing.assert_array_equal(tokens, [[0, 0, 9, 11, 9]])
  assert layout.spec.pads_conditioning and not layout.spec.is_timed
  with pytest.raises(ValueError, match=r"levels \[0, 2\).*first level only"):
    stages.Segment("acoustic", 0, 2, unique_consecutive=True)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_dropped_streams_share_one_id_behind_all_others(kind):
  plain = stages.StageLayout(stages.coarse_stage(), STREAMS, secs=1.0)
  spec = dataclasses.replace(plain.spec, dropped_streams=("mulan",))
  layout = stages.StageLayout(spec, STREAMS, secs=1.0)
  assert layout.vocab_size == plain.vocab_size + 1
  codes = _random_codes(layout)
  codes["mulan"][0, 0, 3] = -1
  tokens = layout.encode(codes)
  np.testing.assert_array_equal(tokens, plain.encode(codes))
  dropped = layout.drop(kind(tokens))
  expected = np.full((2, 12), plain.vocab_size)
  expected[0, 3] = stages.PAD_ID
  np.testing.assert_array_equal(dropped[:, :12], expected)
  np.testing.assert_array_equal(dropped[:, 12:], tokens[:, 12:])
  with pytest.raises(ValueError, match="dropped_streams=()"):
    plain.drop(tokens)
  with pytest.raises(ValueError, match="'melody'.*'mulan', 'semantic'"):
    dataclasses.replace(spec, dropped_streams=("melody",))
  # Of a stream that is condition and target, the target stays.
  fine = stages.StageLayout(
    dataclasses.replace(stages.fine_stage(), dropped_streams=("acoustic",)),
    STREAMS,
    secs=1.0,
  )
  tokens = fine.encode(_random_codes(fine))
  changed = fine.drop(tokens) != tokens
  assert changed[:, : fine.target_start].all()
  assert not changed[:, fine.target_start :].any()


def test_errors_name_what_is_wrong():
  with pytest.raises(ValueError, match="'acoustic'.*semantic"):
    stages.StageLayout(
      stages.fine_stage(), {"semantic": STREAMS["semantic"]}, 1.0
    )
  with pytest.raises(ValueError, match="12 codebooks"):
    stages.StageLayout(stages.fine_stage(num_codebooks=16), STREAMS)
  layout = stages.StageLayout(stages.semantic_stage(), STREAMS, secs=1.0)
  with pytest.raises(ValueError, match="expected 25 frames"):
    layout.encode(
      {"mulan": np.zeros((1, 1, 12), int), "semantic": np.zeros((1, 9, 1), int)}
    )
