# SPDX-License-Identifier: Apache-2.0
"""The trainable of MuLan; `pair_losses_test.py` has its losses."""

import dataclasses
import fnmatch
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax.core import protocols
from musiclm_jax.evaluation import heldout_retrieval, retrieval
from musiclm_jax.layers import transformer
from musiclm_jax.models import contrastive
from musiclm_jax.networks import mulan, mulan_audio, mulan_text
from musiclm_jax.partitioning import axes
from musiclm_jax.systems import bert_import
from musiclm_jax.training import optimizers

BERT = pathlib.Path(__file__).parents[1] / "systems/bert_answers/uncased"


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


@functools.cache
def _variables(network, loss="mulan", initial_bias=-10.0):
  """Fresh variables; they depend neither on the batch nor on other options."""
  config = contrastive.ContrastiveConfig(loss=loss, initial_bias=initial_bias)
  model = contrastive.Contrastive(config, network)
  return axes.unbox(jax.jit(model.init)(jax.random.key(0), _batch()))


def test_text_ids_are_equal_where_texts_are():
  tokens = np.random.default_rng(0).integers(0, 5, (40, 3)).astype(np.int32)
  tokens[7] = tokens[3]
  expected = (tokens[:, None] == tokens[None]).all(-1)
  ids = np.asarray(contrastive.text_ids(jnp.asarray(tokens)))
  found = (ids[:, None] == ids[None]).all(-1)
  np.testing.assert_array_equal(found, expected)
  many = np.random.default_rng(1).integers(0, 30000, (500, 8), np.int32)
  ids = np.asarray(contrastive.text_ids(jnp.asarray(many)))
  assert len(np.unique(ids, axis=0)) == 500


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
    variables = _variables(_network(), "infonce")
    values[mask], output = jax.jit(
      lambda v, model=model: model.loss(v, batch, key, 0, False)
    )(variables)
  assert values[True] < values[False]
  assert isinstance(model, protocols.Trainable)
  assert dict(output.state) == {}


@pytest.mark.parametrize(
  ("loss", "tower"),
  # The loss knows nothing of towers: one loss with both is enough.
  [("mulan", "transformer"), ("mulan", "bert"), ("sigmoid", "transformer")],
)
def test_audio_without_text_takes_no_part(loss, tower):
  network = _network(bert=bert_import.text_tower(BERT, 6), text_tower=tower)
  model = contrastive.Contrastive(
    contrastive.ContrastiveConfig(loss=loss, initial_bias=-1.0), network
  )
  batch, key = _batch(), jax.random.key(0)
  params = _variables(network, loss, -1.0)["params"]
  batch["text_tokens"][[1, 4]] = 0
  kept = {name: x[[0, 2, 3, 5]] for name, x in batch.items()}
  nothing = {**batch, "text_tokens": np.zeros_like(batch["text_tokens"])}

  @jax.jit
  def run(batch):
    return jax.value_and_grad(
      lambda p: model.loss({"params": p}, batch, key, 0, False), has_aux=True
    )(params)

  (value, output), gradients = run(batch)
  (expected, without), slopes = run(kept)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(slopes))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * scale),
    gradients,
    slopes,
  )
  metrics = [
    {name: float(m.total / m.count) for name, m in out.metrics.items()}
    for out in (output, without)
  ]
  shares = [metric.pop("pairs_share") for metric in metrics]
  np.testing.assert_allclose(shares, [2 / 3, 1.0])
  for name, value in metrics[0].items():
    np.testing.assert_allclose(value, metrics[1][name], rtol=1e-4, err_msg=name)
  (value, output), gradients = run(nothing)
  assert value == 0.0
  assert all(not np.asarray(g).any() for g in jax.tree.leaves(gradients))
  assert output.metrics["loss"].count == 0


def test_parts_of_a_batch_train_a_bert_as_the_whole_does():
  network = _network(
    text_tower="bert",
    # Dropout would draw otherwise in parts.
    bert=dataclasses.replace(
      tower := bert_import.text_tower(BERT, 6),
      bert=dataclasses.replace(tower.bert, dropout_rate=0.0),
    ),
    augment=mulan.AugmentConfig(
      gain_db=0.0,
      equalizer_db=0.0,
      low_pass_rate=0.0,
      noise_db=0.0,
      num_time_masks=0,
      num_band_masks=0,
    ),
  )
  model = contrastive.Contrastive(contrastive.ContrastiveConfig(), network)
  batch, key = _batch(), jax.random.key(0)
  batch["text_tokens"][2] = 0
  params = _variables(network)["params"]

  def run(model):
    return jax.jit(
      jax.value_and_grad(
        lambda p: model.loss({"params": p}, batch, key, 0, True), has_aux=True
      )
    )(params)

  (value, whole), gradients = run(model)
  (in_parts, parts), others = run(model.in_parts(3))
  np.testing.assert_allclose(in_parts, value, rtol=1e-5)
  for name, metric in whole.metrics.items():
    np.testing.assert_allclose(
      parts.metrics[name].total, metric.total, rtol=1e-4, err_msg=name
    )
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradients))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * scale),
    gradients,
    others,
  )
  assert float(jnp.abs(gradients["text"]["bert"]["position"]).max()) > 0


def test_temperature_is_clipped():
  model = contrastive.Contrastive(contrastive.ContrastiveConfig(), _network())
  batch, key = _batch(2), jax.random.key(0)
  variables = _variables(_network())
  # Of this metric alone: no tower is compiled for it.
  temperature = jax.jit(
    lambda v: model.loss(v, batch, key, 0, False)[1].metrics["temperature"]
  )
  for value, expected in ((-20.0, 0.01), (3.0, 1.0)):
    params = dict(
      variables["params"], log_temperature=jnp.full(1, value, jnp.float32)
    )
    found = temperature({"params": params})
    np.testing.assert_allclose(found.total, expected)


@pytest.mark.parametrize("loss", ["mulan", "infonce", "sigmoid"])
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
  params = _variables(_network(), loss)["params"]
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
  assert mean["median_rank_text_to_audio"] == 1.0
  assert mean["loss_minus_chance"] < -1.0
  assert mean["loss_over_chance"] < 0.9
  if loss != "sigmoid":
    log_batch = mean["loss"] - mean["loss_minus_log_batch"]
    np.testing.assert_allclose(log_batch, np.log(6), rtol=1e-5)
  # Six clips and texts, each the nearest of one: none is a hub.
  assert mean["hub_share_text_to_audio"] == pytest.approx(1 / 6)
  assert 1 < mean["embedding_rank_text"] <= 5
  watched = [rule.metric for rule in model.alarm_rules(64)]
  for pattern in watched:
    assert fnmatch.filter(mean, pattern), pattern
  # The bias is there, and learned, with one loss only.
  assert ("bias" in mean) == ("similarity_bias" in params)
  assert ("bias" in mean) == (loss == "sigmoid")
  assert mean.get("bias") != -10.0


def test_text_tower_starts_from_weights_and_learns_at_its_own_rate():
  network = _network(text_tower="bert", bert=bert_import.text_tower(BERT, 6))
  weights = bert_import.BertWeights(str(BERT))
  config = contrastive.ContrastiveConfig()
  model = contrastive.Contrastive(config, network, text_weights=weights)
  assert model.num_warm_start_batches == 1
  assert contrastive.Contrastive(config, network).num_warm_start_batches == 0
  batch, key = _batch(), jax.random.key(0)
  variables = _variables(network)
  started = model.warm_start(variables, iter(()), key)["params"]
  expected = weights.load(network.active_text)["bert"]
  jax.tree.map(np.testing.assert_array_equal, started["text"]["bert"], expected)
  for name in ("audio", "audio_project", "log_temperature"):
    assert started[name] is variables["params"][name]
  gradient = jax.jit(
    jax.grad(lambda p: model.loss({"params": p}, batch, key, 0, False)[0])
  )(started)
  changes = {}
  for scale in (1.0, 0.1, 0.0):
    optimizer = optimizers.make_optimizer(
      optimizers.OptimizerConfig(
        schedule="constant",
        warmup_steps=0,
        rate_scales=(("text/bert", scale),) if scale < 1 else (),
      )
    )

    @jax.jit
    def update(gradient, params, optimizer=optimizer):
      return optimizer.update(gradient, optimizer.init(params), params)[0]

    changes[scale] = update(gradient, started)
  for scale in (0.1, 0.0):
    jax.tree.map(
      lambda one, other, scale=scale: np.testing.assert_allclose(
        other, scale * one, rtol=1e-3, atol=1e-9
      ),
      changes[1.0]["text"]["bert"],
      changes[scale]["text"]["bert"],
    )
    np.testing.assert_allclose(
      changes[scale]["text"]["project"]["kernel"],
      changes[1.0]["text"]["project"]["kernel"],
      rtol=1e-3,
    )
  assert float(jnp.abs(changes[1.0]["text"]["bert"]["position"]).max()) > 0


def test_rate_scales_name_what_does_not_fit():
  optimizer = optimizers.make_optimizer(
    optimizers.OptimizerConfig(rate_scales=(("text/birt", 0.1),))
  )
  params = {"text": {"bert": {"kernel": jnp.ones(2)}}}
  with pytest.raises(ValueError, match="text/birt"):
    optimizer.update(params, optimizer.init(params), params)
  with pytest.raises(ValueError, match=r"rate_scales=.*2\.0"):
    optimizers.OptimizerConfig(rate_scales=(("text", 2.0),))
  with pytest.raises(ValueError, match="groups="):
    optimizers.OptimizerConfig(rate_scales=(("text", 0.5),), groups=("text",))


def test_bad_config_names_field():
  with pytest.raises(ValueError, match="text_tower='transformer'"):
    contrastive.Contrastive(
      contrastive.ContrastiveConfig(),
      _network(),
      text_weights=bert_import.BertWeights(str(BERT)),
    )
  with pytest.raises(ValueError, match="loss='clip'"):
    contrastive.ContrastiveConfig(loss="clip")
  with pytest.raises(ValueError, match="min_temperature=0"):
    contrastive.ContrastiveConfig(min_temperature=0)
  with pytest.raises(ValueError, match="pair_chunk=0"):
    contrastive.ContrastiveConfig(pair_chunk=0)


def test_heldout_retrieval_ranks_all_pairs_it_is_given():
  model = contrastive.Contrastive(contrastive.ContrastiveConfig(), _network())
  batch, variables = _batch(), _variables(_network())
  # Row 4 has the text of row 0, row 5 none.
  tokens = batch["text_tokens"].copy()
  tokens[4], tokens[5] = tokens[0], 0
  batch = {**batch, "text_tokens": tokens}
  judge = heldout_retrieval.HeldoutRetrieval()
  assert judge.fits(model)
  rows = jax.device_get(
    jax.jit(lambda v, b: judge.rows(model, v, b, jax.random.key(0)))(
      variables, batch
    )
  )
  np.testing.assert_allclose(np.linalg.norm(rows["audio"], axis=1), 1, 1e-5)
  found = judge.score(rows)
  assert set(found) == set(judge.directions)
  assert judge.directions["median_rank_text_to_audio"] == "min"
  expected = retrieval.retrieval(
    rows["text"][:5], rows["audio"][:5], ["a", "b", "c", "d", "a"]
  )
  for side, values in expected.items():
    assert found[f"recall_at_1_{side}"] == values["recall_at_1"]
    assert found[f"median_rank_{side}"] == values["median_rank"]
  # Texts that are known by their sounds are found.
  known = judge.score({**rows, "text": rows["audio"]})
  assert known["recall_at_1_text_to_audio"] == 1
