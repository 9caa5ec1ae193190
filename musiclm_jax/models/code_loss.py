# SPDX-License-Identifier: Apache-2.0
"""What trainables over codes share: scores of codes in, loss and metrics out.

Also how tokens are hidden in training, and how parameters that a mesh splits
are gathered.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import protocols, rng
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.networks import decoder_lm
from musiclm_jax.partitioning import axes


def whole_sequence_shapes(
  batch_size: int, length: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Features of a trainable that reads whole sequences `[batch, length]`."""
  shape = (batch_size, length)
  return {
    "decoder_target_tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
    "decoder_loss_weights": jax.ShapeDtypeStruct(shape, jnp.float32),
  }


def regularized(
  scores: decoder_lm.CodeScores, label_smoothing: float, z_loss: float
) -> jax.Array:
  """Loss of each code in training, float32, in the shape of `scores`.

  Args:
    scores: of the target codes.
    label_smoothing: share of the target spread over all codes.
    z_loss: weight of the squared log-partition.
  """
  per_code = scores.nats
  if label_smoothing:
    uniform = scores.log_sum - scores.mean_logit
    per_code += label_smoothing * (uniform - scores.nats)
  if z_loss:
    per_code += z_loss * jnp.square(scores.log_sum)
  return per_code


def weighted(
  scores: decoder_lm.CodeScores, per_code: jax.Array, weights: jax.Array
) -> tuple[jax.Array, protocols.LossOutput]:
  """The weighted mean loss, and metrics.

  Args:
    scores: of `[batch, frames, levels]`.
    per_code: loss of each, same shape.
    weights: float32, same shape.

  Returns:
    Nats per code, and a `LossOutput` with metrics 'loss', 'cross_entropy',
    'accuracy' and 'cross_entropy_level_<n>'.
  """
  count = weights.sum()
  total = (per_code * weights).sum()
  nats = scores.nats * weights
  metrics = {
    "loss": protocols.Mean(total, count),
    "cross_entropy": protocols.Mean(nats.sum(), count),
    "accuracy": protocols.Mean((scores.correct * weights).sum(), count),
  }
  for level in range(weights.shape[-1]):
    metrics[f"cross_entropy_level_{level}"] = protocols.Mean(
      nats[..., level].sum(), weights[..., level].sum()
    )
  return total / jnp.maximum(count, 1e-6), protocols.LossOutput({}, metrics)


def hide(tokens: jax.Array, rates: np.ndarray, key: jax.Array) -> jax.Array:
  """Tokens with some replaced by padding.

  Args:
    tokens: int32 `[batch, length]`.
    rates: chance of each position, `[length]`.
    key: of this step.
  """
  if not rates.any():
    return tokens
  hidden = jax.random.uniform(key, tokens.shape) < rates
  return jnp.where(hidden, stages_lib.PAD_ID, tokens)


def gathered(
  init: Callable[..., Any],
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  params: Any,
  dtype: jnp.dtype,
  per_step: bool,
) -> Any:
  """Parameters as the network computes with them, on a mesh.

  Args:
    init: of the trainable.
    shapes: `input_shapes` of one row.
    params: unboxed.
    dtype: that they are sent in.
    per_step: they are sent once per step, not as each layer runs.
  """
  if not axes.is_split("embed"):
    return params
  abstract = jax.eval_shape(init, rng.root_key(0), shapes)
  specs = axes.logical_specs(abstract)["params"]

  def one(path, leaf, spec):
    if "embed" not in spec or path[-1].key == "scale":
      return leaf  # Small, and computed with in float32.
    return axes.gather(leaf, tuple(spec), dtype, per_step)

  return jax.tree_util.tree_map_with_path(one, params, specs)
