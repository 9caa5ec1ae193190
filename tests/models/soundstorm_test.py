# SPDX-License-Identifier: Apache-2.0
"""SoundStorm as a trainable: the published masking, and it learns."""

import acoustic_models as small
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax.core import protocols, stages
from musiclm_jax.models import soundstorm
from musiclm_jax.partitioning import axes


def test_masking_hides_what_the_paper_hides():
  rows, frames, levels = 4000, 8, 3
  real = jnp.full(rows, frames).at[0].set(3)
  found = soundstorm.draw_masking(jax.random.key(0), real, frames, levels)
  level, masked, asked = (np.asarray(one) for one in found)
  at = np.arange(levels)[None, None]
  own = level[:, None, None]
  assert not masked[np.broadcast_to(at < own, masked.shape)].any()
  np.testing.assert_array_equal(
    np.take_along_axis(masked, own, axis=2)[..., 0], asked
  )
  # All after the prompt at finer levels; nothing before it anywhere.
  finer = masked[level < 2][:, :, 2]
  prompts = finer.argmax(1)
  assert (finer == (np.arange(frames) >= prompts[:, None])).all()
  assert not masked[level < 2][np.arange(frames) < prompts[:, None]].any()
  # Levels and prompts are uniform; the mean of cos(u) is 2 / pi.
  for counts in (np.bincount(level), np.bincount(prompts)):
    expected = counts.sum() / len(counts)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
  share = asked[:, -1].mean()  # The last frame is never in the prompt.
  assert share == pytest.approx(2 / np.pi, abs=0.03)


def test_loss_counts_masked_codes_of_the_drawn_level_only():
  model = small.soundstorm_model()
  batch = small.batch_of(model, 4)
  variables = {"params": small.params_of(model)}
  loss = jax.jit(model.loss, static_argnames="train")
  _, output = loss(variables, batch, jax.random.key(3), 0, train=False)
  whole = output.metrics["cross_entropy"]
  levels = [output.metrics[name] for (name,) in zip(*model.loss_terms.values())]
  assert 0 < float(whole.count) < 4 * 8
  assert sum(float(one.count) for one in levels) == float(whole.count)
  # Padding counts nothing.
  start = model.layout.target_start
  batch["decoder_loss_weights"][:, start:] = 0
  batch["decoder_target_tokens"][:, start:] = stages.PAD_ID
  value, output = loss(variables, batch, jax.random.key(3), 0, train=False)
  assert float(output.metrics["cross_entropy"].count) == 0
  assert float(value) == 0


def test_learns_one_batch():
  model = small.soundstorm_model()
  assert isinstance(model, protocols.Trainable)
  # Codes that follow from the conditioning, so that all masked can be known.
  batch = small.batch_of(model, 4)
  codes = small.codes(4)
  codes["acoustic"] = np.repeat(codes["semantic"], 2, 1) % 5 + np.zeros(
    (1, 1, 3), np.int32
  )
  batch["decoder_target_tokens"] = model.layout.encode(codes)
  params = axes.unbox(jax.jit(model.init)(jax.random.key(0), batch))["params"]
  optimizer = optax.adam(1e-2)

  @jax.jit
  def step(params, state, index):
    key = jax.random.fold_in(jax.random.key(1), index)
    (loss, _), grads = jax.value_and_grad(
      lambda p: model.loss({"params": p}, batch, key, index, True),
      has_aux=True,
    )(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, loss

  state, losses = optimizer.init(params), []
  for index in range(150):
    params, state, loss = step(params, state, index)
    losses.append(float(loss))
  assert losses[0] == pytest.approx(np.log(5), abs=0.15)
  assert np.mean(losses[-20:]) < 0.2


def test_bad_values_are_named():
  with pytest.raises(ValueError, match="first_level_share=1.0"):
    small.soundstorm_model(first_level_share=1.0)
