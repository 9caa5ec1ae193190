# SPDX-License-Identifier: Apache-2.0
"""Critics: shapes as published, names, and no look at other examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.networks import discriminators
from musiclm_jax.partitioning import axes


def test_published_shapes():
  module = discriminators.Discriminators(discriminators.DiscriminatorConfig())
  waveform = jax.ShapeDtypeStruct((2, 24576), jnp.float32)
  out, variables = jax.eval_shape(
    module.init_with_output, jax.random.key(0), waveform
  )
  stft, *waves = out
  # T / (H * 2^3) logits; F / 2^6 = 8 bins before the last convolution.
  assert stft.logits.shape == (2, 24576 // (256 * 8))
  assert stft.features[-1].shape == (2, 12, 8, 512)
  assert [wave.logits.shape[1] for wave in waves] == [96, 48, 24]
  channels = [feature.shape[-1] for feature in waves[0].features]
  assert channels == [16, 64, 256, 1024, 1024, 1024]
  params = axes.unbox(variables)["params"]
  assert set(params) == {"stft", "wave_0", "wave_1", "wave_2"}
  assert params["wave_0"]["down_1"]["kernel"].shape == (41, 4, 256)
  assert set(params["wave_0"]) == {
    "first", "down_0", "down_1", "down_2", "down_3", "join", "logits",
  }  # fmt: skip
  blocks = {f"block_{block}" for block in range(6)}
  assert set(params["stft"]) == {"first", "logits"} | blocks
  assert set(params["stft"]["block_0"]) == {"first", "down", "shortcut"}


def test_rows_are_independent_and_finite():
  config = discriminators.DiscriminatorConfig(
    num_wave_scales=1, wave_channels=4, wave_max_channels=8,
    num_wave_layers=1, stft_channels=2, stft_frame_length=64,
    stft_hop_length=16, stft_multipliers=(1, 2),
  )  # fmt: skip
  module = discriminators.Discriminators(config)
  waveform = jax.random.normal(jax.random.key(0), (2, 256))
  variables = axes.unbox(jax.jit(module.init)(jax.random.key(1), waveform))
  apply = jax.jit(module.apply)
  before = apply(variables, waveform)
  after = apply(variables, waveform.at[1].set(0.0))
  for a, b in zip(before, after):
    assert np.isfinite(a.logits).all()
    np.testing.assert_allclose(a.logits[0], b.logits[0], atol=1e-5)
    assert not np.allclose(a.logits[1], b.logits[1])


def test_bad_config_is_named():
  with pytest.raises(ValueError, match="at least one critic"):
    discriminators.DiscriminatorConfig(num_wave_scales=0, stft_channels=0)
  with pytest.raises(ValueError, match="wave_channels=6"):
    discriminators.DiscriminatorConfig(wave_channels=6)


@pytest.mark.parametrize("time", [1, 40, 257, 1024])
def test_grouped_convolution_is_xlas(time):
  """From 64 outputs on, a row of the product makes several."""
  random = np.random.default_rng(time)
  x = random.standard_normal((2, time, 16), dtype=np.float32)
  kernel = random.standard_normal((41, 4, 32), dtype=np.float32)
  slope = random.standard_normal((2, -(-time // 4), 32), dtype=np.float32)

  def native(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (4,),
      "SAME",
      dimension_numbers=("NWC", "WIO", "NWC"),
      feature_group_count=4,
    )

  def ours(x, kernel):
    return discriminators.grouped_convolution(x, kernel, 4, 4)

  results = []
  for function in (native, ours):
    y, pull_back = jax.vjp(function, x, kernel)
    results.append((y, *pull_back(slope)))
  for want, got in zip(*results, strict=True):
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * scale)
