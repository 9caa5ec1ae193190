# SPDX-License-Identifier: Apache-2.0
"""The codec with two channels: one step of both players, and the image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import artifacts
from musiclm_jax.models import codec_gan, codec_losses
from musiclm_jax.networks import discriminators, soundstream
from musiclm_jax.partitioning import axes

# The programs run once: compiling them well would take longer.
_QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}
_MODEL = codec_gan.CodecGAN(
  codec_gan.CodecGANConfig(
    codec=soundstream.SoundStreamConfig(
      sample_rate_hz=8000, num_channels=2, channels=2, strides=(4, 5),
      dilations=(1,), code_dim=4, num_codebooks=2, codebook_size=8,
    ),
    discriminators=discriminators.DiscriminatorConfig(
      num_wave_scales=1, wave_channels=4, wave_max_channels=4,
      num_wave_layers=1, stft_channels=2, stft_frame_length=64,
      stft_hop_length=32, stft_multipliers=(1,),
    ),
    window_lengths=(64,),
    num_mels=8,
    reconstruction_reduction="mean",
    crop_secs=0.05,
  )
)  # fmt: skip


def test_a_step_reaches_every_parameter_of_both_players():
  shapes = _MODEL.input_shapes(2)
  assert shapes["waveform"].shape == (2, 400, 2)
  noise = np.random.default_rng(0).normal(size=(2, 400, 2))
  batch = {"waveform": jnp.asarray(0.1 * noise, jnp.float32)}

  @functools.partial(jax.jit, compiler_options=_QUICK)
  def first_step(key):
    variables = axes.unbox(_MODEL.init(key, batch))
    return _MODEL.gradients(variables, batch, key, jnp.int32(0))

  gradients, out = first_step(jax.random.key(0))
  flat = artifacts.flatten(gradients)
  assert flat["generator/encoder/first/kernel"].shape == (7, 2, 2)
  assert flat["generator/decoder/last/kernel"].shape == (7, 2, 2)
  assert flat["discriminator/wave_0/first/kernel"].shape == (15, 2, 4)
  assert flat["discriminator/stft/first/kernel"].shape == (7, 7, 4, 2)
  for name, gradient in flat.items():
    assert np.isfinite(gradient).all(), name
  for name in (
    "generator/encoder/first/kernel",
    "generator/decoder/last/kernel",
    "discriminator/wave_0/first/kernel",
    "discriminator/stft/first/kernel",
  ):
    # Both channels, each by itself.
    by_channel = np.abs(flat[name]).sum((0, -1)).reshape(-1)
    assert (by_channel > 0).all(), name
  assert float(out.metrics["loss"].total) > 0


def test_width_counts_in_the_loss_as_much_as_the_middle():
  noise = np.random.default_rng(0).normal(size=(2, 1, 400)) * 0.1
  middle, side = jnp.asarray(noise, jnp.float32)
  target = jnp.stack([middle + side, middle - side], -1)
  rows = codec_losses.as_rows(target)
  np.testing.assert_allclose(rows, jnp.concatenate([middle, side]), atol=1e-6)
  no_side = jnp.stack([middle, middle], -1)
  no_middle = jnp.stack([side, -side], -1)
  lost = [
    float(_MODEL.reconstruction_loss(target, wrong))
    for wrong in (no_side, no_middle, target)
  ]
  np.testing.assert_allclose(lost[0], lost[1], rtol=0.3)
  assert lost[0] > 10 * lost[2]


def test_untrained_codec_passes_the_middle_to_both_sides():
  codec = soundstream.SoundStream(_MODEL.config.codec)
  with pytest.raises(ValueError, match=r"expected \[batch, samples, 2\]"):
    codec.init(jax.random.key(0), jnp.zeros((1, 20)))
  waveform = jnp.full((1, 100, 2), 0.1).at[..., 1].set(0.3)

  @functools.partial(jax.jit, compiler_options=_QUICK)
  def passed(key):
    variables = codec.init(key, waveform)
    latents = codec.apply(variables, waveform, method="latents")
    decode = lambda module, x: module.decoder(x)  # noqa: E731
    return codec.apply(variables, latents, method=decode)

  out = np.asarray(passed(jax.random.key(0)))[0, 40:]
  np.testing.assert_allclose(out.mean(0), [0.2, 0.2], atol=0.05)
