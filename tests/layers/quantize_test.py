# SPDX-License-Identifier: Apache-2.0
"""RVQ: start from data, moving averages, dead entries, levels, meshes."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import rvq
from musiclm_jax.layers import codebook_refit, quantize
from musiclm_jax.partitioning import axes

_CONFIG = quantize.ResidualQuantizerConfig(
  num_codebooks=3, codebook_size=8, code_dim=4, dropout=False
)


def _vectors(seed: int = 0, scale: float = 3.0) -> jax.Array:
  return scale * jax.random.normal(jax.random.key(seed), (8, 16, 4))


def _train(config=_CONFIG, variables=None, vectors=None, seed=0):
  module = quantize.ResidualQuantizer(config)
  vectors = _vectors() if vectors is None else vectors
  if variables is None:
    variables = axes.unbox(module.init(jax.random.key(0), vectors, False))
  return _step(config)(variables, vectors, jax.random.key(seed))


@functools.cache
def _step(config):
  module = quantize.ResidualQuantizer(config)
  return jax.jit(
    lambda variables, vectors, key: module.apply(
      variables, vectors, True, key, mutable=["codebooks"]
    )
  )


def test_start_uses_the_data_and_every_level_helps():
  vectors = _vectors() + 50.0  # far from any fresh codebook
  out, state = _train(vectors=vectors)
  first = np.asarray(state["codebooks"]["embed"][0])
  assert np.abs(first - 50.0).max() < 15.0
  module = quantize.ResidualQuantizer(_CONFIG)
  codes = module.apply(state, vectors, method="encode")
  errors = [
    float(((module.apply(state, codes[..., :n], method="decode") - vectors)
           ** 2).mean())
    for n in (0, 1, 2, 3)
  ]  # fmt: skip
  assert errors == sorted(errors, reverse=True) and errors[3] < 3.0
  assert (out.usage > 0.5).all() and (out.perplexity <= 8.001).all()


def test_encode_equals_host_rvq_and_any_prefix_decodes():
  _, state = _train()
  module = quantize.ResidualQuantizer(_CONFIG)
  codes = module.apply(state, _vectors(1), method="encode")
  assert codes.shape == (8, 16, 3) and codes.dtype == jnp.int32
  embed = np.asarray(state["codebooks"]["embed"])
  np.testing.assert_array_equal(
    codes, rvq.encode(np.asarray(_vectors(1)), embed)
  )
  decoded = module.apply(state, codes[..., :2], method="decode")
  np.testing.assert_allclose(
    decoded, rvq.decode(np.asarray(codes[..., :2]), embed), atol=1e-5
  )
  with pytest.raises(ValueError, match="num_codebooks=3"):
    module.apply(state, jnp.zeros((1, 4), jnp.int32), method="decode")


def test_refit_lowers_the_error_of_every_level_and_keeps_the_order():
  vectors = np.random.default_rng(0).normal(size=(4000, 4)).astype(np.float32)
  config = quantize.ResidualQuantizerConfig(3, 8, 4, kmeans_iterations=1)
  rough = quantize.fit(jax.random.key(0), vectors, config, 100)["embed"]

  def errors(embed):
    left, result = vectors, []
    for level in embed:
      left = left - level[quantize.nearest(left, level)]
      result.append((left**2).sum(-1).mean())
    return np.array(result)

  better, error = codebook_refit.refit(rough, vectors, 10)
  np.testing.assert_allclose(error, errors(better), rtol=1e-4)
  assert (errors(better) < 0.99 * errors(rough)).all()
  assert ((better == 0).all(-1).sum(-1) == 1).all()
  # Entries keep their meaning: most are nearest to where they started.
  same = quantize.nearest(better[0], rough[0]) == np.arange(8)
  assert same.mean() > 0.7


def test_refit_moves_entries_that_nothing_is_near_to():
  vectors = np.random.default_rng(0).normal(size=(4000, 4)).astype(np.float32)
  config = quantize.ResidualQuantizerConfig(2, 16, 4)
  start = quantize.fit(jax.random.key(0), vectors, config, 100)["embed"]
  # As fresh entries of training are: each near a single vector, if any.
  start = start.at[:, :6].set(50.0 + jnp.arange(6.0)[:, None])

  def shares(embed):
    left, result = vectors, []
    for level in embed:
      codes = quantize.nearest(left, level)
      result.append(np.bincount(codes, minlength=16) / len(codes) * 16)
      left = left - level[codes]
    return np.array(result)

  kept, worse = codebook_refit.refit(start, vectors, 10, 0.0)
  moved, better = codebook_refit.refit(start, vectors, 10)
  # One of each is made zero, and stands for the rest.
  assert ((shares(kept) == 0).sum(-1) >= 5).all()
  assert (np.sort(shares(moved))[:, 1:] > 0.2).all(), shares(moved)
  assert (better < 0.9 * worse).all()


def test_replaced_entry_survives_the_next_update():
  _, state = _train()
  books = dict(state["codebooks"])
  books["embed"] = books["embed"].at[0, 5].set(1e3)
  books["sums"] = books["sums"].at[0, 5].set(0.0)
  books["counts"] = books["counts"].at[0, 5].set(0.0)
  _, state = _train(variables={"codebooks": books}, seed=1)
  replaced = np.asarray(state["codebooks"]["embed"][0, 5])
  rows = np.asarray(_vectors()).reshape(-1, 4)
  assert np.abs(rows - replaced).max(-1).min() < 1e-4, (
    "not a frame of the batch"
  )
  _, state = _train(variables=state, seed=2)
  after = np.asarray(state["codebooks"]["embed"][0, 5])
  assert np.abs(after - replaced).max() < 0.3
  assert float(state["codebooks"]["counts"][0, 5]) > 1.0


def test_averages_move_towards_the_assigned_vectors():
  _, state = _train()
  books = state["codebooks"]
  out, after = _train(variables=state, vectors=_vectors() + 0.5)
  moved = (after["codebooks"]["embed"] - books["embed"])[0].mean()
  assert 0.0 < float(moved) < 0.1  # 1 - decay of the way, or so
  picked = (_vectors() + 0.5).reshape(-1, 4)
  one_hot = jax.nn.one_hot(out.codes[..., 0].reshape(-1), 8)
  sums = 0.99 * books["sums"][0] + 0.01 * one_hot.T @ picked
  counts = 0.99 * books["counts"][0] + 0.01 * one_hot.sum(0)
  alive = np.asarray(counts) > 3.2  # dead entries are replaced
  np.testing.assert_allclose(
    after["codebooks"]["embed"][0][alive],
    (sums / counts[:, None])[alive],
    atol=1e-4,
  )


def test_straight_through_and_commitment_gradients():
  _, state = _train()
  module = quantize.ResidualQuantizer(_CONFIG)
  vectors = _vectors(2)
  slope = jax.grad(
    lambda x: (module.apply(state, x, False).quantized * 2.0).sum()
  )(vectors)
  np.testing.assert_allclose(slope, 2.0, rtol=1e-6)
  before = module.apply(state, vectors, False).commitment
  slope = jax.grad(lambda x: module.apply(state, x, False).commitment)(vectors)
  after = module.apply(state, vectors - 10.0 * slope, False).commitment
  assert after < before


def test_dropout_draws_levels_per_example():
  config = quantize.ResidualQuantizerConfig(3, 8, 4)
  _, state = _train(config)
  module = quantize.ResidualQuantizer(config)
  vectors = jnp.repeat(_vectors()[:1], 64, axis=0)
  out, _ = _train(config, state, vectors)
  distinct = np.unique(np.asarray(out.quantized)[:, 0].round(4), axis=0)
  assert len(distinct) == 3
  evaluated = module.apply(state, vectors, False).quantized
  np.testing.assert_allclose(evaluated, evaluated[:1].repeat(64, 0), atol=1e-5)


_SHARDED = """
import jax, numpy as np
from musiclm_jax.layers import codebook_refit, quantize
from musiclm_jax.partitioning import axes, mesh, partitioner
config = quantize.ResidualQuantizerConfig(2, 8, 4)
module = quantize.ResidualQuantizer(config)
x = np.asarray(jax.random.normal(jax.random.key(0), (8, 16, 4)))
boxed = module.init(jax.random.key(0), x, False)
def run(config, devices):
  part = partitioner.Partitioner(config, devices)
  shardings = part.shardings(boxed)
  def step(state, batch, key):
    vectors = axes.constrain(batch['x'], ('batch', 'frames', None))
    return module.apply(state, vectors, True, key, mutable=['codebooks'])[1]
  step = part.jit(step, out_shardings=shardings)
  state = jax.device_put(axes.unbox(boxed), shardings)
  batch = part.put_batch({'x': x})
  for seed in range(3):
    state = step(state, batch, jax.random.key(seed))
  return len(batch['x'].sharding.device_set), jax.tree.map(np.asarray, state)
devices = jax.devices()
_, one = run(mesh.MeshConfig(), devices[:1])
for config in (mesh.MeshConfig(data=8), mesh.MeshConfig(2, 2, 1, 2)):
  count, many = run(config, devices)
  assert count == 8
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
               one, many)
"""


def test_statistics_are_equal_on_1_and_8_devices():
  flags = "--xla_force_host_platform_device_count=8"
  environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", _SHARDED],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]


def test_bad_config_is_named():
  with pytest.raises(ValueError, match="decay=1.5"):
    quantize.ResidualQuantizerConfig(decay=1.5)
