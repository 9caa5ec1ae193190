# SPDX-License-Identifier: Apache-2.0
"""Contracts of the melody embedder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.audio import spectrogram
from musiclm_jax.core import artifacts
from musiclm_jax.layers import transformer
from musiclm_jax.networks import melody
from musiclm_jax.partitioning import axes

CONFIG = melody.MelodyConfig(
  mel=spectrogram.LogMelConfig(
    sample_rate_hz=1000, num_mels=6, frame_length=40, hop_length=10
  ),
  window_secs=0.5,
  output_dim=8,
  transformer=transformer.TransformerConfig(
    num_layers=2,
    embed_dim=16,
    num_heads=3,
    head_dim=4,
    mlp_dim=32,
    positions="none",
    causal=False,
  ),
)
NAMES = {
  "position",
  "project/bias",
  "project/kernel",
  "stem/bias",
  "stem/kernel",
  "transformer/final_norm/scale",
  "transformer/layers/attention/out/kernel",
  "transformer/layers/attention/qkv/kernel",
  "transformer/layers/attention_norm/scale",
  "transformer/layers/mlp/wi/kernel",
  "transformer/layers/mlp/wo/kernel",
  "transformer/layers/mlp_norm/scale",
}


@pytest.fixture(scope="module", params=["mean", "cls"])
def network(request):
  embedder = melody.MelodyEmbedder(
    dataclasses.replace(CONFIG, pooling=request.param)
  )
  boxed = jax.jit(embedder.init)(jax.random.key(0), jnp.zeros((1, 500)))
  return embedder, boxed


def test_parameter_names(network):
  embedder, boxed = network
  names = NAMES | ({"cls"} if embedder.config.pooling == "cls" else set())
  leaves = artifacts.flatten(axes.unbox(boxed)["params"])
  assert set(leaves) == names
  specs = artifacts.flatten(axes.logical_specs(boxed)["params"])
  for path, leaf in leaves.items():
    assert len(specs[path]) == len(leaf.shape), path


def test_padding_does_not_leak_and_rows_are_independent(network):
  embedder, boxed = network
  variables = axes.unbox(boxed)
  waveform = 0.1 * jax.random.normal(jax.random.key(1), (3, 500))
  lengths = jnp.array([500, 345, 37])
  hole = jnp.where(jnp.arange(500) < lengths[:, None], waveform, jnp.nan)
  apply = jax.jit(embedder.apply)
  out = apply(variables, hole, lengths)
  assert out.shape == (3, 8) and out.dtype == jnp.float32
  np.testing.assert_allclose((out**2).sum(-1), 1.0, rtol=1e-5)
  for row, length in ((1, 345), (2, 37)):
    alone = apply(variables, waveform[row : row + 1, :length])
    np.testing.assert_allclose(alone[0], out[row], atol=1e-5)
  np.testing.assert_allclose(
    apply(variables, hole[::-1], lengths[::-1])[::-1], out, atol=1e-5
  )
  assert float(jnp.abs(out[0] - out[1]).max()) > 1e-3


def test_order_matters(network):
  embedder, boxed = network
  variables = axes.unbox(boxed)
  # Positions start small; let them speak.
  variables["params"]["position"] *= 20
  low = jnp.sin(jnp.arange(250) * 0.3)
  high = jnp.sin(jnp.arange(250) * 1.5)
  rising, falling = jnp.stack(
    [jnp.concatenate([low, high]), jnp.concatenate([high, low])]
  )
  out = jax.jit(embedder.apply)(variables, jnp.stack([rising, falling]))
  assert float(jnp.abs(out[0] - out[1]).max()) > 1e-3


def test_levels_are_not_seen_with_a_dynamic_range():
  config = dataclasses.replace(
    CONFIG,
    bands="log",
    dynamic_range_db=40.0,
    mel=dataclasses.replace(CONFIG.mel, low_hz=50.0, high_hz=400.0),
  )
  embedder = melody.MelodyEmbedder(config)
  waveform = 0.1 * jax.random.normal(jax.random.key(1), (1, 500))
  variables = axes.unbox(embedder.init(jax.random.key(0), waveform))
  loud, soft = (embedder.apply(variables, g * waveform) for g in (1.0, 0.2))
  np.testing.assert_allclose(loud, soft, atol=1e-4)
  silent = embedder.apply(variables, 0 * waveform)
  assert bool(jnp.isfinite(silent).all())


def test_bad_input_names_what_was_expected(network):
  embedder, boxed = network
  with pytest.raises(ValueError, match="501 samples.*at most 500"):
    embedder.apply(axes.unbox(boxed), jnp.zeros((1, 501)))
  stack = dataclasses.replace(CONFIG.transformer, positions="t5")
  with pytest.raises(ValueError, match="positions='t5'"):
    dataclasses.replace(CONFIG, transformer=stack)
  with pytest.raises(ValueError, match="pooling='max'"):
    dataclasses.replace(CONFIG, pooling="max")
  with pytest.raises(ValueError, match="bands='cqt'"):
    dataclasses.replace(CONFIG, bands="cqt")
  with pytest.raises(ValueError, match="low_hz=0.*expected > 0"):
    dataclasses.replace(CONFIG, bands="log")
  with pytest.raises(ValueError, match="dynamic_range_db=-1"):
    dataclasses.replace(CONFIG, dynamic_range_db=-1)
