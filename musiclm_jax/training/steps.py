# SPDX-License-Identifier: Apache-2.0
"""Pure train and eval steps, the same for every trainable."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from musiclm_jax.core import protocols, rng
from musiclm_jax.training import state as state_lib

Metrics = Mapping[str, protocols.Mean]
TrainStep = Callable[..., tuple[state_lib.TrainState, Metrics]]


def _gradients(
  trainable: protocols.Trainable,
  variables: Mapping[str, Any],
  batch: protocols.Batch,
  key: jax.Array,
  step: jax.Array,
) -> tuple[Any, protocols.LossOutput]:
  if hasattr(trainable, "gradients"):
    return trainable.gradients(variables, batch, key, step)

  def loss_fn(params):
    return trainable.loss(
      {**variables, "params": params}, batch, key, step, True
    )

  (_, output), grads = jax.value_and_grad(loss_fn, has_aux=True)(
    variables["params"]
  )
  return grads, output


def _split(batch: protocols.Batch, num_microbatches: int) -> Any:
  """`[batch, ...]` to `[num_microbatches, batch / num_microbatches, ...]`.

  Rows are dealt out in turn, so each device keeps the rows it holds.
  """
  return jax.tree.map(
    lambda x: jnp.swapaxes(x.reshape(-1, num_microbatches, *x.shape[1:]), 0, 1),
    dict(batch),
  )


def _accumulate(
  trainable: protocols.Trainable,
  variables: Mapping[str, Any],
  batch: protocols.Batch,
  key: jax.Array,
  step: jax.Array,
  num_microbatches: int,
) -> tuple[Any, protocols.LossOutput]:
  """Mean gradients over microbatches; collections pass from one to the next."""
  parts = _split(batch, num_microbatches)
  params = variables["params"]
  others = {k: v for k, v in variables.items() if k != "params"}

  def one(others, index):
    part = jax.tree.map(lambda x: x[index], parts)
    grads, output = _gradients(
      trainable,
      {"params": params, **others},
      part,
      jax.random.fold_in(key, index),
      step,
    )
    return {**others, **output.state}, grads, output.metrics

  # All parts run in one loop: a part outside of it would have its activations
  # live beside those of the loop.
  _, *zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, others, 0)
  )

  def body(carry, index):
    others, total, metrics = carry
    others, grads, more = one(others, index)
    total = jax.tree.map(jnp.add, total, grads)
    return (others, total, jax.tree.map(jnp.add, metrics, more)), None

  (others, total, metrics), _ = jax.lax.scan(
    body, (others, *zeros), jnp.arange(num_microbatches)
  )
  grads = jax.tree.map(lambda x: x / num_microbatches, total)
  return grads, protocols.LossOutput(others, metrics)


def make_train_step(
  trainable: protocols.Trainable,
  optimizer: optax.GradientTransformation,
  num_microbatches: int = 1,
  ema_decay: float = 0.0,
) -> TrainStep:
  """The optimizer step `(state, batch, key) -> (state, metrics)`.

  A step whose gradients are not finite leaves parameters, optimizer and
  collections as they were (metric `finite` is then below 1), so that the
  state can still be saved when the loop stops.

  Args:
    trainable: what is trained.
    optimizer: an optax transformation.
    num_microbatches: the batch is processed in so many parts. A trainable
      with `in_parts` sees to that itself; others are averaged over the parts.
    ema_decay: of the running mean of the parameters; 0 keeps none.
  """

  if num_microbatches > 1 and hasattr(trainable, "in_parts"):
    trainable, num_microbatches = trainable.in_parts(num_microbatches), 1

  def train_step(state, batch, key):
    key = rng.at_step(key, state.step)
    if num_microbatches == 1:
      grads, output = _gradients(
        trainable, state.variables, batch, key, state.step
      )
    else:
      grads, output = _accumulate(
        trainable, state.variables, batch, key, state.step, num_microbatches
      )
    grad_norm = optax.global_norm(grads)
    finite = jnp.isfinite(grad_norm)
    for metric in output.metrics.values():
      finite &= jnp.all(jnp.isfinite(jnp.asarray(metric.total)))
    updates, optimizer_state = optimizer.update(
      grads, state.optimizer, state.params
    )
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
      ema_params = jax.tree.map(
        lambda mean, new: ema_decay * mean + (1 - ema_decay) * new,
        ema_params,
        params,
      )
    new = state_lib.TrainState(
      step=state.step,
      params=params,
      optimizer=optimizer_state,
      collections={**state.collections, **output.state},
      ema_params=ema_params,
    )
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    new = state_lib.TrainState(
      state.step + 1,
      new.params,
      new.optimizer,
      new.collections,
      new.ema_params,
    )
    one = jnp.ones((), jnp.float32)
    metrics = {
      **output.metrics,
      "grad_norm": protocols.Mean(grad_norm, one),
      "finite": protocols.Mean(finite.astype(jnp.float32), one),
    }
    return new, metrics

  return train_step


def make_eval_step(trainable: protocols.Trainable) -> Callable[..., Metrics]:
  """The evaluation step `(variables, batch, key, step) -> metrics`."""

  def eval_step(variables, batch, key, step):
    _, output = trainable.loss(variables, batch, key, step, False)
    return output.metrics

  return eval_step
