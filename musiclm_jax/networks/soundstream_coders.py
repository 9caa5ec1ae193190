# SPDX-License-Identifier: Apache-2.0
"""SoundStream's encoder and decoder, and the switch between them.

Two channels go through as middle and side.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.layers import conv, snake
from musiclm_jax.networks import soundstream_config, subband_init
from musiclm_jax.partitioning import axes

_EDGE = ("batch", "frames", None)


def _sum_and_difference(x: jax.Array) -> jax.Array:
  """Left and right to twice middle and side, or middle and side back.

  No product: on a TPU that would round the finished samples to bfloat16.
  """
  return jnp.stack([x[..., 0] + x[..., 1], x[..., 0] - x[..., 1]], -1)


def elu(x: jax.Array) -> jax.Array:
  """ELU by a plain exponential, to 6e-8 what `jax.nn.elu` gives.

  XLA's `expm1` is exact for small numbers, which no layer here needs, and on
  CPU took 6 % of encoding.
  """
  return jnp.maximum(x, 0.0) + (jnp.exp(jnp.minimum(x, 0.0)) - 1.0)


def _activate(
  config: soundstream_config.SoundStreamConfig,
  kind: str,
  name: str,
  x: jax.Array,
) -> jax.Array:
  """ELU, or a learned activation that becomes submodule `name`."""
  if kind == "elu":
    return elu(x)
  # As the first kernels: a start that passes the sound through is kept.
  start = 0.1 if config.init == "subband" else 1.0
  return snake.Snake(start, name=name)(x)


class ResidualUnit(nn.Module):
  """Dilated convolution, ELU, pointwise convolution, ELU, plus the input."""

  config: soundstream_config.SoundStreamConfig
  dilation: int
  activation: str = "elu"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config = self.config
    y = conv.CausalConv1d(
      x.shape[-1],
      config.kernel_size,
      dilation=self.dilation,
      implementation=config.conv_implementation,
      name="dilated",
    )(x)
    quiet = config.init == "subband"
    y = conv.CausalConv1d(
      x.shape[-1],
      1,
      implementation="matmul",
      kernel_init=nn.initializers.zeros if quiet else None,
      name="pointwise",
    )(_activate(config, self.activation, "inner", y))
    return x + _activate(config, self.activation, "outer", y)


class Encoder(nn.Module):
  """Waveform to latents `[batch, frames, code_dim]`."""

  config: soundstream_config.SoundStreamConfig

  @nn.compact
  def __call__(self, waveform: jax.Array) -> jax.Array:
    config = self.config
    options = {"implementation": config.conv_implementation}
    subband = config.init == "subband"
    bands = config.num_bands
    init = None
    if subband:
      init = subband_init.passing(
        config.kernel_size,
        config.num_channels,
        config.block_channels(0),
        1,
        subband_init.GAIN,
      )
    tail = () if config.num_channels == 1 else (config.num_channels,)
    if waveform.ndim < 2 or waveform.shape[2:] != tail:
      raise ValueError(
        f"waveform has shape {waveform.shape}: expected [batch, samples"
        f"{''.join(f', {size}' for size in tail)}], as num_channels="
        f"{config.num_channels}"
      )
    x = 0.5 * _sum_and_difference(waveform) if tail else waveform[..., None]
    x = conv.CausalConv1d(
      config.block_channels(0),
      config.kernel_size,
      kernel_init=init,
      name="first",
      **options,
    )(x)
    for block, stride in enumerate(config.strides):
      for unit, dilation in enumerate(config.dilations):
        x = ResidualUnit(config, dilation, name=f"block_{block}_unit_{unit}")(x)
      features = config.block_channels(block + 1)
      if subband:
        init = subband_init.split(stride, x.shape[-1], features, bands[block])
      x = conv.CausalConv1d(
        features,
        2 * stride,
        stride=stride,
        kernel_init=init,
        name=f"block_{block}_down",
        **options,
      )(elu(x))
      x = axes.constrain(x, _EDGE)
    if subband:
      init = subband_init.passing(
        3, x.shape[-1], config.code_dim, bands[-1], subband_init.LATENT_GAIN
      )
    return conv.CausalConv1d(
      config.code_dim, 3, kernel_init=init, name="last", **options
    )(elu(x))


class Decoder(nn.Module):
  """Latents `[batch, frames, code_dim]` to a waveform."""

  config: soundstream_config.SoundStreamConfig

  @nn.compact
  def __call__(self, latents: jax.Array) -> jax.Array:
    config = self.config
    options = {"implementation": config.conv_implementation}
    kind = config.decoder_activation
    subband = config.init == "subband"
    bands = config.num_bands
    channels = config.block_channels(len(config.strides))
    init = None
    if subband:
      init = subband_init.passing(
        config.kernel_size,
        config.code_dim,
        channels,
        bands[-1],
        1.0 / subband_init.LATENT_GAIN,
      )
    x = conv.CausalConv1d(
      channels, config.kernel_size, kernel_init=init, name="first", **options
    )(latents)
    for block, stride in reversed(list(enumerate(config.strides))):
      features = config.block_channels(block)
      if subband:
        overlap = dict(enumerate(subband_init.OVERLAPS)).get(block, 0.0)
        init = subband_init.join(
          stride, x.shape[-1], features, bands[block], overlap
        )
      x = conv.CausalConvTranspose1d(
        features,
        stride,
        kernel_init=init,
        implementation=config.transpose_implementation,
        name=f"block_{block}_up",
      )(_activate(config, kind, f"block_{block}_activation", x))
      for unit, dilation in enumerate(config.dilations):
        x = ResidualUnit(
          config, dilation, kind, name=f"block_{block}_unit_{unit}"
        )(x)
      x = axes.constrain(x, _EDGE)
    if subband:
      init = subband_init.passing(
        config.kernel_size,
        x.shape[-1],
        config.num_channels,
        1,
        1.0 / subband_init.GAIN,
      )
    else:
      # Residual blocks add up: unscaled, the first output would be far louder
      # than music and the mel loss spend its first steps on the level.
      init = nn.initializers.variance_scaling(1e-3, "fan_in", "uniform")
    x = conv.CausalConv1d(
      config.num_channels,
      config.kernel_size,
      kernel_init=init,
      name="last",
      **options,
    )(_activate(config, kind, "last_activation", x))
    if config.num_channels == 1:
      return x[..., 0]
    return _sum_and_difference(x)


class Film(nn.Module):
  """Scale and shift per channel, chosen by a flag (SoundStream sec. III-F)."""

  @nn.compact
  def __call__(self, x: jax.Array, denoise: jax.Array) -> jax.Array:
    """`x` `[batch, frames, dim]`, `denoise` bool `[batch]` or with frames."""
    flag = jax.nn.one_hot(denoise.astype(jnp.int32), 2, dtype=x.dtype)
    if flag.ndim == 2:
      flag = flag[:, None]
    init = axes.named(nn.initializers.normal(0.01), (None, "code_dim"))
    kernel = self.param("kernel", init, (2, 2 * x.shape[-1]))
    gamma, beta = jnp.split(flag @ kernel, 2, axis=-1)
    return (1.0 + gamma) * x + beta
