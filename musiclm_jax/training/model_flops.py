# SPDX-License-Identifier: Apache-2.0
"""FLOPs a step needs, counted from what is computed, not how.

A trainable flows in; the FLOPs of its matrix products and convolutions on a
global batch flow out, recomputation and padding left out. The loss is traced,
never run.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.core import protocols, rng
from musiclm_jax.models import token_lm
from musiclm_jax.partitioning import axes


def _dot_flops(equation: Any) -> float:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  depth = math.prod(left[i] for i in contracted)
  return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)


def _conv_flops(equation: Any) -> float:
  numbers = equation.params["dimension_numbers"]
  kernel = equation.invars[1].aval.shape
  out = math.prod(equation.outvars[0].aval.shape)
  features_out = kernel[numbers.rhs_spec[0]]
  return 2.0 * out * math.prod(kernel) / features_out


def _inner(value: Any) -> list[Any]:
  """Programs inside a parameter of an equation."""
  if isinstance(value, (list, tuple)):
    return [found for item in value for found in _inner(item)]
  if hasattr(value, "jaxpr"):
    return [value.jaxpr]
  return [value] if hasattr(value, "eqns") else []


def count(jaxpr: Any) -> float:
  """FLOPs of all products in a traced program; loops by their length."""
  total = 0.0
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name == "dot_general":
      total += _dot_flops(equation)
      continue
    if name == "conv_general_dilated":
      total += _conv_flops(equation)
      continue
    if name == "cond":
      total += max(count(b.jaxpr) for b in equation.params["branches"])
      continue
    if name in ("custom_vjp_call", "custom_jvp_call", "custom_vjp_call_jaxpr"):
      body = equation.params.get("call_jaxpr", equation.params.get("fun_jaxpr"))
      total += sum(count(inner) for inner in _inner(body))
      continue
    times = 1
    if name == "scan":
      times = equation.params["length"]
    elif name == "pallas_call":
      times = math.prod(equation.params["grid_mapping"].grid)
    for value in equation.params.values():
      total += times * sum(count(inner) for inner in _inner(value))
  return total


def trace_flops(function: Callable[..., Any], *args: Any) -> float:
  """FLOPs of calling `function` with (abstract) arguments."""
  return count(jax.make_jaxpr(function)(*args).jaxpr)


def _abstract(
  trainable: protocols.Trainable, batch_size: int
) -> tuple[Any, Any, Any]:
  """Variables, batch and key as shapes."""
  batch = dict(trainable.input_shapes(batch_size))
  key = jax.eval_shape(lambda: rng.root_key(0))

  def init(key):
    zeros = {n: jnp.zeros(s.shape, s.dtype) for n, s in batch.items()}
    return axes.unbox(dict(trainable.init(key, zeros)))

  return jax.eval_shape(init, key), batch, key


def traced_train_flops(
  trainable: protocols.Trainable, batch_size: int
) -> float:
  """FLOPs of a training step as its loss is written down.

  A gradient costs twice the loss. Trainables with several losses are traced
  with their gradients. Causal attention counts as it is computed, which may
  be with the half that is masked out.
  """
  variables, batch, key = _abstract(trainable, batch_size)
  step = jax.ShapeDtypeStruct((), jnp.int32)
  if hasattr(trainable, "gradients"):
    return trace_flops(trainable.gradients, variables, batch, key, step)

  def loss(variables, batch, key, step):
    return trainable.loss(variables, batch, key, step, True)

  return 3.0 * trace_flops(loss, variables, batch, key, step)


def stage_flops(stage: token_lm.TokenLM, batch_size: int) -> float:
  """FLOPs of a training step of a stage, from its sizes.

  Attention counts the keys a query may see, itself and those before; the
  embedding is a look-up and counts nothing.
  """
  config, layout = stage.config.transformer, stage.layout
  width = config.num_heads * config.kv_dim
  mlp_products = 3 if config.gated else 2
  # Products with queries and outputs, with keys and values.
  attention = 2 * width + 2 * config.kv_heads * config.kv_dim
  weights = config.embed_dim * (attention + mlp_products * config.mlp_dim)
  length = layout.length
  seen = length * (length + 1) // 2
  layer = 2 * length * weights + 4 * seen * width
  codes = layout.num_target_codes
  head = 2 * (length - layout.target_start) * config.embed_dim * codes
  return 3.0 * batch_size * (config.num_layers * layer + head)


def train_flops(trainable: protocols.Trainable, batch_size: int) -> float:
  """FLOPs a training step on a global batch needs."""
  if isinstance(trainable, token_lm.TokenLM):
    return stage_flops(trainable, batch_size)
  return traced_train_flops(trainable, batch_size)
