# SPDX-License-Identifier: Apache-2.0
"""MuLan's audio towers: log-mel spectrograms in, vectors out.

Two choices, as published (MuLan sec. 3.1): a residual network over the
spectrogram as an image (ResNet-50), or an Audio Spectrogram Transformer.
Normalisation is GroupNorm and LayerNorm, never BatchNorm: an embedding must not
depend on the other clips of its batch, in training neither, and nothing but
gradients and the loss then crosses devices.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import conv2d, dense
from musiclm_jax.layers import transformer as transformer_lib
from musiclm_jax.partitioning import axes

_STEMS = ("conv", "patch")
_MAP_NAMES = ("batch", "frames", None, "conv_out")


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """A bottleneck residual network; the default is ResNet-50.

  Attributes:
    stage_blocks: blocks of each stage; stages after the first halve both
      axes.
    width: channels of the first stage's bottleneck, doubled by every stage.
    expansion: channels of a block's output over those of its bottleneck.
    stem: 'conv' is 7x7 stride 2 and a 3x3 max pool of stride 2 as published;
      'patch' is one product over 4x4 patches, an order of magnitude faster on
      CPU.
    num_groups: groups of every GroupNorm.
  """

  stage_blocks: tuple[int, ...] = (3, 4, 6, 3)
  width: int = 64
  expansion: int = 4
  stem: str = "conv"
  num_groups: int = 32

  def __post_init__(self):
    object.__setattr__(self, "stage_blocks", tuple(self.stage_blocks))
    if not self.stage_blocks or min(self.stage_blocks) < 1:
      raise ValueError(
        f"stage_blocks={self.stage_blocks}: expected positive numbers"
      )
    if self.stem not in _STEMS:
      raise ValueError(f"stem={self.stem!r}: expected one of {_STEMS}")
    for name in ("width", "expansion", "num_groups"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name}={getattr(self, name)}: expected a positive number"
        )
    if self.width % self.num_groups:
      raise ValueError(
        f"width={self.width}: expected a multiple of num_groups="
        f"{self.num_groups}"
      )


@dataclasses.dataclass(frozen=True)
class AstConfig:
  """An Audio Spectrogram Transformer (arXiv 2104.01778).

  Attributes:
    patch_size: frames and mel bands of a patch.
    patch_stride: between patches, on both axes.
    max_frames: longest spectrogram; positions are learned up to there.
    transformer: the stack, not causal.
  """

  patch_size: int = 16
  patch_stride: int = 10
  max_frames: int = 1024
  transformer: transformer_lib.TransformerConfig = (
    transformer_lib.TransformerConfig(
      num_layers=12,
      embed_dim=768,
      num_heads=12,
      mlp_dim=3072,
      positions="none",
      causal=False,
    )
  )

  def __post_init__(self):
    if not 1 <= self.patch_stride <= self.patch_size <= self.max_frames:
      raise ValueError(
        f"patch_stride={self.patch_stride}, patch_size={self.patch_size}, "
        f"max_frames={self.max_frames}: expected 1 <= stride <= size <= frames"
      )
    if self.transformer.causal:
      raise ValueError("transformer.causal=True: expected False")


class _Conv(nn.Module):
  """A convolution without bias over `[batch, frames, bands, channels]`."""

  features: int
  kernel: int
  stride: int
  precision: precision_lib.Precision

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return nn.Conv(
      self.features,
      (self.kernel, self.kernel),
      self.stride,
      use_bias=False,
      dtype=self.precision.compute_dtype,
      param_dtype=self.precision.param_dtype,
      kernel_init=axes.named(
        nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        ("kernel_time", "kernel_freq", "conv_in", "conv_out"),
      ),
      conv_general_dilated=conv2d.general_dilated,
      name="conv",
    )(x)


class _Norm(nn.Module):
  """GroupNorm."""

  num_groups: int
  precision: precision_lib.Precision
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return nn.GroupNorm(
      self.num_groups,
      dtype=self.precision.compute_dtype,
      param_dtype=self.precision.param_dtype,
      scale_init=axes.named(self.scale_init, ("conv_out",)),
      bias_init=axes.named(nn.initializers.zeros, ("conv_out",)),
      name="norm",
    )(x)


class _Bottleneck(nn.Module):
  """1x1, 3x3, 1x1 convolutions beside a shortcut."""

  config: ResNetConfig
  width: int
  stride: int
  precision: precision_lib.Precision

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    precision, groups = self.precision, self.config.num_groups
    outputs = self.width * self.config.expansion

    def conv(name, features, kernel, stride=1):
      return _Conv(features, kernel, stride, precision, name=name)

    hidden = conv("reduce", self.width, 1)(x)
    hidden = nn.relu(_Norm(groups, precision, name="reduce_norm")(hidden))
    hidden = conv("mix", self.width, 3, self.stride)(hidden)
    hidden = nn.relu(_Norm(groups, precision, name="mix_norm")(hidden))
    hidden = conv("expand", outputs, 1)(hidden)
    # A block starts as its shortcut: deep stacks then train from step one.
    hidden = _Norm(
      groups, precision, nn.initializers.zeros, name="expand_norm"
    )(hidden)
    if self.stride != 1 or x.shape[-1] != outputs:
      x = conv("shortcut", outputs, 1, self.stride)(x)
      x = _Norm(groups, precision, name="shortcut_norm")(x)
    return axes.constrain(nn.relu(x + hidden), _MAP_NAMES)


def _patches(x: jax.Array, size: int, stride: int) -> jax.Array:
  """`[batch, frames, bands]` to `[batch, rows, columns, size * size]`."""
  if size == stride:
    batch, frames, bands = x.shape
    x = x.reshape(batch, frames // size, size, bands // size, size)
    return x.transpose(0, 1, 3, 2, 4).reshape(*x.shape[:2], x.shape[3], -1)
  rows = (x.shape[1] - size) // stride + 1
  columns = (x.shape[2] - size) // stride + 1
  at = jnp.arange(size)
  x = x[:, (jnp.arange(rows) * stride)[:, None] + at]
  x = x[..., (jnp.arange(columns) * stride)[:, None] + at]
  return x.transpose(0, 1, 3, 2, 4).reshape(len(x), rows, columns, -1)


def _pad_to_multiple(x: jax.Array, size: int) -> jax.Array:
  frames = -(-x.shape[1] // size) * size - x.shape[1]
  bands = -(-x.shape[2] // size) * size - x.shape[2]
  return jnp.pad(x, ((0, 0), (0, frames), (0, bands)))


class ResNet(nn.Module):
  """Spectrogram as an image, mean over what is left of time and frequency.

  Attributes:
    config: sizes.
    precision: dtypes.
  """

  config: ResNetConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  @nn.compact
  def __call__(
    self, spectrogram: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Embeds spectrograms.

    Args:
      spectrogram: float32 `[batch, frames, bands]`.
      deterministic: not used; the network has no dropout.

    Returns:
      `[batch, channels]`.
    """
    del deterministic
    config = self.config
    if config.stem == "patch":
      x = _patches(_pad_to_multiple(spectrogram, 4), 4, 4)
      x = dense.Dense(
        (config.width,), ("conv_in", "conv_out"), self.precision, name="stem"
      )(x)
    else:
      x = spectrogram[..., None].astype(self.precision.compute_dtype)
      x = _Conv(config.width, 7, 2, self.precision, name="stem")(x)
    x = nn.relu(_Norm(config.num_groups, self.precision, name="stem_norm")(x))
    if config.stem == "conv":
      x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
    for stage, num_blocks in enumerate(config.stage_blocks):
      for index in range(num_blocks):
        x = _Bottleneck(
          config,
          config.width * 2**stage,
          2 if stage and not index else 1,
          self.precision,
          name=f"stage_{stage}_block_{index}",
        )(x)
    return x.astype(jnp.float32).mean((1, 2))


class Ast(nn.Module):
  """Patches of a spectrogram through a Transformer; the [CLS] position.

  Attributes:
    config: sizes.
    precision: dtypes.
  """

  config: AstConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  @nn.compact
  def __call__(
    self, spectrogram: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Embeds spectrograms.

    Args:
      spectrogram: float32 `[batch, frames, bands]`.
      deterministic: no dropout.

    Returns:
      `[batch, embed]`.

    Raises:
      ValueError: if there are more frames than `max_frames`.
    """
    config, precision = self.config, self.precision
    if spectrogram.shape[1] > config.max_frames:
      raise ValueError(
        f"spectrogram has {spectrogram.shape[1]} frames: expected at most "
        f"max_frames={config.max_frames}"
      )
    size, stride = config.patch_size, config.patch_stride
    short = max(0, size - spectrogram.shape[1])
    spectrogram = jnp.pad(spectrogram, ((0, 0), (0, short), (0, 0)))
    x = _patches(spectrogram, size, stride)
    batch, rows, columns, _ = x.shape
    dim = config.transformer.embed_dim
    x = dense.Dense(
      (dim,), ("conv_in", "embed"), precision, use_bias=True, name="stem"
    )(x)

    def table(name, *shape):
      init = axes.named(
        nn.initializers.normal(0.02), (*[None] * (len(shape) - 1), "embed")
      )
      value = self.param(name, init, shape, precision.param_dtype)
      return value.astype(x.dtype)

    # Positions per axis, so that a shorter crop uses the first rows.
    max_rows = (config.max_frames - size) // stride + 1
    x = x + table("time_position", max_rows, dim)[:rows, None]
    x = x + table("band_position", columns, dim)
    first = jnp.broadcast_to(table("cls", 1, dim), (batch, 1, dim))
    x = jnp.concatenate([first, x.reshape(batch, -1, dim)], axis=1)
    x = transformer_lib.TransformerStack(
      config.transformer, precision, name="transformer"
    )(x, None, deterministic)
    return x[:, 0].astype(jnp.float32)
