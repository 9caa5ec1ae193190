# SPDX-License-Identifier: Apache-2.0
"""Attention in blocks, by XLA and as a kernel, against all pairs at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.layers import attention, blocked_attention, positions

# Three tiles, the last one not full; the bias ends within the second.
BATCH, LENGTH, HEADS, KV, BLOCK, MAX_DISTANCE = 2, 300, 2, 64, 128, 40
MODULE = positions.RelativeBias(HEADS, 16, MAX_DISTANCE)


def _inputs():
  keys = jax.random.split(jax.random.key(0), 3)
  qkv = jax.random.normal(keys[0], (BATCH, LENGTH, 3, HEADS, KV))
  table = jax.random.normal(keys[1], (16, HEADS))
  return qkv, table, jax.random.normal(keys[2], (BATCH, LENGTH, HEADS, KV))


def _segments():
  ends = jnp.array([[100], [250]])
  return (jnp.arange(LENGTH) >= ends).astype(jnp.int32)


def _reference(qkv, table, segment_ids):
  bias = MODULE.apply({"params": {"table": table}}, LENGTH)
  seen = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
  if segment_ids is not None:
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    seen = seen & same
  query, key, value = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
  bias = jnp.where(seen, bias, attention.MASKED)
  bias = bias if bias.ndim == 4 else bias[None]
  return attention.attend(query, key, value, bias).swapaxes(1, 2)


def _blocked(qkv, table, segment_ids, interpret):
  wheel = MODULE.apply(
    {"params": {"table": table}},
    BLOCK,
    positions.num_near_tiles(BLOCK, MAX_DISTANCE),
    method="near",
  )
  bias = blocked_attention.BlockedBias(wheel, segment_ids, True, False)
  return blocked_attention.attend(qkv, bias, interpret)


def _with_gradients(function, qkv, table, direction, segment_ids):
  def loss(qkv, table):
    out = function(qkv, table, segment_ids)
    return (out * direction).sum(), out

  run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
  (_, out), grads = run(qkv, table)
  return [out, *grads]


@pytest.mark.parametrize("interpret", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_equals_attention_over_all_pairs_and_its_gradients(interpret, packed):
  arguments = (*_inputs(), _segments() if packed else None)
  expected = _with_gradients(_reference, *arguments)
  blocked = functools.partial(_blocked, interpret=interpret)
  for value, wanted in zip(_with_gradients(blocked, *arguments), expected):
    scale = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(value, wanted, atol=1e-5 * scale)


def test_kernel_takes_bfloat16_and_ignores_what_lies_beyond_the_sequence():
  qkv, table, _ = _inputs()
  out = _blocked(qkv.astype(jnp.bfloat16), table, None, interpret=True)
  expected = _reference(qkv, table, None)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.06)


@pytest.mark.parametrize("interpret", [False, True])
def test_without_a_bias_equals_causal_attention(interpret):
  qkv, _, direction = _inputs()
  ids = _segments()

  def blocked(qkv, table, segment_ids):
    del table
    wheel = jnp.asarray(positions.near_mask(BLOCK, 1))
    bias = blocked_attention.BlockedBias(wheel, segment_ids, False, False)
    return blocked_attention.attend(qkv, bias, interpret)

  zeros = jnp.zeros((16, HEADS))
  values = _with_gradients(blocked, qkv, zeros, direction, ids)
  expected = _with_gradients(_reference, qkv, zeros, direction, ids)
  for value, wanted in zip(values[:2], expected[:2]):
    scale = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(value, wanted, atol=1e-5 * scale)


@pytest.mark.parametrize("cached_scores", [1, 2**20])
def test_row_by_row_equals_all_at_once(monkeypatch, cached_scores):
  arguments = (*_inputs(), _segments())
  monkeypatch.setattr(blocked_attention, "_CACHED_SCORES", cached_scores)
  blocked = functools.partial(_blocked, interpret=False)
  expected = _with_gradients(blocked, *arguments)
  monkeypatch.setattr(blocked_attention, "_row_by_row", lambda: False)
  at_once = functools.partial(_blocked, interpret=False)
  for value, wanted in zip(_with_gradients(at_once, *arguments), expected):
    scale = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(value, wanted, atol=1e-5 * scale)
