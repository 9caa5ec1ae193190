# SPDX-License-Identifier: Apache-2.0
"""Waveform in; logits and internal features of several critics out.

The waveform and the STFT discriminators of SoundStream sec. III-D; kernel
sizes of the former as in MelGAN. A waveform with two channels gives each
critic twice the input channels.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.audio import spectrogram
from musiclm_jax.layers import conv2d
from musiclm_jax.partitioning import axes

_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
# Of a row of a product of grouped convolutions, and from which length on.
_OUTPUTS_PER_ROW, _MIN_FRAMES = 4, 64


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
  """Widths of the critics; the defaults are the published ones.

  Attributes:
    num_wave_scales: waveform critics, at x1, x1/2, x1/4, ... ; 0 for none.
    wave_channels: of their first convolution.
    wave_max_channels: upper bound; channels grow by 4 per layer.
    num_wave_layers: strided (by 4) grouped convolutions.
    wave_group_size: input channels per group.
    stft_channels: of the STFT critic's first convolution; 0 for no such critic.
    stft_frame_length: samples under the window.
    stft_hop_length: samples between frames.
    stft_multipliers: output channels of the residual blocks, as multiples of
      `stft_channels`.
  """

  num_wave_scales: int = 3
  wave_channels: int = 16
  wave_max_channels: int = 1024
  num_wave_layers: int = 4
  wave_group_size: int = 4
  stft_channels: int = 32
  stft_frame_length: int = 1024
  stft_hop_length: int = 256
  stft_multipliers: tuple[int, ...] = (2, 4, 4, 8, 8, 16)

  def __post_init__(self):
    multipliers = tuple(self.stft_multipliers)
    object.__setattr__(self, "stft_multipliers", multipliers)
    for name in ("num_wave_scales", "stft_channels", "num_wave_layers"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)}: expected >= 0")
    if not self.num_wave_scales and not self.stft_channels:
      raise ValueError(
        "num_wave_scales=0 and stft_channels=0: expected at least one critic"
      )
    for name in ("wave_channels", "wave_max_channels", "wave_group_size"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected >= 1")
    if self.wave_channels % self.wave_group_size:
      raise ValueError(
        f"wave_channels={self.wave_channels}: expected a multiple of "
        f"wave_group_size={self.wave_group_size}"
      )
    bins = self.stft_frame_length // 2
    if self.stft_channels and bins % 2 ** len(multipliers):
      raise ValueError(
        f"stft_frame_length={self.stft_frame_length}: expected "
        f"{2 ** (len(multipliers) + 1)} to divide it"
      )


class Judgement(NamedTuple):
  """One critic's view: logits `[batch, time]`, features of every layer."""

  logits: jax.Array
  features: tuple[jax.Array, ...]


def grouped_convolution(
  x: jax.Array, kernel: jax.Array, stride: int, groups: int
) -> jax.Array:
  """Strided grouped convolution with 'same' padding, as batched products.

  XLA:CPU's own takes 2.1 to 3.4 times as long, forward and backward. A row of
  a product has the taps of several outputs, with zeros where a tap is not one
  of an output: fewer copies of the input for more operations.

  Args:
    x: `[batch, time, channels]`.
    kernel: `[taps, channels / groups, features]`.
    stride: inputs per output.
    groups: of channels.

  Returns:
    `[batch, ceil(time / stride), features]`.
  """
  batch, time, channels = x.shape
  taps, per_group, features = kernel.shape
  frames = -(-time // stride)
  before = max((frames - 1) * stride + taps - time, 0) // 2
  wide = _OUTPUTS_PER_ROW if frames >= _MIN_FRAMES else 1
  step = wide * stride
  taps += (wide - 1) * stride
  products = -(-frames // wide)
  blocks = -(-taps // step)
  rows = products + blocks - 1
  after = rows * step - time - before
  x = jnp.pad(x, ((0, 0), (before, max(after, 0)), (0, 0)))
  x = x[:, : rows * step].reshape(batch, rows, step, groups, per_group)
  x = x.transpose(3, 0, 1, 2, 4).reshape(groups, batch, rows, -1)
  x = jnp.concatenate([x[:, :, j : j + products] for j in range(blocks)], -1)
  spare = blocks * step - taps
  shifted = [
    jnp.pad(
      kernel,
      ((i * stride, (wide - 1 - i) * stride + spare), (0, 0), (0, 0)),
    )
    for i in range(wide)
  ]
  kernel = jnp.stack(shifted, 2)
  kernel = kernel.reshape(-1, wide, groups, features // groups)
  kernel = kernel.transpose(2, 0, 1, 3).reshape(groups, x.shape[-1], -1)
  y = jnp.einsum(
    "gnk,gkf->gnf", x.reshape(groups, batch * products, -1), kernel
  )
  y = y.reshape(groups, batch, products * wide, -1).transpose(1, 2, 0, 3)
  return y[:, :frames].reshape(batch, frames, features)


class _Conv(nn.Module):
  """Convolution over the middle axes with 'same' padding."""

  features: int
  kernel_size: tuple[int, ...]
  strides: tuple[int, ...]
  groups: int = 1
  padding: str = "SAME"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
    time_freq = ("kernel_time", "kernel_freq")[: len(self.kernel_size)]
    names = (*time_freq, "conv_in", "conv_out")
    kernel = self.param("kernel", axes.named(_INIT, names), shape)
    zeros = axes.named(nn.initializers.zeros, ("conv_out",))
    bias = self.param("bias", zeros, (self.features,))
    if self.groups > 1:
      return bias + grouped_convolution(x, kernel, self.strides[0], self.groups)
    if len(self.kernel_size) == 2:
      return bias + conv2d.convolution_2d(x, kernel, self.strides, self.padding)
    y = jax.lax.conv_general_dilated(
      x,
      kernel,
      self.strides,
      self.padding,
      dimension_numbers=("NWC", "WIO", "NWC"),
    )
    return y + bias


def _with_channels(waveform: jax.Array) -> jax.Array:
  """`[batch, samples]` or with channels to `[batch, samples, channels]`."""
  return waveform[..., None] if waveform.ndim == 2 else waveform


def _leaky(x: jax.Array) -> jax.Array:
  return nn.leaky_relu(x, 0.2)


class WaveDiscriminator(nn.Module):
  """One scale: a convolution, strided grouped ones, two more to logits."""

  config: DiscriminatorConfig

  @nn.compact
  def __call__(self, waveform: jax.Array) -> Judgement:
    config = self.config
    x = _leaky(
      _Conv(config.wave_channels, (15,), (1,), name="first")(
        _with_channels(waveform)
      )
    )
    features = [x]
    for layer in range(config.num_wave_layers):
      channels = min(4 * x.shape[-1], config.wave_max_channels)
      groups = x.shape[-1] // config.wave_group_size
      x = _leaky(_Conv(channels, (41,), (4,), groups, name=f"down_{layer}")(x))
      features.append(x)
    x = _leaky(_Conv(x.shape[-1], (5,), (1,), name="join")(x))
    features.append(x)
    logits = _Conv(1, (3,), (1,), name="logits")(x)
    return Judgement(logits[..., 0], tuple(features))


class _ResidualBlock(nn.Module):
  """3x3 convolution, then a strided one, beside a strided shortcut."""

  features: int
  strides: tuple[int, int]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size = (self.strides[0] + 2, self.strides[1] + 2)
    y = _leaky(_Conv(x.shape[-1], (3, 3), (1, 1), name="first")(x))
    y = _Conv(self.features, size, self.strides, name="down")(y)
    shortcut = _Conv(self.features, (1, 1), self.strides, name="shortcut")(x)
    return _leaky(y + shortcut)


class StftDiscriminator(nn.Module):
  """A 2-D residual network on the complex STFT, one logit per time step."""

  config: DiscriminatorConfig

  @nn.compact
  def __call__(self, waveform: jax.Array) -> Judgement:
    config = self.config
    parts = [
      part
      for channel in jnp.moveaxis(_with_channels(waveform), -1, 0)
      for part in spectrogram.stft(
        channel, config.stft_frame_length, config.stft_hop_length
      )
    ]
    # Without the bin at half the sample rate, F is a power of two.
    x = jnp.stack(parts, axis=-1)[..., :-1, :]
    # Unit-power noise then has unit variance, whatever the window.
    x = x * (config.stft_frame_length * 0.375) ** -0.5
    x = _leaky(_Conv(config.stft_channels, (7, 7), (1, 1), name="first")(x))
    features = [x]
    for block, multiplier in enumerate(config.stft_multipliers):
      strides = (1 + block % 2, 2)
      x = _ResidualBlock(
        multiplier * config.stft_channels, strides, name=f"block_{block}"
      )(x)
      features.append(x)
    logits = _Conv(1, (1, x.shape[2]), (1, 1), padding="VALID", name="logits")(
      x
    )
    return Judgement(logits[:, :, 0, 0], tuple(features))


class Discriminators(nn.Module):
  """All critics; the STFT critic is the first, as k = 0 in the paper."""

  config: DiscriminatorConfig

  @nn.compact
  def __call__(self, waveform: jax.Array) -> tuple[Judgement, ...]:
    """float32 `[batch, samples]` (and channels) to `Judgement`s."""
    out = []
    if self.config.stft_channels:
      out.append(StftDiscriminator(self.config, name="stft")(waveform))
    scaled = waveform
    for scale in range(self.config.num_wave_scales):
      if scale:
        scaled = nn.avg_pool(
          _with_channels(scaled), (4,), strides=(2,), padding="SAME"
        )
      critic = WaveDiscriminator(self.config, name=f"wave_{scale}")
      out.append(critic(scaled))
    return tuple(out)
