# SPDX-License-Identifier: Apache-2.0
"""The codec: lengths, causality, prefixes, names and size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import artifacts
from musiclm_jax.networks import soundstream, soundstream_coders
from musiclm_jax.partitioning import axes

_CONFIG = soundstream.SoundStreamConfig(
  channels=2, strides=(2, 3), dilations=(1, 3), code_dim=4,
  num_codebooks=3, codebook_size=8, film="decoder",
)  # fmt: skip
_CODEC = soundstream.SoundStream(_CONFIG)


def _waveform(samples: int = 60) -> jax.Array:
  return jax.random.normal(jax.random.key(1), (2, samples))


@functools.cache
def _variables():
  init = jax.jit(_CODEC.init)
  return axes.unbox(init(jax.random.key(0), _waveform()))


@functools.cache
def _jitted(method: str):
  return jax.jit(lambda v, x: _CODEC.apply(v, x, method=method))


@pytest.mark.parametrize("samples", [60, 61])
def test_lengths_are_exact(samples):
  waveform = _waveform(samples)
  codes = _jitted("encode")(_variables(), waveform)
  assert codes.shape == (2, -(-samples // 6), 3) and codes.dtype == jnp.int32
  back = _jitted("decode")(_variables(), codes)
  assert back.shape == (2, codes.shape[1] * 6) and back.dtype == jnp.float32
  out = _jitted("__call__")(_variables(), waveform)
  assert out.reconstruction.shape == waveform.shape
  np.testing.assert_array_equal(out.quantizer.codes, codes)
  np.testing.assert_allclose(out.reconstruction, back[:, :samples], atol=1e-5)


def test_no_frame_depends_on_a_later_one():
  waveform = _waveform()
  later = waveform.at[:, 30:].add(1.0)
  a = _jitted("latents")(_variables(), waveform)
  b = _jitted("latents")(_variables(), later)
  np.testing.assert_allclose(a[:, :5], b[:, :5], atol=1e-6)
  assert not np.allclose(a[:, 5], b[:, 5])
  codes = jnp.zeros((2, 10, 3), jnp.int32)
  a = _jitted("decode")(_variables(), codes)
  b = _jitted("decode")(_variables(), codes.at[:, 5:].set(3))
  np.testing.assert_allclose(a[:, :30], b[:, :30], atol=1e-6)
  assert not np.allclose(a[:, 30:], b[:, 30:])


def test_any_prefix_of_codebooks_decodes():
  codes = _jitted("encode")(_variables(), _waveform())
  for levels in (1, 2):
    out = _jitted("decode")(_variables(), codes[..., :levels])
    assert out.shape == (2, 60) and np.isfinite(out).all()


def _noisy_variables():
  """Where, unlike at the start, every tap of every kernel counts."""
  generator = np.random.default_rng(0)
  noise = functools.partial(generator.normal, scale=0.2)
  return jax.tree.map(
    lambda x: np.float32(x + noise(size=x.shape)), _variables()
  )


def test_a_stream_in_any_cut_equals_the_whole():
  waveform, variables = _waveform(60), _noisy_variables()
  codes = _jitted("encode")(variables, waveform)
  whole = _jitted("decode")(variables, codes)
  encode = jax.jit(_CODEC.stream_encode)
  decode = jax.jit(_CODEC.stream_decode)
  read = _CODEC.stream_state(variables, 2, "encode")
  write = _CODEC.stream_state(variables, 2, "decode")
  start, parts, sounds = 0, [], []
  for frames in (1, 4, 4, 1):
    end = start + 6 * frames
    part, read = encode(variables, read, waveform[:, start:end])
    sound, write = decode(variables, write, part)
    start, parts, sounds = end, [*parts, part], [*sounds, sound]
  np.testing.assert_array_equal(jnp.concatenate(parts, 1), codes)
  np.testing.assert_allclose(jnp.concatenate(sounds, 1), whole, atol=1e-4)
  # Nothing but the state connects the pieces.
  fresh = _CODEC.stream_state(variables, 2, "decode")
  lost, _ = decode(variables, fresh, codes[:, 5:6])
  assert not np.allclose(lost, whole[:, 30:36], atol=1e-3)


def test_elu_is_the_usual_one():
  x = jnp.array([-200.0, -3.0, -1e-3, -1e-9, 0.0, 1e-3, 4.0, 1e4])
  np.testing.assert_allclose(
    soundstream_coders.elu(x), jax.nn.elu(x), atol=1e-7
  )
  slopes = [
    jax.vmap(jax.grad(f))(x) for f in (soundstream_coders.elu, jax.nn.elu)
  ]
  np.testing.assert_allclose(slopes[0], slopes[1], atol=1e-6)


def test_latency_is_one_frame():
  config = soundstream.SoundStreamConfig()
  assert (config.latency_frames, config.latency_ms) == (1, 20.0)
  assert config.bitrate_bps(12) == 6000.0


def test_film_follows_the_flag():
  codes = jnp.ones((2, 4, 3), jnp.int32)
  off, on = (
    _CODEC.apply(_variables(), codes, jnp.array([False, flag]),
                 method="decode")
    for flag in (False, True)
  )  # fmt: skip
  np.testing.assert_allclose(off[0], on[0], atol=1e-6)
  assert not np.allclose(off[1], on[1])


def test_parameter_names_are_stable():
  unit = {"dilated/kernel", "dilated/bias", "pointwise/kernel",
          "pointwise/bias"}  # fmt: skip
  expected = {"film/kernel"}
  for side, last in (("encoder", "down"), ("decoder", "up")):
    parts = ["first", "last", f"block_0_{last}", f"block_1_{last}"]
    for part in parts:
      expected |= {f"{side}/{part}/kernel", f"{side}/{part}/bias"}
    for block in (0, 1):
      for index in (0, 1):
        expected |= {f"{side}/block_{block}_unit_{index}/{u}" for u in unit}
  assert set(artifacts.flatten(_variables()["params"])) == expected
  books = _variables()["codebooks"]["quantizer"]
  assert set(books) == {"embed", "counts", "sums", "initialized"}


def test_paper_size():
  config = soundstream.SoundStreamConfig()
  assert config.hop_length == 480 and config.frame_rate_hz == 50
  shapes = jax.eval_shape(
    soundstream.SoundStream(config).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 480), jnp.float32),
  )
  count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
  # 8.4 M at strides (2, 4, 5, 8); the larger strides cost about 1 M.
  assert 8e6 < count < 11e6
  axes_named = axes.logical_specs(shapes)["params"]["encoder"]["first"]
  assert tuple(axes_named["kernel"]) == ("kernel_time", "conv_in", "conv_out")


def test_bad_config_is_named():
  with pytest.raises(ValueError, match="film='both'"):
    soundstream.SoundStreamConfig(film="both")
  with pytest.raises(ValueError, match="strides"):
    soundstream.SoundStreamConfig(strides=())


def test_unquantized_examples_reach_the_decoder_as_they_are():
  config = dataclasses.replace(
    _CONFIG, unquantized_fraction=0.5, quantizer_dropout=False
  )
  waveform = jax.random.normal(jax.random.key(2), (16, 60))

  def train(config):
    codec = soundstream.SoundStream(config)
    run = functools.partial(codec.apply, train=True, mutable=["codebooks"])
    out, _ = jax.jit(run)(_variables(), waveform, key=jax.random.key(3))
    return out.reconstruction

  def decode_latents(codec, x):
    return codec.decoder(codec._switch("decoder", codec.latents(x), None))

  whole = jax.jit(lambda v: _CODEC.apply(v, waveform, method=decode_latents))(
    _variables()
  )
  passed = np.isclose(train(config), whole, atol=1e-5).all(1)
  assert 0 < passed.sum() < 16
  assert not np.isclose(train(_CONFIG), whole, atol=1e-5).all(1).any()
  with pytest.raises(ValueError, match="unquantized_fraction=1.0"):
    dataclasses.replace(_CONFIG, unquantized_fraction=1.0)
