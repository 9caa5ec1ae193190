# SPDX-License-Identifier: Apache-2.0
"""Options of the codec's training: balancer, denoising, FSQ, snake, alarms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import errors, protocols, rng
from musiclm_jax.models import balancer, codec_gan, codec_losses, denoising
from musiclm_jax.networks import discriminators, soundstream
from musiclm_jax.partitioning import axes
from musiclm_jax.systems import tokenizers
from musiclm_jax.training import alarms, metrics

_CODEC = soundstream.SoundStreamConfig(
  sample_rate_hz=8000, channels=4, strides=(4, 5), dilations=(1,),
  code_dim=8, num_codebooks=3, codebook_size=16, init="random",
  film="decoder", quantizer_kind="fsq", fsq_steps=(4, 4),
  quantizer_gradient="rotation", decoder_activation="snake",
)  # fmt: skip
_PLAIN = codec_gan.CodecGANConfig(
  codec=dataclasses.replace(
    _CODEC, film="none", quantizer_kind="rvq", decoder_activation="elu",
    quantizer_gradient="straight_through",
  ),
  discriminators=discriminators.DiscriminatorConfig(
    num_wave_scales=1, wave_channels=4, wave_max_channels=4,
    num_wave_layers=1, stft_channels=0,
  ),
  window_lengths=(64,), num_mels=16, reconstruction_reduction="mean",
  crop_secs=0.05,
)  # fmt: skip
# All options at once: what they do not share is told apart below.
_OPTIONS = dataclasses.replace(
  _PLAIN,
  codec=_CODEC,
  weights=codec_gan.LossWeights(1.0, 2.0, 4.0, 0.5, waveform=1.0),
  kmeans_batches=2,
  discriminator_start_step=10,
  balancer=balancer.BalancerConfig(decay=0.5),
  denoising=denoising.DenoisingConfig(source="batch"),
)
_KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
  """Programs here run once or twice: nearly all their time is XLA's."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def _batch(rows: int = 8) -> dict[str, jax.Array]:
  time = np.arange(400) / 8000
  hz = np.linspace(200, 1700, rows)[:, None]
  noise = np.random.default_rng(0).normal(size=(rows, 400))
  tones = np.sin(2 * np.pi * hz * time) * 0.5
  return {
    "waveform": jnp.asarray(tones, jnp.float32),
    "noise": jnp.asarray(noise, jnp.float32),
  }


@functools.cache
def _made():
  """The trainable, its fresh and its warm variables."""
  trainable = codec_gan.CodecGAN(_OPTIONS)
  fresh = axes.unbox(jax.jit(trainable.init)(_KEY, _batch()))
  fitted = trainable.warm_start(fresh, [_batch(), _batch()], _KEY)
  return trainable, fresh, {**fresh, **fitted}


@functools.cache
def _gradients():
  return jax.jit(_made()[0].gradients)


def _mean(out, name):
  return float(out.metrics[name].total / out.metrics[name].count)


def test_balancer_gives_each_loss_its_share():
  draw = np.random.default_rng(0).normal
  gradients = {
    "a": jnp.asarray(1e3 * draw(size=(64, 50)), jnp.float32),
    "b": jnp.asarray(1e-3 * draw(size=(64, 50)), jnp.float32),
    "rest": jnp.zeros((64, 50)),
  }
  shares = {"a": 1.0, "b": 3.0, "rest": 6.0}
  config = balancer.BalancerConfig(decay=0.9, total_norm=2.0)
  norms = balancer.fresh(3)
  for _ in range(3):
    total, norms, seen = balancer.balance(gradients, shares, norms, config)
  assert seen["a"] > 1e5 * seen["b"]

  def share(name):  # of the total, along a direction the others know not
    direction = gradients[name] / jnp.linalg.norm(gradients[name])
    return 64 * float((total * direction).sum())

  # Of a mean over the batch: 64 rows of norm 2 * share / 64 each.
  np.testing.assert_allclose(share("a"), 2 * 0.25 * 8, rtol=0.05)
  np.testing.assert_allclose(share("b"), 2 * 0.75 * 8, rtol=0.05)
  # What rested has no average of zeros that would blow up its first gradient.
  gradients["rest"] = jnp.ones((64, 50))
  total, norms, _ = balancer.balance(gradients, shares, norms, config)
  assert 64 * float(jnp.linalg.norm(total[0])) < 3.0
  # And averages forget: the old scale is gone after a while.
  both_small = {**gradients, "a": gradients["b"]}
  norms = jax.lax.fori_loop(
    0,
    300,
    lambda _, norms: balancer.balance(both_small, shares, norms, config)[1],
    norms,
  )
  usual = norms.sums / norms.weights
  np.testing.assert_allclose(usual[0], usual[1], rtol=0.01)


def test_balancer_state_follows_the_players():
  trainable, _, variables = _made()
  _, out = _gradients()(variables, _batch(), _KEY, jnp.int32(10))
  assert set(out.state) == {"codebooks", "balancer"}
  assert (out.state["balancer"]["weights"] > 0).all()
  assert _mean(out, "slope_norm/feature") > 0
  # Before the critics start their averages do not move.
  _, out = _gradients()(variables, _batch(), _KEY, jnp.int32(3))
  weights = dict(
    zip(_OPTIONS.waveform_losses, np.asarray(out.state["balancer"]["weights"]))
  )
  assert weights["adversarial"] == weights["feature"] == 0
  assert weights["reconstruction"] > 0
  assert trainable.num_warm_start_batches == 2


def test_only_ratios_of_balanced_losses_count():
  _, _, variables = _made()
  tenfold = dataclasses.replace(
    _OPTIONS.weights,
    adversarial=10.0,
    feature=20.0,
    reconstruction=40.0,
    waveform=10.0,
  )
  other = dataclasses.replace(
    tenfold, adversarial=40.0, reconstruction=10.0, waveform=0.1
  )

  def gradients(weights):
    trainable = codec_gan.CodecGAN(
      dataclasses.replace(_OPTIONS, weights=weights)
    )
    grads, _ = jax.jit(trainable.gradients)(
      variables, _batch(), _KEY, jnp.int32(10)
    )
    leaves = jax.tree.leaves(grads["generator"]["decoder"])
    return np.concatenate([np.ravel(leaf) for leaf in leaves])

  grads, _ = _gradients()(variables, _batch(), _KEY, jnp.int32(10))
  leaves = jax.tree.leaves(grads["generator"]["decoder"])
  usual = np.concatenate([np.ravel(leaf) for leaf in leaves])
  size = np.linalg.norm(usual)
  assert np.linalg.norm(gradients(tenfold) - usual) < 1e-3 * size
  assert np.linalg.norm(gradients(other) - usual) > 0.1 * size


def test_synthetic_noise_has_many_colours():
  noise = np.asarray(denoising.coloured_noise(_KEY, (64, 4096)))
  power = np.abs(np.fft.rfft(noise)) ** 2
  slope_db = 10 * np.log10(
    power[:, 200:400].mean(-1) / power[:, 800:1600].mean(-1)
  )  # over two octaves
  assert slope_db.min() < 2 and 9 < slope_db.max() < 14


def test_triples_of_input_target_and_switch():
  batch = _batch(64)
  clean = np.asarray(batch["waveform"])
  config = denoising.DenoisingConfig(min_gain_db=-20.0, max_gain_db=-10.0)
  for noise in (batch["noise"], None):
    heard, target, flag = map(
      np.asarray, denoising.draw(batch["waveform"], noise, _KEY, config)
    )
    noisy = (heard != clean).any(-1)
    assert 16 < noisy.sum() < 48 and 16 < flag.sum() < 48
    np.testing.assert_array_equal(target[flag], clean[flag])
    np.testing.assert_array_equal(target[~flag], heard[~flag])
    assert (noisy & flag).any() and (noisy & ~flag).any()
    added = 10 * np.log10(
      ((heard - clean)[noisy] ** 2).mean(-1) / (clean[noisy] ** 2).mean(-1)
    )
    assert -20.1 < added.min() < -18 and -12 < added.max() < -9.9


def test_denoising_trains_the_switch():
  trainable, _, variables = _made()
  grads, _ = _gradients()(variables, _batch(), _KEY, jnp.int32(0))
  kernel = np.abs(np.asarray(grads["generator"]["film"]["kernel"]))
  assert (kernel.max(-1) > 0).all()  # both settings of the flag
  _, out = jax.jit(trainable.loss, static_argnums=4)(
    variables, _batch(), _KEY, 0, False
  )
  assert np.isfinite(_mean(out, "noisy_si_snr_db"))
  # A switch that, when set, leaves the sound of no latents at all.
  film = variables["params"]["generator"]["film"]["kernel"]
  silent = jnp.zeros_like(film).at[1, : film.shape[1] // 2].set(-1.0)
  generator = {**variables["params"]["generator"], "film": {"kernel": silent}}
  params = {**variables["params"], "generator": generator}
  _, out = jax.jit(trainable.loss, static_argnums=4)(
    {**variables, "params": params}, _batch(), _KEY, 0, False
  )
  config = dataclasses.replace(
    _OPTIONS.denoising, noisy_fraction=1.0, denoise_fraction=1.0
  )
  clean, noise = _batch()["waveform"], _batch()["noise"]
  heard, _, flag = denoising.draw(
    clean, noise, rng.named(_KEY, "denoising"), config
  )
  codec = {"params": generator, "codebooks": variables["codebooks"]}
  found = {}
  for name, denoise in (("kept", ~flag), ("denoised", flag)):
    sound = trainable.codec.apply(codec, heard, denoise=denoise)
    snr = codec_losses.si_snr_db(clean, sound.reconstruction)
    found[name] = float(snr.mean())
    assert _mean(out, f"{name}_si_snr_db") == pytest.approx(found[name], 1e-3)
  assert abs(found["kept"] - found["denoised"]) > 1.0
  assert set(trainable.input_shapes(2)) == {"waveform", "noise"}
  with pytest.raises(ValueError, match="film='none'"):
    dataclasses.replace(_PLAIN, denoising=denoising.DenoisingConfig())


def test_fsq_starts_from_data_and_gets_gradients():
  trainable, fresh, variables = _made()
  waveform = _batch()["waveform"]

  def error(variables, levels):
    codec = {
      "params": variables["params"]["generator"],
      "codebooks": variables["codebooks"],
    }
    apply = functools.partial(trainable.codec.apply, codec)
    latents = apply(waveform, method="latents")
    codes = apply(waveform, method="encode")
    assert codes.shape == (8, 20, 3) and 0 <= codes.min() <= codes.max() < 16
    quantized = trainable.codec.bind(codec).quantizer.decode(
      codes[..., :levels]
    )
    return float(((latents - quantized) ** 2).mean())

  by_level = [error(variables, n) for n in (0, 1, 2, 3)]
  assert by_level == sorted(by_level, reverse=True)
  assert by_level[3] < 0.5 * error(fresh, 3)
  grads, out = _gradients()(variables, _batch(), _KEY, jnp.int32(0))
  for part in ("quantizer", "encoder", "decoder"):
    for leaf in jax.tree.leaves(grads["generator"][part]):
      assert float(jnp.abs(leaf).max()) > 0, part
  assert "frequency" in variables["params"]["generator"]["decoder"][
    "last_activation"
  ]  # fmt: skip
  counts = out.state["codebooks"]["quantizer"]["counts"]
  np.testing.assert_allclose(counts.sum(-1), 0.01 * 8 * 20, rtol=1e-5)


def test_bad_options_are_named():
  for field, value in (
    ("quantizer_kind", "vq"),
    ("quantizer_gradient", "none"),
    ("decoder_activation", "relu"),
    ("fsq_steps", (4, 3)),
  ):
    with pytest.raises(ValueError, match=field):
      dataclasses.replace(_CODEC, **{field: value})
  with pytest.raises(ValueError, match="decay=2"):
    balancer.BalancerConfig(decay=2)
  with pytest.raises(ValueError, match="min_gain_db=3"):
    denoising.DenoisingConfig(min_gain_db=3)


def _watch(config=_PLAIN):
  rules = codec_gan.CodecGAN(config).alarm_rules(8)
  return alarms.Alarms(rules)


@pytest.mark.parametrize(
  ("name", "metric", "values"),
  [
    ("low_codebook_usage", "codebook_usage/02", [0.05] * 30),
    ("codebook_collapse", "codebook_average_perplexity/00", [0.5] * 30),
    ("dead_codebook", "codebook_replaced/01", [0.5] * 60),
    ("commitment_exploding", "commitment", [1.0] * 5 + [20.0] * 5),
    ("discriminator_winning", "discriminator", [0.01] * 40),
    ("discriminator_losing", "discriminator", [1.999] * 40),
    ("generator_exploding", "loss", [3.0] * 5 + [50.0] * 5),
    ("diverged", "reconstruction", [3.0] * 5 + [5e3] * 5),
  ],
)
def test_alarms_of_the_codec(name, metric, values):
  found = []
  watch = _watch()
  for index, value in enumerate(values):
    found += watch.check(20 * (index + 1), {metric: value})
  assert [alarm.rule.name for alarm in found] == [name]
  assert len(found[0].rule.message) > 40


def test_healthy_numbers_raise_no_alarm():
  watch = _watch()
  for step in range(20, 3000, 20):
    values = {
      "loss": 3.0 / step**0.1,
      "reconstruction": 2.0,
      "commitment": 0.4,
      "discriminator": 1.9,
      "codebook_usage/00": 0.9,
      "codebook_average_perplexity/00": 9.0,
      "codebook_replaced/00": 0.01,
    }
    assert watch.check(step, values) == []
  waiting = _watch(dataclasses.replace(_PLAIN, discriminator_start_step=4000))
  for step in range(20, 3000, 20):
    assert waiting.check(step, {"discriminator": 0.0}) == []


def test_a_codec_that_meets_nan_says_where():
  """Data that is not finite, and a loss that is not, are told apart."""
  trainable, _, variables = _made()
  good, bad = (
    _gradients()(variables, {**_batch(), "waveform": waveform}, _KEY, 3)[1]
    for waveform in (
      _batch()["waveform"],
      _batch()["waveform"].at[5, 7].set(jnp.nan),
    )
  )
  one, zero = (protocols.Mean(jnp.float32(x), 1.0) for x in (1, 0))
  pending = metrics.Pending(alarms.History(trainable))
  for step in range(1, 6):
    pending.add(step, np.arange(8), {**good.metrics, "finite": one})
  pending.add(6, np.arange(8) + 40, {**bad.metrics, "finite": zero})
  with pytest.raises(
    FloatingPointError, match="step 6: .*samples of the batch itself.*45"
  ):
    pending.check()
  pending = metrics.Pending(alarms.History(trainable))
  for step in range(1, 9):
    grown = protocols.Mean(jnp.float32(4.0 if step < 6 else 4.0**step), 1.0)
    values = {**good.metrics, "finite": one, "discriminator": grown}
    pending.add(step, (), values)
  nan = {
    name: protocols.Mean(jnp.float32(jnp.nan), 1.0)
    for name in ("feature", "discriminator", "gradient_norm/generator")
  }
  pending.add(9, (), {**good.metrics, **nan, "finite": zero})
  with pytest.raises(
    FloatingPointError,
    match="computed first: feature of the generator. First to go bad: "
    "discriminator of the discriminator, 4096 at step 6 where 4 was usual",
  ):
    pending.check()


def test_frozen_with_fsq_and_switch(tmp_path):
  trainable, _, variables = _made()
  tokenizers.export_soundstream(
    tmp_path,
    trainable.config.codec,
    variables["params"]["generator"],
    variables["codebooks"],
  )
  plain = tokenizers.SoundStreamTokenizer.load(tmp_path)
  waveform = np.asarray(_batch(2)["waveform"])
  codes = plain.encode(waveform)
  codec = {
    "params": variables["params"]["generator"],
    "codebooks": variables["codebooks"],
  }
  for denoise, tokenizer in (
    (False, plain),
    (True, tokenizers.SoundStreamTokenizer.load(tmp_path, denoise=True)),
  ):
    expected = trainable.codec.apply(
      codec, codes, jnp.full((2,), denoise), method="decode"
    )
    np.testing.assert_allclose(tokenizer.decode(codes), expected, atol=1e-5)
    # The switch is behind the codes.
    assert tokenizer.fingerprint == plain.fingerprint
  assert np.abs(plain.decode(codes) - np.asarray(expected)).max() > 1e-6
  config = dataclasses.replace(trainable.config.codec, film="none")
  tokenizers.export_soundstream(
    tmp_path / "none", config, codec["params"], codec["codebooks"]
  )
  with pytest.raises(errors.UserError, match="without film"):
    tokenizers.SoundStreamTokenizer.load(tmp_path / "none", denoise=True)
