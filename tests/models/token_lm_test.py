# SPDX-License-Identifier: Apache-2.0
"""The stage as a trainable: overfits, weighs, counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax.core import protocols, stages, streams
from musiclm_jax.layers import transformer
from musiclm_jax.models import token_lm
from musiclm_jax.partitioning import axes

STREAMS = (
  streams.TokenStream("mulan", 4, 2),
  streams.TokenStream("semantic", 6, 1, 4.0),
  streams.TokenStream("acoustic", 5, 3, 8.0),
)


def _model(crop_secs=1.0, **fields):
  stack = transformer.TransformerConfig(1, 32, 2, 32, dropout_rate=0.0)
  spec = stages.coarse_stage(2, 2, crop_secs=crop_secs)
  return token_lm.TokenLM(
    token_lm.TokenLMConfig(spec, STREAMS, stack, **fields)
  )


def _batch(model, batch_size=2, secs=1.0):
  rng = np.random.default_rng(0)
  codes = {
    s.name: rng.integers(
      0, s.codebook_size, (batch_size, s.num_frames(secs), s.num_codebooks)
    )
    for s in STREAMS
  }
  tokens = model.layout.encode(codes)
  weights = np.zeros(tokens.shape, np.float32)
  weights[:, model.layout.target_start :] = 1
  bos = np.full((batch_size, 1), stages.BOS_ID, np.int32)
  return {
    "decoder_input_tokens": np.concatenate([bos, tokens[:, :-1]], 1),
    "decoder_target_tokens": tokens,
    "decoder_loss_weights": weights,
  }


def _init(model, batch):
  return axes.unbox(jax.jit(model.init)(jax.random.key(0), batch))


def test_overfits_one_batch_from_uniform_start():
  model = _model()
  assert isinstance(model, protocols.Trainable)
  batch = _batch(model)
  params = _init(model, batch)["params"]
  optimizer = optax.adam(1e-2)

  @jax.jit
  def step(params, state):
    (loss, output), grads = jax.value_and_grad(
      lambda p: model.loss({"params": p}, batch, jax.random.key(0), 0, True),
      has_aux=True,
    )(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, loss, output

  state = optimizer.init(params)
  losses = []
  for _ in range(60):
    params, state, loss, output = step(params, state)
    losses.append(float(loss))
  assert losses[0] == pytest.approx(np.log(5), abs=0.1)
  assert losses[-1] < 0.1
  accuracy = output.metrics["accuracy"]
  assert float(accuracy.total / accuracy.count) == 1.0


def test_loss_is_the_weighted_mean_and_levels_add_up():
  model = _model()
  batch = _batch(model)
  variables = _init(model, batch)
  start = model.layout.target_start
  batch["decoder_loss_weights"][1, start:] = 0
  # Padding under weight 0 must not matter.
  batch["decoder_target_tokens"][1, start:] = stages.PAD_ID
  loss, output = model.loss(variables, batch, jax.random.key(0), 0, False)
  nats = token_lm.token_cross_entropy(model, variables, batch)
  assert float(loss) == pytest.approx(float(nats[0].mean()), rel=1e-5)
  metrics = output.metrics
  levels = [metrics[f"cross_entropy_level_{i}"] for i in range(2)]
  whole = metrics["cross_entropy"]
  assert sum(float(m.total) for m in levels) == pytest.approx(
    float(whole.total), rel=1e-5
  )
  assert float(whole.count) == 16
  assert output.state == {}


def test_regularizers_act_in_training_only():
  plain, smooth = _model(), _model(label_smoothing=0.2, z_loss=0.1)
  batch = _batch(plain)
  variables = _init(plain, batch)
  key = jax.random.key(0)
  losses = [
    float(model.loss(variables, batch, key, 0, train)[0])
    for model in (plain, smooth)
    for train in (False, True)
  ]
  assert losses[0] == pytest.approx(losses[1]) == pytest.approx(losses[2])
  assert losses[3] > losses[0] + 0.05


def test_chunks_of_the_loss_add_up_to_the_whole():
  fields = {"label_smoothing": 0.2, "z_loss": 0.1}
  results = []
  # 8 frames of 2 levels: chunks of 3, 3 and 2 frames.
  for loss_chunk in (0, 5):
    model = _model(loss_chunk=loss_chunk, **fields)
    batch = _batch(model)
    variables = _init(model, batch)
    results.append(
      jax.jit(
        jax.value_and_grad(
          lambda v, m=model, b=batch: m.loss(v, b, jax.random.key(0), 0, True),
          has_aux=True,
        )
      )(variables)
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results
  )


def test_packed_rows_score_each_example_as_if_alone():
  short, packed = _model(crop_secs=0.5), _model(packed=True)
  batch = _batch(short, 2, secs=0.5)
  variables = _init(short, batch)
  alone = short.code_scores(variables, batch).nats
  # Two short sequences of 2 + 2 + 8 tokens in a row of 2 + 4 + 16.
  length = packed.layout.length
  row = {name: np.zeros((1, length), x.dtype) for name, x in batch.items()}
  row["decoder_segment_ids"] = np.zeros((1, length), np.int32)
  for index, start in enumerate((0, 12)):
    count = min(12, length - start)
    part = slice(start, start + count)
    for name, values in batch.items():
      row[name][0, part] = values[index, :count]
    row["decoder_segment_ids"][0, part] = index + 1
  assert set(packed.input_shapes(1)) == set(row)
  nats = packed.code_scores(variables, row).nats[0].reshape(-1)
  np.testing.assert_allclose(nats[4:12], alone[0].reshape(-1), atol=1e-5)
  np.testing.assert_allclose(nats[16:22], alone[1].reshape(-1)[:6], atol=1e-5)
  loss, output = packed.loss(variables, row, jax.random.key(0), 0, False)
  assert float(output.metrics["loss"].count) == 14
  total = alone[0].sum() + alone[1].reshape(-1)[:6].sum()
  assert float(loss) == pytest.approx(float(total) / 14, rel=1e-5)


def test_input_shapes_fit_a_batch():
  model = _model()
  shapes = model.input_shapes(2)
  for name, array in _batch(model).items():
    assert shapes[name].shape == array.shape
    assert shapes[name].dtype == jnp.dtype(array.dtype)


def test_hidden_tokens_are_those_of_the_named_part():
  conditioning = _model(conditioning_dropout_rate=0.9)
  target = _model(target_dropout_rate=0.9)
  batch = _batch(conditioning)
  variables = _init(conditioning, batch)
  start = conditioning.layout.target_start
  keys = jax.random.split(jax.random.key(1), 8)

  def moved(model, changed_position):
    """Whether logits under dropout follow a change of one input token."""
    tokens = batch["decoder_input_tokens"].copy()
    tokens[:, changed_position] = tokens[:, changed_position] % 3 + 2
    changed = dict(batch, decoder_input_tokens=tokens)
    logits = jax.jit(
      jax.vmap(
        lambda batch, key: model.logits(variables, batch, key), (None, 0)
      )
    )
    before, after = logits(batch, keys), logits(changed, keys)
    return (before != after).any((1, 2, 3, 4))

  follows = moved(conditioning, 2)
  assert not follows.all() and moved(conditioning, start + 1).all()
  follows = moved(target, start + 1)
  assert not follows.all() and moved(target, 2).all()
  # Evaluation hides nothing.
  np.testing.assert_array_equal(
    jax.jit(conditioning.logits)(variables, batch),
    jax.jit(_model().logits)(variables, batch),
  )


def test_dropped_conditions_are_hidden_together_or_not_at_all():
  model = _model(
    condition_dropout_rate=0.5,
    conditioning_dropout_rate=0.3,
    dropped_streams=("mulan", "semantic"),
  )
  told = _model(condition_dropout_rate=0.5, dropped_streams=("mulan",))
  batch = _batch(model)
  layout, start = model.layout, model.layout.target_start
  assert model.config.spec.dropped_streams == ("mulan", "semantic")
  inputs = batch["decoder_input_tokens"]
  seen = jax.vmap(lambda key: model.hide(batch, key))(
    jax.random.split(jax.random.key(1), 200)
  ).reshape(400, -1)
  is_dropped = (seen == layout.vocab_size - 1)[:, 1 : start + 1]
  assert (is_dropped.all(1) | ~is_dropped.any(1)).all()
  assert 0.4 < is_dropped.all(1).mean() < 0.6
  rest = np.asarray(seen)[~is_dropped.all(1)]
  hidden = (rest == stages.PAD_ID)[:, 1 : start + 1]
  assert 0.2 < hidden.mean() < 0.4
  # Target tokens and BOS are never hidden, nor is what is not named.
  assert (
    np.asarray(seen).reshape(200, 2, -1)[..., start + 1 :]
    == inputs[:, start + 1 :]
  ).all()
  one = np.asarray(told.hide(batch, jax.random.key(3)))
  np.testing.assert_array_equal(one[:, 3:], inputs[:, 3:])
  # Nothing is hidden from what is scored.
  variables = _init(told, batch)
  loss = jax.jit(told.loss, static_argnums=4)
  changed = told.layout.drop(batch["decoder_input_tokens"])
  scores = [
    float(loss(variables, one, jax.random.key(0), 0, False)[0])
    for one in (batch, dict(batch, decoder_input_tokens=changed))
  ]
  assert scores[0] != scores[1]


def test_packed_examples_drop_their_conditions_each_on_its_own():
  model = _model(
    packed=True, condition_dropout_rate=0.5, dropped_streams=("semantic",)
  )
  rng = np.random.default_rng(0)
  batch = _batch(model)
  ids = rng.integers(1, 4, (2, 1)) + (np.arange(model.layout.length) >= 4)
  batch["decoder_segment_ids"] = ids.astype(np.int32)
  inputs = batch["decoder_input_tokens"]
  changed = np.asarray(
    jax.vmap(lambda key: model.hide(batch, key))(
      jax.random.split(jax.random.key(1), 64)
    )
    != inputs
  )
  # Semantic tokens are at 3 to 6, of which one is the first example's.
  assert not changed[..., :3].any() and not changed[..., 7:].any()
  first, second = changed[..., 3], changed[..., 4:7]
  assert (second.all(-1) | ~second.any(-1)).all()
  pairs = {
    (bool(a), bool(b)) for a, b in zip(first.ravel(), second[..., 0].ravel())
  }
  assert len(pairs) == 4


def test_bad_rates_are_named():
  with pytest.raises(ValueError, match="condition_dropout_rate=1.0"):
    _model(condition_dropout_rate=1.0)
  with pytest.raises(ValueError, match="dropped_streams=.'melody',."):
    _model(condition_dropout_rate=0.1, dropped_streams=("melody",))
  with pytest.raises(ValueError, match="expected at least one"):
    _model(condition_dropout_rate=0.1, dropped_streams=())
  with pytest.raises(ValueError, match="target_dropout_rate=1.0"):
    _model(target_dropout_rate=1.0)


def test_codes_without_repeats_are_neither_packed_nor_of_an_instant():
  stack = transformer.TransformerConfig(1, 32, 2, 32)
  spec = stages.coarse_stage(2, 2, 1.0, unique_consecutive=True)
  with pytest.raises(ValueError, match="packed=True: expected False.*repeats"):
    token_lm.TokenLMConfig(spec, STREAMS, stack, packed=True)
  config = token_lm.TokenLMConfig(
    spec, STREAMS, stack, aligned_conditioning=1.0
  )
  with pytest.raises(ValueError, match="aligned_conditioning=1.0.*no instants"):
    token_lm.TokenLM(config)
