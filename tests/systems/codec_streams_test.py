# SPDX-License-Identifier: Apache-2.0
"""Streams of a frozen codec: any cut equals the whole, also by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import artifacts, errors
from musiclm_jax.networks import soundstream
from musiclm_jax.partitioning import axes
from musiclm_jax.systems import codec_streams, tokenizers

CONFIG = soundstream.SoundStreamConfig(
  sample_rate_hz=60, channels=2, strides=(2, 3), dilations=(1,), kernel_size=3,
  code_dim=4, num_codebooks=3, codebook_size=8,
)  # fmt: skip
SAMPLES = 59  # at 6 per frame: the last is not whole
PIECES = {"samples": [1] * SAMPLES, "odd": [4, 0, 1, 13, 40, 1]}


@pytest.fixture(name="codec", scope="module")
def _codec():
  network = soundstream.SoundStream(CONFIG)
  shapes = axes.unbox(
    jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 6)))
  )
  generator = np.random.default_rng(0)

  def draw(x):
    scale = 2.0 * np.prod(x.shape[:-1]) ** -0.5 if x.ndim > 1 else 0.0
    return generator.normal(scale=scale, size=x.shape).astype(np.float32)

  arrays = jax.tree.map(draw, shapes)
  config = artifacts.config_to_dict(CONFIG)
  return tokenizers.SoundStreamTokenizer(
    artifacts.Artifact("soundstream", config, arrays, "mark", {}, {})
  )


@pytest.fixture(name="waveform", scope="module")
def _waveform():
  return np.random.default_rng(1).normal(size=(2, SAMPLES)).astype(np.float32)


def _pushed(stream, array, lengths):
  parts, start = [], 0
  for length in lengths:
    parts.append(stream.push(array[:, start : start + length]))
    start += length
  return np.concatenate([*parts, stream.flush()], axis=1)


@pytest.mark.parametrize("chunk_frames", [1, 4])
@pytest.mark.parametrize("lengths", PIECES.values(), ids=PIECES)
def test_pieces_of_any_length_join_to_the_whole(
  codec, waveform, lengths, chunk_frames
):
  whole = codec.encode(waveform)
  sound = codec.decode(whole[..., :2])
  encoder = codec.stream_encoder(2, chunk_frames, num_codebooks=2)
  decoder = codec.stream_decoder(2, chunk_frames)
  assert encoder.latency_frames == chunk_frames
  assert encoder.latency_ms == pytest.approx(100.0 * chunk_frames)
  for _ in range(2):  # A flush starts a new stream.
    codes = _pushed(encoder, waveform, lengths)
    np.testing.assert_array_equal(codes, whole[..., :2])
    assert len(np.unique(codes)) > 3
    back = _pushed(decoder, codes, [1, 2, 0, 7])
    np.testing.assert_allclose(back, sound, atol=1e-4)


def test_a_frame_leaves_with_its_last_sample(codec, waveform):
  encoder, decoder = codec.stream_encoder(), codec.stream_decoder()
  assert encoder.push(waveform[:1, :5]).shape == (1, 0, 3)
  codes = encoder.push(waveform[:1, 5:6])
  assert codes.shape == (1, 1, 3)
  assert decoder.push(codes).shape == (1, 6)


def test_long_audio_takes_pieces_by_itself(codec, waveform, monkeypatch):
  codes = codec.encode(waveform)
  sound = codec.decode(codes)
  monkeypatch.setattr(tokenizers, "LONG_SECS", 0.5)
  monkeypatch.setattr(codec_streams, "MAX_CALL_FRAMES", 4)
  monkeypatch.setattr(
    codec, "_encode", lambda *args: pytest.fail("in one piece")
  )
  np.testing.assert_array_equal(codec.encode(waveform), codes)
  np.testing.assert_allclose(codec.decode(codes), sound, atol=1e-4)


def test_bad_pieces_are_refused(codec, waveform):
  with pytest.raises(ValueError, match=r"expected \[1, samples\]"):
    codec.stream_encoder().push(waveform)
  with pytest.raises(errors.UserError, match="waveform 0"):
    codec.stream_encoder().push(np.array([[0.0, np.nan]]))
  with pytest.raises(ValueError, match="num_codebooks=4"):
    codec.stream_encoder(num_codebooks=4)
  with pytest.raises(ValueError, match=r"\[0, 8\)"):
    codec.stream_decoder().push(np.full((1, 1, 3), 8))
