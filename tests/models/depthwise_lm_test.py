# SPDX-License-Identifier: Apache-2.0
"""The depth-wise model as a trainable: overfits, weighs, hides, calls out."""

import acoustic_models as small
import jax
import numpy as np
import optax
import pytest

from musiclm_jax.core import protocols, stages
from musiclm_jax.partitioning import axes


def test_overfits_one_batch_from_uniform_start():
  model = small.depthwise_model()
  assert isinstance(model, protocols.Trainable)
  batch = small.batch_of(model)
  assert {n: (s.shape, s.dtype) for n, s in model.input_shapes(2).items()} == {
    n: (x.shape, x.dtype) for n, x in batch.items()
  }
  params = axes.unbox(jax.jit(model.init)(jax.random.key(0), batch))["params"]
  optimizer = optax.adam(2e-2)

  @jax.jit
  def step(params, state):
    (loss, output), grads = jax.value_and_grad(
      lambda p: model.loss({"params": p}, batch, jax.random.key(0), 0, True),
      has_aux=True,
    )(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, loss, output

  state, losses = optimizer.init(params), []
  for _ in range(60):
    params, state, loss, output = step(params, state)
    losses.append(float(loss))
  assert losses[0] == pytest.approx(np.log(5), abs=0.1)
  assert losses[-1] < 0.1
  metrics = output.metrics
  levels = [metrics[name] for (name,) in zip(*model.loss_terms.values())]
  assert len(levels) == 3
  assert sum(float(m.count) for m in levels) == 2 * 8 * 3


def test_chunks_and_padding_leave_the_loss_as_it_is():
  whole, chunked = small.depthwise_model(), small.depthwise_model(loss_chunk=10)
  batch = small.batch_of(whole)
  variables = {"params": small.params_of(whole)}
  alone = whole.code_scores(variables, batch).nats[0]
  start = whole.layout.target_start
  batch["decoder_loss_weights"][1, start:] = 0
  batch["decoder_target_tokens"][1, start:] = stages.PAD_ID
  results = [
    jax.jit(
      jax.value_and_grad(
        lambda v, m=model: m.loss(v, batch, jax.random.key(0), 0, True)[0]
      )
    )(variables)
    for model in (whole, chunked)
  ]
  assert float(results[0][0]) == pytest.approx(float(alone.mean()), rel=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results
  )


def test_training_hides_conditioning_and_evaluation_does_not():
  model = small.depthwise_model(conditioning_dropout_rate=0.9)
  batch = small.batch_of(model)
  variables = {"params": small.params_of(model)}
  loss = jax.jit(model.loss, static_argnames="train")
  key = jax.random.key(0)
  hidden = float(loss(variables, batch, key, 0, train=True)[0])
  seen = float(loss(variables, batch, key, 0, train=False)[0])
  assert hidden != pytest.approx(seen, rel=1e-3)
  other = float(loss(variables, batch, jax.random.key(1), 0, train=False)[0])
  assert other == seen


def test_alarms_know_what_guessing_costs():
  rules = {r.name: r for r in small.depthwise_model().alarm_rules(4)}
  chance = rules["codes_at_chance"]
  assert chance.holds(np.log(5), chance.reference([]))
  assert not chance.holds(1.5, chance.reference([]))
  assert rules["codes_worse_than_chance"].holds(2.0, np.log(5) * 1.2)


@pytest.mark.parametrize(
  ("field", "value"),
  [("gather", "never"), ("z_loss", -1.0), ("target_dropout_rate", 1.0)],
)
def test_bad_values_are_named(field, value):
  with pytest.raises(ValueError, match=f"{field}={value!r}"):
    small.depthwise_model(**{field: value})
