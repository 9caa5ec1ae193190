# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance: a step function over twice the rows in, one out.

The first half of the rows is told what is wanted, the second half nothing, or
what is not wanted (Ho and Salimans 2022; for tokens Gafni et al. 2022). Both
go through the network as one batch and take the same codes.
"""

from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.decoding import autoregressive


def guide_logits(logits: jax.Array, guidance: float) -> jax.Array:
  """Logits of both halves to those that are sampled.

  Args:
    logits: float32 `[2 * batch, codebook_size]`, told ones first.
    guidance: 1 gives the first half to the bit; above 1 moves away from the
      second; 0 gives the second.

  Returns:
    float32 `[batch, codebook_size]`.
  """
  told, other = jnp.split(logits, 2)
  return told + (guidance - 1) * (told - other)


def guided(
  step_fn: autoregressive.StepFn,
  logits_fn: autoregressive.LogitsFn,
  guidance: float,
) -> tuple[autoregressive.StepFn, autoregressive.LogitsFn]:
  """Functions for `autoregressive.decode` over half of the cache's rows.

  Args:
    step_fn: over `2 * batch` rows, told ones first.
    logits_fn: as well.
    guidance: see `guide_logits`.

  Returns:
    A step function that takes tokens `[batch]`, and a logits function that
    gives `[batch, codebook_size]`; hidden states keep `2 * batch` rows.
  """

  def step(cache: Any, token: jax.Array) -> tuple[Any, jax.Array]:
    return step_fn(cache, jnp.concatenate([token, token]))

  def logits(hidden: jax.Array, level: jax.Array) -> jax.Array:
    return guide_logits(logits_fn(hidden, level), guidance)

  return step, logits
