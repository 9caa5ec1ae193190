# SPDX-License-Identifier: Apache-2.0
"""The w2v-BERT loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax.core import protocols
from musiclm_jax.layers import conformer
from musiclm_jax.models import masked_prediction
from musiclm_jax.networks import w2v_bert
from musiclm_jax.partitioning import axes
from musiclm_jax.training import alarms


@pytest.fixture(scope="module")
def model():
  block = conformer.ConformerConfig(
    num_layers=1, embed_dim=32, num_heads=2, mlp_dim=64, dropout_rate=0.0
  )
  return masked_prediction.MaskedPrediction(
    masked_prediction.MaskedPredictionConfig(
      num_distractors=10, gumbel_steps=100, crop_secs=2.0
    ),
    w2v_bert.W2vBertConfig(
      conv_channels=(4, 4),
      contrastive=block,
      masked_prediction=block,
      codebook_size=16,
      code_dim=8,
      tap_layer=1,
    ),
  )


def test_distractors_are_other_masked_frames_of_the_row():
  masked = np.random.default_rng(0).random((3, 20)) < 0.4
  masked[2] = False
  masked[2, [4, 9]] = True
  at = np.asarray(
    masked_prediction.draw_distractors(
      jax.random.key(0), jnp.asarray(masked), 200
    )
  )
  for row in range(3):
    places = set(np.flatnonzero(masked[row]))
    for frame in places:
      assert set(at[row, frame]) == places - {frame}


def test_contrastive_chance_and_numpy():
  config = masked_prediction.MaskedPredictionConfig(num_distractors=7)
  codes = jax.random.normal(jax.random.key(0), (2, 12, 4))
  ids = jnp.broadcast_to(jnp.arange(12), (2, 12))
  masked = jnp.ones((2, 12), bool).at[1].set(False)
  key = jax.random.key(1)
  losses, _, weights = masked_prediction.contrastive_losses(
    key, jnp.zeros((2, 12, 4)), codes, ids, masked, config
  )
  np.testing.assert_allclose(losses[0], np.log(8), rtol=1e-5)
  np.testing.assert_array_equal(weights.sum(1), [12, 0])
  context = jax.random.normal(jax.random.key(2), (2, 12, 4))
  losses, _, _ = masked_prediction.contrastive_losses(
    key, context, codes, ids, masked, config
  )
  at = np.asarray(masked_prediction.draw_distractors(key, masked, 7))[0, 3]
  candidates = np.asarray(codes)[0, np.concatenate([[3], at])]
  query = np.asarray(context)[0, 3]
  cosine = candidates @ query / np.linalg.norm(candidates, axis=-1)
  scores = np.exp(cosine / np.linalg.norm(query) / 0.1)
  expected = -np.log(scores[0] / scores.sum())
  np.testing.assert_allclose(losses[0, 3], expected, rtol=1e-4)


def test_distractor_with_the_same_code_does_not_count():
  config = masked_prediction.MaskedPredictionConfig(num_distractors=7)
  losses, _, _ = masked_prediction.contrastive_losses(
    jax.random.key(0),
    jnp.ones((1, 9, 4)),
    jnp.ones((1, 9, 4)),
    jnp.zeros((1, 9), jnp.int32),
    jnp.ones((1, 9), bool),
    config,
  )
  np.testing.assert_allclose(losses, 0.0, atol=1e-6)


def test_gumbel_temperature_is_annealed(model):
  config = model.config
  for step, expected in ((0, 2.0), (50, 1.0), (100, 0.5), (1000, 0.5)):
    value = config.gumbel_temperature(step)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_overfits_one_batch(model):
  key = jax.random.key(0)
  generator = np.random.default_rng(0)
  # Eight notes per clip: something to predict from its surroundings.
  notes = 220 * 2 ** (generator.integers(0, 24, (4, 8)) / 12)
  phase = 2 * np.pi * np.cumsum(np.repeat(notes, 4000, axis=1), 1) / 16000
  batch = {"waveform": (0.3 * np.sin(phase)).astype(np.float32)}
  assert model.input_shapes(4)["waveform"].shape == (4, 32000)
  assert isinstance(model, protocols.Trainable)
  params = axes.unbox(jax.jit(model.init)(key, batch))["params"]
  optimizer = optax.adam(3e-3)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, index):
    def loss(params):
      return model.loss({"params": params}, batch, key, index, True)

    (_, output), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    update, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, update), state, output.metrics

  history = []
  for index in range(100):
    params, state, metrics = step(params, state, index)
    history.append({n: float(m.total / m.count) for n, m in metrics.items()})
  first, last = history[0], history[-1]
  assert last["loss"] < 0.6 * first["loss"]
  assert last["contrastive_accuracy"] > 0.6
  assert last["masked_accuracy"] > 0.6
  assert last["target_perplexity"] > 2.0
  assert 1.0 <= last["codebook_perplexity"] <= 16.0
  assert last["gumbel_temperature"] < first["gumbel_temperature"]


def test_kmeans_start_spreads_the_targets(model):
  generator = np.random.default_rng(0)
  notes = 220 * 2 ** (generator.integers(0, 24, (8, 16)) / 12)
  phase = 2 * np.pi * np.cumsum(np.repeat(notes, 2000, axis=1), 1) / 16000
  batches = [
    {"waveform": part}
    for part in np.split((0.3 * np.sin(phase)).astype(np.float32), 2)
  ]
  key = jax.random.key(0)
  fresh = axes.unbox(jax.jit(model.init)(key, batches[0]))
  started = model.warm_start(fresh, iter(batches), key)
  loss = jax.jit(
    lambda variables: model.loss(variables, batches[0], key, 0, False)
  )

  def perplexity(variables):
    mean = loss(variables)[1].metrics["target_perplexity"]
    return float(mean.total / mean.count)

  assert perplexity(started) > 8.0  # of 16
  assert perplexity(started) > 1.5 * perplexity(fresh)
  # Nothing but the choice of codes changes.
  for name, value in fresh["params"].items():
    if name != "quantizer":
      jax.tree.map(
        np.testing.assert_array_equal, started["params"][name], value
      )


def test_bad_config_names_field():
  with pytest.raises(ValueError, match="gumbel_end=3"):
    masked_prediction.MaskedPredictionConfig(gumbel_end=3.0)
  with pytest.raises(ValueError, match="num_distractors=0"):
    masked_prediction.MaskedPredictionConfig(num_distractors=0)


def test_alarms_know_a_collapse_from_health(model):
  # 16 codes, 100 steps of annealing: the first 25 are early.
  def raised(step, **values):
    watch = alarms.Alarms(model.alarm_rules(8))
    found = []
    for at in range(2, step + 1, 2):
      found += watch.check(at, values)
    return {alarm.rule.name for alarm in found}

  healthy = {
    "target_perplexity": 6.0,
    "diversity_loss": 0.6,
    "masked_accuracy": 0.2,
    "contrastive_accuracy": 0.3,
    "feature_spread": 0.5,
  }
  assert raised(60, **healthy) == set()
  collapsed = healthy | {
    "target_perplexity": 1.2,
    "diversity_loss": 0.99,
    "masked_accuracy": 0.97,
    "feature_spread": 1e-5,
  }
  assert raised(20, **collapsed) == {
    "feature_collapse",
    "codebook_collapse",
    "diversity_lost",
    "masked_accuracy_too_good",
  }
  # Late, being good is no alarm; being at chance is.
  watch = alarms.Alarms(model.alarm_rules(8))
  late = healthy | {"masked_accuracy": 0.97, "contrastive_accuracy": 0.05}
  found = [a.rule.name for at in (30, 50) for a in watch.check(at, late)]
  assert found == ["contrastive_at_chance"]
  # What they watch is what the loss reports.
  watched = {rule.metric for rule in model.alarm_rules(8)}
  terms = {name for names in model.loss_terms.values() for name in names}
  batch = model.input_shapes(2)
  key = jax.eval_shape(lambda: jax.random.key(0))
  fresh = axes.unbox(jax.eval_shape(model.init, key, batch))
  _, output = jax.eval_shape(
    lambda v, b, k: model.loss(v, b, k, 0, True), fresh, batch, key
  )
  assert watched | terms <= set(output.metrics)


def test_spread_is_of_clips_not_of_positions():
  random = np.random.default_rng(0)
  positions = random.standard_normal((1, 20, 16)).repeat(4, 0)
  clips = random.standard_normal((4, 20, 16))
  assert masked_prediction.spread(jnp.asarray(positions)) < 1e-12
  assert 0.6 < masked_prediction.spread(jnp.asarray(clips)) < 0.9
  both = masked_prediction.spread(jnp.asarray(positions + clips))
  assert 0.25 < both < 0.5
