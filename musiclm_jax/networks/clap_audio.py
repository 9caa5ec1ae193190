# SPDX-License-Identifier: Apache-2.0
"""CLAP's audio tower (HTSAT): log-mel spectrograms in, vectors out.

For imported weights only (`systems/clap_import.py`). A spectrogram is folded
into a square picture: its quarters in time lie one above the other. A Swin
Transformer reads it: attention within windows, every other block with windows
moved by half, two by two patches joined between stages (HTS-AT, arXiv
2202.00874; Swin, arXiv 2103.14030; CLAP, arXiv 2211.06687). Without feature
fusion.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import dense, encoder_block, norm
from musiclm_jax.partitioning import axes

# Keys' cubic convolution as torch has it.
_CUBIC = -0.75
# Added to scores between patches that are no neighbours, as in the original.
_APART = -100.0
# The norms between stages have torch's default.
_NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class ClapAudioConfig:
  """Sizes; the defaults are those of HTSAT-tiny.

  Attributes:
    spec_size: rows and columns of the picture.
    num_mels: bands of a spectrogram.
    patch_size: rows and columns of a patch.
    window_size: patches along a side of a window.
    width: of a patch's vector in the first stage; doubled by every other.
    depths: blocks of each stage.
    num_heads: of attention, by stage.
    mlp_ratio: hidden width of a feed-forward module over that of a block.
    activation: of `encoder_block.ACTIVATIONS`.
    norm_eps: of the norms in blocks.
    qkv_bias: whether queries, keys and values have biases.
    output_dim: width of the joint space.
  """

  spec_size: int = 256
  num_mels: int = 64
  patch_size: int = 4
  window_size: int = 8
  width: int = 96
  depths: tuple[int, ...] = (2, 2, 6, 2)
  num_heads: tuple[int, ...] = (4, 8, 16, 32)
  mlp_ratio: float = 4.0
  activation: str = "gelu"
  norm_eps: float = 1e-5
  qkv_bias: bool = True
  output_dim: int = 512

  def __post_init__(self):
    for name in ("depths", "num_heads"):
      values = tuple(getattr(self, name))
      object.__setattr__(self, name, values)
      if len(values) != len(self.depths) or min(values, default=0) < 1:
        raise ValueError(
          f"{name}={values}: expected a positive number for each of "
          f"{len(self.depths)} stages"
        )
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and value < 1:
        raise ValueError(f"{field.name}={value}: expected a positive number")
    if self.spec_size % self.num_mels:
      raise ValueError(
        f"num_mels={self.num_mels}: expected a divisor of spec_size="
        f"{self.spec_size}"
      )
    smallest = self.patch_size * self.window_size << (len(self.depths) - 1)
    if self.spec_size % smallest:
      raise ValueError(
        f"spec_size={self.spec_size}: expected a multiple of {smallest}, so "
        "that every stage has whole windows"
      )
    for stage, heads in enumerate(self.num_heads):
      if (self.width << stage) % heads:
        raise ValueError(
          f"num_heads={self.num_heads}: expected divisors of the widths "
          f"{[self.width << index for index in range(len(self.depths))]}"
        )
    if self.activation not in encoder_block.ACTIVATIONS:
      raise ValueError(
        f"activation={self.activation!r}: expected one of "
        f"{tuple(encoder_block.ACTIVATIONS)}"
      )

  @property
  def folds(self) -> int:
    """Parts in time that lie one above the other in the picture."""
    return self.spec_size // self.num_mels

  @property
  def max_frames(self) -> int:
    """Frames of the longest spectrogram; shorter ones are stretched to it."""
    return self.spec_size * self.folds

  @property
  def grid_size(self) -> int:
    """Patches along a side of the picture."""
    return self.spec_size // self.patch_size

  @property
  def feature_dim(self) -> int:
    """Width of a patch's vector in the last stage."""
    return self.width << (len(self.depths) - 1)


@functools.cache
def stretch_weights(num_in: int, num_out: int) -> np.ndarray:
  """Cubic interpolation as a matrix, float32 `[num_out, num_in]`.

  First and last rows are the first and last inputs ('align corners'); beyond
  the ends the last input is repeated.
  """
  at = np.arange(num_out) * (num_in - 1) / max(num_out - 1, 1)
  start = np.floor(at).astype(int)
  weights = np.zeros((num_out, num_in))
  for tap in range(-1, 3):
    away = np.abs(at - (start + tap))
    near = ((_CUBIC + 2) * away - (_CUBIC + 3)) * away**2 + 1
    far = _CUBIC * (((away - 5) * away + 8) * away - 4)
    value = np.where(away <= 1, near, np.where(away < 2, far, 0.0))
    column = np.clip(start + tap, 0, num_in - 1)
    np.add.at(weights, (np.arange(num_out), column), value)
  return weights.astype(np.float32)


@functools.cache
def _pair_index(size: int) -> np.ndarray:
  """Row of the table of positions by pair of patches, `[size^2, size^2]`."""
  at = np.stack(np.meshgrid(*[np.arange(size)] * 2, indexing="ij"))
  at = at.reshape(2, -1)
  apart = at[:, :, None] - at[:, None] + size - 1
  return apart[0] * (2 * size - 1) + apart[1]


@functools.cache
def _shift_bias(grid: int, size: int, shift: int) -> np.ndarray:
  """What keeps apart what only moving the picture made neighbours.

  Returns:
    float32 `[windows, size^2, size^2]`.
  """
  index = np.arange(grid)
  region = (index >= grid - size).astype(int) + (index >= grid - shift)
  regions = region[:, None] * 3 + region
  regions = _cut(regions[None, ..., None], size)[..., 0]
  apart = regions[:, None] != regions[:, :, None]
  return np.where(apart, _APART, 0.0).astype(np.float32)


def _cut(x, size: int):
  """`[batch, rows, columns, width]` to `[batch * windows, size^2, width]`."""
  batch, rows, columns, width = x.shape
  x = x.reshape(batch, rows // size, size, columns // size, size, width)
  return x.swapaxes(2, 3).reshape(-1, size * size, width)


def _join(x: jax.Array, size: int, grid: int) -> jax.Array:
  """The inverse of `_cut`."""
  windows, width = grid // size, x.shape[-1]
  x = x.reshape(-1, windows, windows, size, size, width)
  return x.swapaxes(2, 3).reshape(-1, grid, grid, width)


class _Block(nn.Module):
  """A Swin block over `[batch, grid, grid, width]`."""

  config: ClapAudioConfig
  num_heads: int
  shift: int
  precision: precision_lib.Precision

  def _dense(self, features, name, use_bias=True):
    return dense.Dense(
      (features,),
      ("embed", "mlp"),
      self.precision,
      use_bias=use_bias,
      name=name,
    )

  def _attention(self, x: jax.Array, bias: jax.Array) -> jax.Array:
    """Attention within windows, `[windows, patches, width]`."""
    width = x.shape[-1]
    query, key, value = (
      self._dense(width, name, self.config.qkv_bias)(x)
      .reshape(*x.shape[:2], self.num_heads, -1)
      .swapaxes(1, 2)
      for name in ("query", "key", "value")
    )
    scores = jnp.einsum("whqd,whkd->whqk", query, key)
    scores = scores.astype(jnp.float32) / np.sqrt(width // self.num_heads)
    scores = (scores.reshape(-1, *bias.shape) + bias).reshape(scores.shape)
    found = jnp.einsum(
      "whqk,whkd->whqd", nn.softmax(scores).astype(x.dtype), value
    )
    return self._dense(width, "out")(found.swapaxes(1, 2).reshape(x.shape))

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config, size = self.config, self.config.window_size
    grid, width = x.shape[1], x.shape[3]
    table = self.param(
      "positions",
      axes.named(nn.initializers.zeros, (None, "heads")),
      ((2 * size - 1) ** 2, self.num_heads),
      self.precision.param_dtype,
    )
    bias = table[_pair_index(size)].transpose(2, 0, 1).astype(jnp.float32)[None]
    # Where a window is the whole picture there is nothing to move.
    shift = self.shift if grid > size else 0
    if shift:
      bias = bias + _shift_bias(grid, size, shift)[:, None]
    norms = functools.partial(
      norm.layer_norm, self.precision, config.norm_eps, "embed"
    )
    y = jnp.roll(norms("attention_norm")(x), (-shift, -shift), (1, 2))
    y = _join(self._attention(_cut(y, size), bias), size, grid)
    x = x + jnp.roll(y, (shift, shift), (1, 2))
    y = self._dense(int(config.mlp_ratio * width), "mlp_up")(
      norms("mlp_norm")(x)
    )
    activate = encoder_block.ACTIVATIONS[config.activation]
    return x + self._dense(width, "mlp_down")(activate(y))


class ClapAudio(nn.Module):
  """The tower with its projection.

  Attributes:
    config: sizes.
    precision: dtypes.
  """

  config: ClapAudioConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  def _picture(self, log_mel: jax.Array) -> jax.Array:
    """`[batch, frames, mels]` to `[batch, spec_size, spec_size, 1]`."""
    config = self.config
    scale, bias = (
      self.param(
        f"input_norm_{name}",
        axes.named(init, (None,)),
        (config.num_mels,),
        self.precision.param_dtype,
      )
      for name, init in (
        ("scale", nn.initializers.ones),
        ("bias", nn.initializers.zeros),
      )
    )
    x = log_mel.astype(jnp.float32) * scale + bias
    if x.shape[1] < config.max_frames:
      weights = stretch_weights(x.shape[1], config.max_frames)
      x = jnp.einsum("oi,bim->bom", weights, x, precision="highest")
    x = x.reshape(len(x), config.folds, -1, config.num_mels).swapaxes(2, 3)
    x = x.reshape(len(x), config.spec_size, config.spec_size, 1)
    return x.astype(self.precision.compute_dtype)

  def _join_patches(self, x: jax.Array, name: str) -> jax.Array:
    """Half the rows and columns, twice the width."""
    parts = [x[:, row::2, column::2] for column in range(2) for row in range(2)]
    x = norm.layer_norm(self.precision, _NORM_EPS, "embed", f"{name}_norm")(
      jnp.concatenate(parts, -1)
    )
    return dense.Dense(
      (x.shape[-1] // 2,), ("embed", "mlp"), self.precision, name=name
    )(x)

  @nn.compact
  def __call__(self, log_mel: jax.Array) -> jax.Array:
    """Embeds spectrograms.

    Args:
      log_mel: float32 `[batch, frames, num_mels]` in dB, `max_frames` at most.

    Returns:
      float32 `[batch, output_dim]` of unit length.

    Raises:
      ValueError: if a spectrogram has another size.
    """
    config, precision = self.config, self.precision
    _, frames, mels = log_mel.shape
    if mels != config.num_mels or not 1 < frames <= config.max_frames:
      raise ValueError(
        f"log_mel has shape {log_mel.shape}: expected [batch, 2 to "
        f"{config.max_frames}, {config.num_mels}]"
      )
    x = nn.Conv(
      config.width,
      (config.patch_size, config.patch_size),
      config.patch_size,
      padding="VALID",
      dtype=precision.compute_dtype,
      param_dtype=precision.param_dtype,
      kernel_init=axes.named(
        nn.initializers.he_normal(),
        ("kernel_freq", "kernel_time", "conv_in", "conv_out"),
      ),
      bias_init=axes.named(nn.initializers.zeros, ("conv_out",)),
      name="patch",
    )(self._picture(log_mel))
    x = norm.layer_norm(precision, _NORM_EPS, "embed", "patch_norm")(x)
    for stage, depth in enumerate(config.depths):
      if stage:
        x = self._join_patches(x, f"join_{stage}")
      for index in range(depth):
        x = _Block(
          config,
          config.num_heads[stage],
          index % 2 * (config.window_size // 2),
          precision,
          name=f"stage_{stage}_block_{index}",
        )(x)
    x = norm.layer_norm(precision, _NORM_EPS, "embed", "norm")(x)
    return project(x.mean((1, 2)), config.output_dim, precision)


def project(
  x: jax.Array, output_dim: int, precision: precision_lib.Precision
) -> jax.Array:
  """Two products into the joint space, of unit length; inside a module.

  Args:
    x: `[batch, width]`.
    output_dim: of the joint space.
    precision: dtypes.

  Returns:
    float32 `[batch, output_dim]`.
  """
  for name in ("project_in", "project_out"):
    x = dense.Dense(
      (output_dim,), ("embed", "code_dim"), precision, use_bias=True, name=name
    )(x)
    if name == "project_in":
      x = nn.relu(x)
  x = x.astype(jnp.float32)
  length = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return x / jnp.maximum(length, 1e-12)
