# SPDX-License-Identifier: Apache-2.0
"""Contract of the stack: step == whole, padding, batching, scan == unrolled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.layers import transformer
from musiclm_jax.partitioning import axes

LENGTH, PREFIX = 12, 5
GROUPED = {"num_heads": 4, "num_kv_heads": 2}


def _config(**fields):
  defaults = {
    "num_layers": 2,
    "embed_dim": 16,
    "num_heads": 2,
    "mlp_dim": 24,
    "relpos_buckets": 8,
    "relpos_max_distance": 10,
  }
  return transformer.TransformerConfig(**(defaults | fields))


def _setup(**fields):
  stack = transformer.TransformerStack(_config(**fields))
  x = jax.random.normal(jax.random.key(0), (2, LENGTH, 16))
  variables = axes.unbox(jax.jit(stack.init)(jax.random.key(1), x))
  return stack, variables, x


@pytest.mark.parametrize(
  "fields",
  [
    {"positions": "t5", "scan_layers": True},
    {"positions": "rotary", "scan_layers": True},
    {"positions": "t5", "scan_layers": False},
    {"positions": "rotary", "scan_layers": False},
    {"positions": "t5", **GROUPED},
    {"positions": "rotary", "scan_layers": False, **GROUPED},
  ],
)
def test_steps_with_cache_equal_whole_sequence(fields):
  stack, variables, x = _setup(**fields)
  whole = jax.jit(stack.apply)(variables, x)
  out, state = stack.apply(
    variables,
    x[:, :PREFIX],
    decode=True,
    cache_length=LENGTH,
    mutable=["cache"],
  )
  step = jax.jit(
    lambda state, x: stack.apply(
      {**variables, **state}, x, decode=True, mutable=["cache"]
    )
  )
  parts = [out]
  for position in range(PREFIX, LENGTH):
    out, state = step(state, x[:, position : position + 1])
    parts.append(out)
  np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)


@pytest.mark.parametrize("positions", ["t5", "rotary"])
def test_scanned_equals_unrolled(positions):
  stack, variables, x = _setup(positions=positions, gated=True)
  unrolled = transformer.TransformerStack(
    dataclasses.replace(stack.config, scan_layers=False)
  )
  params = transformer.unstack_layers(variables["params"])
  assert {"layers_0", "layers_1"} <= set(params)
  np.testing.assert_allclose(
    unrolled.apply({"params": params}, x),
    stack.apply(variables, x),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  "causal,attention", [(True, "plain"), (False, "plain"), (True, "blocked")]
)
def test_nan_padding_leaks_into_neither_output_nor_gradient(causal, attention):
  stack, variables, x = _setup(causal=causal, attention=attention)
  mask = jnp.arange(LENGTH)[None] < jnp.array([[LENGTH], [7]])

  def run(variables, filler):
    filled = jnp.where(mask[..., None], x, filler)
    out = stack.apply(variables, filled, mask=mask)
    return jnp.square(out).sum(), out

  run = jax.jit(jax.grad(run, has_aux=True))
  grads, out = run(variables, jnp.nan)
  assert jax.tree.all(jax.tree.map(lambda g: jnp.isfinite(g).all(), grads))
  np.testing.assert_array_equal(out, run(variables, 3.0)[1])
  assert not np.asarray(out[1, 7:]).any()
  alone = stack.apply(variables, x[1:, :7])
  np.testing.assert_allclose(out[1:, :7], alone, atol=1e-5)


def test_causal_stack_does_not_see_the_future_and_bidirectional_does():
  for causal in (True, False):
    stack, variables, x = _setup(causal=causal, remat="full")
    grad = jax.jit(
      jax.grad(
        lambda x, stack=stack, variables=variables: stack.apply(variables, x)[
          0, 4
        ].sum()
      )
    )(x)
    assert bool(jnp.any(grad[0, 5:] != 0)) is not causal
    assert bool(jnp.any(grad[0, :5] != 0))
    assert not np.asarray(grad[1]).any()  # Batch rows are independent.


def test_dropout_needs_a_key_and_changes_the_output():
  stack, variables, x = _setup(dropout_rate=0.5)
  rngs = [{"dropout": jax.random.key(i)} for i in (0, 0, 1)]
  first, again, other = (
    stack.apply(variables, x, deterministic=False, rngs=r) for r in rngs
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.1


@pytest.mark.parametrize(
  "fields",
  [
    {"positions": "t5", "attention": "plain"},
    {"positions": "rotary", "attention": "plain"},
    {"positions": "t5", "attention": "blocked"},
    {"positions": "rotary", "attention": "blocked", **GROUPED},
  ],
)
def test_packed_sequences_do_not_see_each_other(fields):
  stack, variables, x = _setup(**fields)
  ids = jnp.broadcast_to(jnp.arange(LENGTH) >= 5, x.shape[:2]).astype(int)
  packed = jax.jit(stack.apply)(variables, x, segment_ids=ids)
  plain = transformer.TransformerStack(
    dataclasses.replace(stack.config, attention="plain")
  )
  for part in (slice(0, 5), slice(5, LENGTH)):
    alone = plain.apply(variables, x[:, part])
    np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)


def test_remat_keeps_gradients():
  grads = []
  for remat, attention in (
    ("none", "plain"),
    ("dots", "plain"),
    ("context", "blocked"),
  ):
    stack, variables, x = _setup(remat=remat, attention=attention)
    grads.append(
      jax.jit(
        jax.grad(lambda v, s=stack, x=x: jnp.square(s.apply(v, x)).sum())
      )(variables)
    )
  for other in grads[1:]:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), grads[0], other
    )


def test_parameters_carry_logical_names():
  stack = transformer.TransformerStack(_config())
  shapes = jax.eval_shape(
    stack.init, jax.random.key(0), jnp.zeros((1, LENGTH, 16))
  )
  specs = axes.logical_specs(shapes)["params"]
  attention = specs["layers"]["attention"]
  assert tuple(attention["qkv"]["kernel"]) == (
    "layers",
    "embed",
    None,
    "heads",
    "kv",
  )
  assert tuple(specs["layers"]["mlp"]["wi"]["kernel"]) == (
    "layers",
    "embed",
    "mlp",
  )
  assert tuple(specs["relative_bias"]["table"]) == ("relpos_buckets", "heads")


@pytest.mark.parametrize(
  ("num_kv_heads", "expected"),
  [
    (None, {"qkv": (2, 16, 3, 4, 4)}),
    (4, {"qkv": (2, 16, 3, 4, 4)}),
    (2, {"query": (2, 16, 1, 4, 4), "key_value": (2, 16, 2, 2, 4)}),
    (1, {"query": (2, 16, 1, 4, 4), "key_value": (2, 16, 2, 1, 4)}),
  ],
)
def test_shared_heads_have_kernels_of_their_own(num_kv_heads, expected):
  stack = transformer.TransformerStack(
    _config(num_heads=4, num_kv_heads=num_kv_heads)
  )
  params = axes.unbox(
    jax.eval_shape(stack.init, jax.random.key(0), jnp.zeros((1, LENGTH, 16)))
  )["params"]["layers"]["attention"]
  assert {n: p["kernel"].shape for n, p in params.items() if n != "out"} == (
    expected
  )


@pytest.mark.parametrize(
  "field,value",
  [
    ("num_layers", 0),
    ("num_heads", 3),
    ("num_kv_heads", 0),
    ("num_kv_heads", 4),
    ("positions", "sinusoidal"),
    ("dropout_rate", 1.0),
    ("residual_scale", 0.0),
    ("residual_scale", 1.5),
    ("remat", "some"),
    ("attention", "none"),
  ],
)
def test_bad_config_names_field_and_value(field, value):
  with pytest.raises(ValueError, match=f"{value}"):
    _config(**{field: value})


@pytest.mark.parametrize("scan_layers", [True, False])
def test_scaled_branches_are_those_of_scaled_kernels(scan_layers):
  stack, variables, x = _setup(scan_layers=scan_layers)
  scaled, _, _ = _setup(scan_layers=scan_layers, residual_scale=0.25)
  expected = scaled.apply(variables, x)
  assert not np.allclose(stack.apply(variables, x), expected, atol=1e-2)

  def scale(path, leaf):
    is_last = any(getattr(key, "key", None) in ("out", "wo") for key in path)
    return leaf * 0.25 if is_last else leaf

  kernels = jax.tree_util.tree_map_with_path(scale, variables)
  np.testing.assert_allclose(stack.apply(kernels, x), expected, atol=1e-5)
