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


def train_flops(trainable: protocols.Trainable, batch_size: int) -> float:
  """FLOPs of one training step on a global batch.

  A gradient costs twice the loss. Trainables with several losses are traced
  with their gradients.
  """
  batch = dict(trainable.input_shapes(batch_size))
  key = jax.eval_shape(lambda: rng.root_key(0))

  def init(key):
    zeros = {n: jnp.zeros(s.shape, s.dtype) for n, s in batch.items()}
    return dict(axes.unbox(trainable.init(key, zeros)))

  variables = jax.eval_shape(init, key)
  step = jax.ShapeDtypeStruct((), jnp.int32)
  if hasattr(trainable, "gradients"):
    return trace_flops(trainable.gradients, variables, batch, key, step)

  def loss(variables, batch, key, step):
    return trainable.loss(variables, batch, key, step, True)

  return 3.0 * trace_flops(loss, variables, batch, key, step)
