# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses from the whole matrix of similarities, in float64.

Written from the papers' formulas, without a thought for memory.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PAIRS = 48
DIM = 16


def example() -> dict[str, np.ndarray]:
  """48 pairs, texts 3, 19 and 30 the same; embeddings that fit more or less."""
  generator = np.random.default_rng(0)
  text = generator.normal(size=(PAIRS, DIM))
  audio = text + 2.0 * generator.normal(size=(PAIRS, DIM))
  ids = generator.permutation(PAIRS)
  ids[[19, 30]] = ids[3]
  return {
    "audio": (audio / np.linalg.norm(audio, axis=1)[:, None]).astype(
      np.float32
    ),
    "text": (text / np.linalg.norm(text, axis=1)[:, None]).astype(np.float32),
    # Equal only where both numbers are.
    "ids": np.stack([ids, ids % 5], 1).astype(np.uint32),
  }


def losses(audio, text, scale, bias, ids, loss: str) -> Any:
  """Loss of each pair, jax arrays of any precision."""
  similarity = scale * audio @ text.T + bias
  other = ~(ids[:, None] == ids[None]).all(-1)
  own = jnp.diagonal(similarity)
  terms = jnp.where(other, jnp.exp(similarity), 0.0)
  if loss == "mulan":
    total = terms.sum(0) + terms.sum(1)
    some = other.any(1)
    return jnp.where(some, jnp.log(jnp.where(some, total, 1.0)) - own, 0.0)
  if loss == "infonce":
    both = [jnp.log(jnp.exp(own) + terms.sum(axis)) for axis in (0, 1)]
    return (both[0] + both[1]) / 2 - own
  apart = jnp.where(other, jnp.log1p(jnp.exp(similarity)), 0.0)
  return jnp.log1p(jnp.exp(-own)) + (apart.sum(0) + apart.sum(1)) / 2


def value_and_gradients(
  example: dict[str, np.ndarray],
  weights: np.ndarray,
  scale: float,
  bias: float,
  loss: str,
) -> tuple[np.ndarray, list[np.ndarray]]:
  """Losses in float64, and gradients of their sum weighted by `weights`.

  Returns:
    float64 `[pairs]`; gradients of audio, text, scale and bias.
  """
  with jax.enable_x64(True):
    arguments = [
      jnp.asarray(np.asarray(x, np.float64))
      for x in (example["audio"], example["text"], scale, bias)
    ]

    def total(*arguments):
      found = losses(*arguments, example["ids"], loss)
      return (found * weights).sum(), found

    gradients, found = jax.grad(total, (0, 1, 2, 3), has_aux=True)(*arguments)
    return np.asarray(found), [np.asarray(g) for g in gradients]
