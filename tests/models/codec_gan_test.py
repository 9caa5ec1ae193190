# SPDX-License-Identifier: Apache-2.0
"""The codec GAN: who gets which gradient, warm-up, overfitting, levels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import protocols
from musiclm_jax.evaluation import heldout_codec
from musiclm_jax.models import codec_gan, codec_losses
from musiclm_jax.networks import discriminators, soundstream
from musiclm_jax.partitioning import axes

_CONFIG = codec_gan.CodecGANConfig(
  codec=soundstream.SoundStreamConfig(
    sample_rate_hz=8000, channels=4, strides=(4, 5), dilations=(1,),
    code_dim=8, num_codebooks=4, codebook_size=16, init="random",
  ),
  discriminators=discriminators.DiscriminatorConfig(
    num_wave_scales=1, wave_channels=4, wave_max_channels=4,
    num_wave_layers=1, stft_channels=2, stft_frame_length=64,
    stft_hop_length=32, stft_multipliers=(1, 1),
  ),
  window_lengths=(64, 256), num_mels=16, reconstruction_reduction="mean",
  discriminator_start_step=100, crop_secs=0.1,
)  # fmt: skip
_MODEL = codec_gan.CodecGAN(_CONFIG)
_KEY = jax.random.key(0)


def _batch() -> dict[str, jax.Array]:
  time = np.arange(800) / 8000
  hz = np.array([200, 300, 440, 660, 880, 1000, 1300, 1700])[:, None]
  tones = np.sin(2 * np.pi * hz * time) * 0.5
  return {"waveform": jnp.asarray(tones, jnp.float32)}


@functools.cache
def _variables():
  return axes.unbox(jax.jit(_MODEL.init)(_KEY, _batch()))


_gradients = jax.jit(_MODEL.gradients)


@functools.cache
def _trained(steps: int = 60):
  """Variables and the reconstruction loss of every step."""
  variables = _variables()
  moments = jax.tree.map(jnp.zeros_like, variables["params"])

  @jax.jit
  def update(variables, moments, step):
    grads, out = _MODEL.gradients(
      variables, _batch(), jax.random.fold_in(_KEY, step), step
    )
    moments = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g**2, moments, grads)
    params = jax.tree.map(
      lambda p, g, m: p - 2e-3 * g / (jnp.sqrt(m) + 1e-8),
      variables["params"], grads, moments,
    )  # fmt: skip
    return {"params": params, **out.state}, moments, out.metrics

  losses = []
  for step in range(steps):
    variables, moments, metrics = update(variables, moments, jnp.int32(step))
    mean = metrics["reconstruction"]
    losses.append(float(mean.total / mean.count))
  return variables, losses


def _norms(tree) -> np.ndarray:
  return np.array([float(jnp.abs(x).max()) for x in jax.tree.leaves(tree)])


def test_is_a_trainable():
  assert isinstance(_MODEL, protocols.Trainable)
  assert _MODEL.input_shapes(3)["waveform"].shape == (3, 800)
  assert set(_variables()["params"]) == {"generator", "discriminator"}


def test_each_player_gets_its_own_gradient():
  """The joint pass equals differentiating each player's loss alone."""
  variables, batch = _variables(), _batch()
  params, weights = variables["params"], _CONFIG.weights
  grads, out = _gradients(variables, batch, _KEY, jnp.int32(100))
  critics, waveform = _MODEL.discriminators, batch["waveform"]

  def forward(generator):
    (estimate, (quantizer, _)) = _MODEL._generate(
      generator, variables["codebooks"], waveform, _KEY, True
    )
    return estimate, quantizer.commitment

  def critic_loss(critic):
    real = critics.apply({"params": critic}, waveform)
    fake = critics.apply({"params": critic}, forward(params["generator"])[0])
    return codec_losses.discriminator_loss(real, fake)

  def generator_loss(generator):
    estimate, commitment = forward(generator)
    critic = {"params": params["discriminator"]}
    real, fake = (
      critics.apply(critic, waveform),
      critics.apply(critic, estimate),
    )
    return (
      _MODEL.reconstruction_loss(waveform, estimate)
      + weights.adversarial * codec_losses.adversarial_loss(fake)
      + weights.feature * codec_losses.feature_loss(real, fake)
      + weights.commitment * commitment
    )

  for name, loss in (
    ("generator", generator_loss), ("discriminator", critic_loss)
  ):  # fmt: skip
    expected = jax.jit(jax.grad(loss))(params[name])
    # As a whole: single entries jump where a hinge or an L1 term has a kink.
    ours, theirs = (
      np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
      for tree in (grads[name], expected)
    )
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error < 0.05, (name, error)
    assert (_norms(grads[name]) > 0).mean() > 0.9
  assert float(out.metrics["discriminator"].total) > 0


def test_critics_rest_before_their_start():
  grads, out = _gradients(_variables(), _batch(), _KEY, jnp.int32(99))
  assert (_norms(grads["discriminator"]) == 0).all()
  assert (_norms(grads["generator"]) > 0).mean() > 0.9
  assert float(out.metrics["adversarial"].total) == 0
  assert set(out.state) == {"codebooks"}


def test_overfits_one_batch():
  _, losses = _trained()
  assert np.mean(losses[-5:]) < 0.8 * losses[0]


def test_distortion_falls_with_every_codebook():
  variables, _ = _trained()
  codec = {
    "params": variables["params"]["generator"],
    "codebooks": variables["codebooks"],
  }
  waveform = _batch()["waveform"]
  latents = _MODEL.codec.apply(codec, waveform, method="latents")
  codes = _MODEL.codec.apply(codec, waveform, method="encode")
  embed = codec["codebooks"]["quantizer"]["embed"]
  errors, left = [], latents
  for level in range(4):
    left = left - embed[level][codes[..., level]]
    errors.append(float((left**2).mean()))
  assert errors == sorted(errors, reverse=True)
  mel = [
    float(_MODEL.reconstruction_loss(
      waveform,
      _MODEL.codec.apply(codec, codes[..., :n], method="decode")))
    for n in (1, 4)
  ]  # fmt: skip
  assert mel[1] < mel[0]


def test_evaluation_changes_nothing_and_reports_levels():
  loss, out = jax.jit(_MODEL.loss, static_argnums=4)(
    _variables(), _batch(), _KEY, 0, False
  )
  assert out.state == {} and np.isfinite(loss)
  for name in ("log_mel_distance", "si_snr_db", "codebook_usage/03"):
    assert float(out.metrics[name].count) == 8.0


def test_published_reduction_grows_with_the_crop():
  published = codec_gan.CodecGAN(
    dataclasses.replace(_CONFIG, reconstruction_reduction="sum")
  )
  a, b = _batch()["waveform"], jnp.roll(_batch()["waveform"], 1, 0)
  twice = [jnp.concatenate([x, x], 1) for x in (a, b)]
  grown = published.reconstruction_loss(*twice)
  np.testing.assert_allclose(
    grown / published.reconstruction_loss(a, b), 2.0, rtol=0.1
  )
  np.testing.assert_allclose(
    _MODEL.reconstruction_loss(*twice), _MODEL.reconstruction_loss(a, b),
    rtol=0.1,
  )  # fmt: skip


def test_bad_config_is_named():
  with pytest.raises(ValueError, match="reconstruction_reduction='max'"):
    dataclasses.replace(_CONFIG, reconstruction_reduction="max")
  with pytest.raises(ValueError, match="feature=-1"):
    codec_gan.LossWeights(feature=-1)


def test_heldout_codec_hears_the_first_codebooks():
  judge = heldout_codec.HeldoutCodec(num_codebooks=(1, 4))
  assert judge.fits(_MODEL)
  assert not heldout_codec.HeldoutCodec().fits(_MODEL)  # 4 codebooks, not 12
  rows = jax.jit(lambda v, b: judge.rows(_MODEL, v, b, _KEY))(
    _variables(), _batch()
  )
  assert rows.shape == (8, 2)
  found = judge.score(np.asarray(rows))
  score = jax.jit(_MODEL.loss, static_argnums=4)
  _, out = score(_variables(), _batch(), _KEY, 0, False)
  metric = out.metrics["log_mel_distance"]
  assert found["log_mel_distance_04"] == pytest.approx(
    float(metric.total / metric.count), rel=1e-4
  )
  assert found["log_mel_distance_01"] != found["log_mel_distance_04"]
  assert judge.directions == dict.fromkeys(found, "min")
