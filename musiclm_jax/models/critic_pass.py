# SPDX-License-Identifier: Apache-2.0
"""One pass through the critics, which serves both players.

Original and decoded waveforms flow in; the critics' gradients, and the slopes
of the generator's losses at the decoded waveform, flow out.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from musiclm_jax.models import codec_losses
from musiclm_jax.networks import discriminators as discriminators_lib

_LOSSES = ("adversarial", "feature")


class CriticPass(NamedTuple):
  """What a pass gives.

  Attributes:
    slopes: by generator's loss, its gradient at the decoded waveform; or the
      gradient of their weighted sum, under 'sum'.
    gradients: of the critics' loss, in the tree of their parameters.
    losses: 'adversarial', 'feature' and 'discriminator'.
  """

  slopes: dict[str, jax.Array]
  gradients: Any
  losses: dict[str, jax.Array]


def _active(network, params, waveform, estimate, weights) -> CriticPass:
  def judge(params, x):
    return network.apply({"params": params}, x)

  # Apart: the generator's slopes go back through the decoded half alone.
  real, pull_back_real = jax.vjp(lambda p: judge(p, waveform), params)
  fake, pull_back_fake = jax.vjp(judge, params, estimate)

  def weighted(fake):
    losses = {name: function(fake) for name, function in functions.items()}
    total = weights["adversarial"] * losses["adversarial"]
    return total + weights["feature"] * losses["feature"], losses

  functions = {
    "adversarial": codec_losses.adversarial_loss,
    "feature": lambda fake: codec_losses.feature_loss(real, fake),
  }
  if weights is None:
    losses, slopes = {}, {}
    for name, function in functions.items():
      losses[name], slope = jax.value_and_grad(function)(fake)
      _, slopes[name] = pull_back_fake(slope)
  else:
    (_, losses), slope = jax.value_and_grad(weighted, has_aux=True)(fake)
    _, slope = pull_back_fake(slope)
    slopes = {"sum": slope}
  loss, (slope_real, slope_fake) = jax.value_and_grad(
    codec_losses.discriminator_loss, argnums=(0, 1)
  )(real, fake)
  (gradients,) = pull_back_real(slope_real)
  others, _ = pull_back_fake(slope_fake)
  gradients = jax.tree.map(jnp.add, gradients, others)
  return CriticPass(slopes, gradients, {**losses, "discriminator": loss})


def run(
  network: discriminators_lib.Discriminators,
  params: Any,
  waveform: jax.Array,
  estimate: jax.Array,
  weights: Mapping[str, float] | None,
  step: jax.Array,
  start_step: int,
) -> CriticPass:
  """Judges a batch; all zeros before `start_step`.

  Args:
    network: the critics.
    params: their parameters.
    waveform: originals, `[batch, samples]`.
    estimate: what the generator made of them, the same shape.
    weights: of 'adversarial' and 'feature' in their sum; None gives the slope
      of each, for one more pass back through the critics.
    step: optimizer step.
    start_step: before it the critics rest.
  """

  def active():
    return _active(network, params, waveform, estimate, weights)

  def resting():
    names = _LOSSES if weights is None else ("sum",)
    zero = jnp.zeros((), jnp.float32)
    return CriticPass(
      {name: jnp.zeros_like(estimate) for name in names},
      jax.tree.map(jnp.zeros_like, params),
      dict.fromkeys((*_LOSSES, "discriminator"), zero),
    )

  if start_step == 0:
    return active()
  return jax.lax.cond(step >= start_step, active, resting)
