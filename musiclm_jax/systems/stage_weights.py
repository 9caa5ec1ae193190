# SPDX-License-Identifier: Apache-2.0
"""How the weights of a stage lie in memory while it generates.

Trained parameters in, variables of the network out. A decode step reads all
weights and does little with them, so on a TPU their bytes are its time.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.core import artifacts, errors

COMPUTE = "compute"
CHOICES = (COMPUTE, "float32", "bfloat16", "int8")
_INT8_MAX = 127


def resolve(weights: str, compute: str) -> str:
  """The dtype that `weights` stands for.

  Args:
    weights: of `CHOICES`.
    compute: dtype that the stage computes in, taken for 'compute'.

  Raises:
    UserError: if there is no such choice.
  """
  if weights not in CHOICES:
    raise errors.UserError(
      f"weights={weights!r}: expected one of {', '.join(CHOICES)}"
      f"{errors.nearest(weights, CHOICES)}"
    )
  return compute if weights == COMPUTE else weights


def _in_axes(name: str) -> tuple[int, ...]:
  """Axes that a product contracts; none: not a kernel, a step reads little."""
  if name == "output":
    return (1,)
  if name.endswith("attention/out/kernel"):
    return (0, 1)
  return (0,) if name.endswith("/kernel") else ()


def stored(
  params: Mapping[str, Any], weights: str, compute_dtype: Any
) -> dict[str, Any]:
  """Variables of a `DecoderLM` whose layers are unrolled.

  Args:
    params: nested dict of arrays.
    weights: a dtype, from `resolve`. 'int8': kernels are rounded to 127 steps
      either way of each output channel's largest weight, all else is as the
      stage computes.
    compute_dtype: of the stage.

  Returns:
    'params', and for int8 'scales': float32, what a step of each channel is.
  """
  if weights != "int8":
    dtype = jnp.dtype(weights)
    return {"params": jax.tree.map(lambda x: jnp.asarray(x, dtype), params)}
  values, scales = {}, {}
  for name, leaf in artifacts.flatten(params).items():
    axes = _in_axes(name)
    if not axes:
      values[name] = jnp.asarray(leaf, compute_dtype)
      continue
    leaf = jnp.asarray(leaf, jnp.float32)
    largest = jnp.max(jnp.abs(leaf), axes, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1) / _INT8_MAX
    values[name] = jnp.round(leaf / scale).astype(jnp.int8)
    scales[name] = jnp.squeeze(scale, axes)
  return {
    "params": artifacts.unflatten(values),
    "scales": artifacts.unflatten(scales),
  }


def read_again(
  variables: Mapping[str, Any], compute_dtype: Any, x: jax.Array
) -> tuple[Mapping[str, Any], jax.Array]:
  """The arguments, such that a loop over `x` converts the weights in its body.

  Left to itself XLA converts them once, before the loop, and each step reads
  the larger ones.
  """
  leaves = jax.tree.leaves(variables["params"])
  if all(leaf.dtype == compute_dtype for leaf in leaves):
    return variables, x
  return jax.lax.optimization_barrier((variables, x))


def num_bytes(
  variables: Mapping[str, Any], num_levels: int, tables: tuple[str, ...]
) -> float:
  """What a decode step reads of the weights.

  Args:
    variables: from `stored`.
    num_levels: of the output, of which a step takes one.
    tables: parameters of which it reads a row per token.
  """
  return math.fsum(
    leaf.nbytes / (num_levels if name == "output" else 1)
    for tree in variables.values()
    for name, leaf in artifacts.flatten(tree).items()
    if name.split("/")[0] not in tables
  )
