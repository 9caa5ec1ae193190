# SPDX-License-Identifier: Apache-2.0
"""The contrastive losses against numpy, and their trainable."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax.core import protocols
from musiclm_jax.layers import transformer
from musiclm_jax.models import contrastive
from musiclm_jax.networks import mulan, mulan_audio, mulan_text
from musiclm_jax.partitioning import axes


def _network(**changes):
  return mulan.MuLanConfig(
    resnet=mulan_audio.ResNetConfig(
      stage_blocks=(1, 1), width=8, expansion=2, stem="patch", num_groups=4
    ),
    text=mulan_text.TextTowerConfig(
      vocab_size=20,
      max_length=6,
      transformer=transformer.TransformerConfig(
        num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32, causal=False
      ),
    ),
    output_dim=16,
    **changes,
  )


def _batch(size=6, samples=4000):
  generator = np.random.default_rng(0)
  pitch = 200.0 * 2 ** (np.arange(size) / 2)
  waveform = np.sin(2 * np.pi * pitch[:, None] * np.arange(samples) / 16000)
  return {
    "waveform": (0.3 * waveform).astype(np.float32),
    "text_tokens": generator.integers(1, 20, (size, 6)).astype(np.int32),
  }


def _numpy_losses(similarity, negatives, loss):
  size = len(similarity)
  out = []
  for i in range(size):
    other = [j for j in range(size) if negatives[i, j]]
    positive = np.exp(similarity[i, i])
    to_text = sum(np.exp(similarity[i, j]) for j in other)
    to_audio = sum(np.exp(similarity[j, i]) for j in other)
    if loss == "mulan":
      out.append(-np.log(positive / (to_text + to_audio)))
    else:
      first = -np.log(positive / (positive + to_text))
      out.append((first - np.log(positive / (positive + to_audio))) / 2)
  return np.array(out)


@pytest.mark.parametrize("loss", ["mulan", "infonce"])
@pytest.mark.parametrize("masked", [False, True])
def test_pair_losses_equal_numpy(loss, masked):
  similarity = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
  negatives = ~np.eye(5, dtype=bool)
  if masked:
    negatives[1, 3] = negatives[3, 1] = False
  losses, _ = contrastive.pair_losses(
    jnp.asarray(similarity), jnp.asarray(negatives), loss
  )
  expected = _numpy_losses(similarity, negatives, loss)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("loss", "chance"), [("mulan", np.log(14)), ("infonce", np.log(8))]
)
def test_constant_encoder_is_at_chance(loss, chance):
  losses, expected = contrastive.pair_losses(
    jnp.full((8, 8), 3.0), ~jnp.eye(8, dtype=bool), loss
  )
  np.testing.assert_allclose(losses, chance, rtol=1e-5)
  np.testing.assert_allclose(expected, chance, rtol=1e-5)


def test_a_batch_of_one_text_has_zero_loss():
  for loss in ("mulan", "infonce"):
    losses, chance = contrastive.pair_losses(
      jnp.ones((3, 3)), jnp.zeros((3, 3), bool), loss
    )
    np.testing.assert_allclose(losses, 0.0, atol=1e-6)
    np.testing.assert_allclose(chance, 0.0, atol=1e-6)


def test_equal_texts_compares_rows():
  tokens = np.random.default_rng(0).integers(0, 5, (40, 3)).astype(np.int32)
  tokens[7] = tokens[3]
  expected = (tokens[:, None] == tokens[None]).all(-1)
  found = contrastive.equal_texts(jnp.asarray(tokens))
  np.testing.assert_array_equal(found, expected)
  many = np.random.default_rng(1).integers(0, 30000, (500, 8), np.int32)
  assert int(contrastive.equal_texts(jnp.asarray(many)).sum()) == 500


def test_equal_texts_are_no_negatives_in_the_loss():
  batch = _batch(4)
  batch["text_tokens"][1] = batch["text_tokens"][0]
  key = jax.random.key(0)
  values = {}
  for mask in (True, False):
    model = contrastive.Contrastive(
      contrastive.ContrastiveConfig(loss="infonce", mask_equal_texts=mask),
      _network(),
    )
    variables = axes.unbox(jax.jit(model.init)(key, batch))
    values[mask], output = jax.jit(
      lambda v, model=model: model.loss(v, batch, key, 0, False)
    )(variables)
  assert values[True] < values[False]
  assert isinstance(model, protocols.Trainable)
  assert dict(output.state) == {}


def test_temperature_is_clipped():
  model = contrastive.Contrastive(contrastive.ContrastiveConfig(), _network())
  batch, key = _batch(2), jax.random.key(0)
  variables = axes.unbox(jax.jit(model.init)(key, batch))
  loss = jax.jit(lambda v: model.loss(v, batch, key, 0, False)[1].metrics)
  for value, expected in ((-20.0, 0.01), (3.0, 1.0)):
    params = dict(
      variables["params"], log_temperature=jnp.full(1, value, jnp.float32)
    )
    metrics = loss({"params": params})
    np.testing.assert_allclose(metrics["temperature"].total, expected)


@pytest.mark.parametrize("loss", ["mulan", "infonce"])
def test_overfits_one_batch(loss):
  model = contrastive.Contrastive(
    contrastive.ContrastiveConfig(loss=loss, crop_secs=0.25), _network()
  )
  batch, key = _batch(), jax.random.key(0)
  shapes = model.input_shapes(6)
  assert {name: shape.shape for name, shape in shapes.items()} == {
    "waveform": (6, 4000),
    "text_tokens": (6, 6),
  }
  params = axes.unbox(jax.jit(model.init)(key, batch))["params"]
  optimizer = optax.adam(3e-3)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state):
    (_, output), gradient = jax.value_and_grad(
      lambda params: model.loss({"params": params}, batch, key, 0, False),
      has_aux=True,
    )(params)
    update, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, update), state, output.metrics

  for _ in range(60):
    params, state, metrics = step(params, state)
  mean = {name: float(m.total / m.count) for name, m in metrics.items()}
  assert mean["recall_at_1_audio_to_text"] == 1.0
  assert mean["recall_at_1_text_to_audio"] == 1.0
  assert mean["loss_minus_chance"] < -1.0


def test_bad_config_names_field():
  with pytest.raises(ValueError, match="loss='clip'"):
    contrastive.ContrastiveConfig(loss="clip")
  with pytest.raises(ValueError, match="min_temperature=0"):
    contrastive.ContrastiveConfig(min_temperature=0)
