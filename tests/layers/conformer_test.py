# SPDX-License-Identifier: Apache-2.0
"""Contracts of the Conformer stack."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.layers import conformer
from musiclm_jax.partitioning import axes

CONFIG = conformer.ConformerConfig(
  num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32, dropout_rate=0.5
)


@pytest.fixture(scope="module")
def setup():
  stack = conformer.ConformerStack(CONFIG)
  x = jax.random.normal(jax.random.key(0), (2, 9, 16))
  variables = axes.unbox(stack.init(jax.random.key(1), x))
  return stack, variables, x


def test_shapes_and_last_output_is_last_layer(setup):
  stack, variables, x = setup
  out, outputs = stack.apply(variables, x)
  assert out.shape == x.shape
  assert outputs.shape == (2, *x.shape)
  np.testing.assert_array_equal(out, outputs[-1])


def test_nan_padding_does_not_leak(setup):
  stack, variables, x = setup
  whole, _ = stack.apply(variables, x[:, :6])
  padded = x.at[:, 6:].set(jnp.nan)
  mask = jnp.broadcast_to(jnp.arange(9) < 6, (2, 9))
  out, _ = stack.apply(variables, padded, mask)
  np.testing.assert_allclose(out[:, :6], whole, atol=1e-5)
  gradient = jax.grad(
    lambda v: (stack.apply(v, padded, mask)[0][:, :6] ** 2).sum()
  )(variables)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_rows_are_independent(setup):
  stack, variables, x = setup
  both, _ = stack.apply(variables, x)
  one, _ = stack.apply(variables, x[1:])
  np.testing.assert_allclose(both[1:], one, atol=1e-5)


def test_every_frame_sees_both_directions(setup):
  stack, variables, x = setup
  out, _ = stack.apply(variables, x)
  for frame in (0, 8):
    moved, _ = stack.apply(variables, x.at[:, frame].multiply(-1.0))
    change = np.abs(np.asarray(moved - out)).max((0, 2))
    assert (change > 1e-6).all()


def test_scanned_equals_unrolled(setup):
  stack, variables, x = setup
  config = dataclasses.replace(CONFIG, scan_layers=True, remat=True)
  scanned = conformer.ConformerStack(config)
  params = variables["params"]
  blocks = jax.tree.map(
    lambda *leaves: jnp.stack(leaves), params["block_0"], params["block_1"]
  )
  expected, outputs = stack.apply(variables, x)
  out, scanned_outputs = scanned.apply({"params": {"blocks": blocks}}, x)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  np.testing.assert_allclose(scanned_outputs, outputs, atol=1e-5)
  boxed = jax.eval_shape(scanned.init, jax.random.key(0), x)
  specs = axes.logical_specs(boxed)["params"]["blocks"]
  assert tuple(specs["mlp_in_up"]["kernel"]) == ("layers", "embed", "mlp")


def test_dropout_acts_only_in_training(setup):
  stack, variables, x = setup
  out, _ = stack.apply(
    variables, x, deterministic=False, rngs={"dropout": jax.random.key(3)}
  )
  plain, _ = stack.apply(variables, x)
  assert not np.allclose(out, plain)


@pytest.mark.parametrize(
  ("field", "value"),
  [("num_layers", 0), ("embed_dim", 18), ("conv_kernel", 4)],
)
def test_bad_config_names_field(field, value):
  with pytest.raises(ValueError, match=f"{field}={value}"):
    conformer.ConformerConfig(**{"num_heads": 4, field: value})


def test_small_branches_keep_the_frames_of_a_clip_apart():
  x = jax.random.normal(jax.random.key(0), (2, 40, 32))

  def spread(scale, block_norm=True):
    stack = conformer.ConformerStack(
      conformer.ConformerConfig(
        num_layers=8,
        embed_dim=32,
        num_heads=2,
        mlp_dim=64,
        branch_init_scale=scale,
        block_norm=block_norm,
      )
    )
    out = jax.jit(lambda key: stack.init_with_output(key, x)[0][0])
    out = out(jax.random.key(1))
    return (out.var(1).mean() / (out**2).mean()).item()

  assert spread(1.0) < 0.5 < 0.8 < spread(0.1) < spread(0.1, False)
  with pytest.raises(ValueError, match="branch_init_scale=0"):
    dataclasses.replace(CONFIG, branch_init_scale=0)
