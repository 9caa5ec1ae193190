# SPDX-License-Identifier: Apache-2.0
"""musicnn's taggers: log-mel patches in, logits of tags out.

For imported weights only (`systems/musicnn_import.py`). Two networks (Pons and
Serra, "musicnn: pre-trained convolutional neural networks for music audio
tagging", arXiv 1909.06654): 'musicnn' has filters as tall as timbres and as
long as rhythms in front of dense convolutions over time; 'vgg' is a stack of
3x3 convolutions. Batch norms are those of inference, a scale and an offset for
each channel.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import dense
from musiclm_jax.partitioning import axes

ARCHITECTURES = ("musicnn", "vgg")
# Frames of the convolutions over time, and of those of timbres.
_KERNEL = 7
# Height of the filters of timbres, as a share of the bands.
_TIMBRAL_SHARES = (0.4, 0.7)
_TEMPORAL_KERNELS = (128, 64, 32)


@dataclasses.dataclass(frozen=True)
class MusicnnConfig:
  """Sizes; the defaults are those of the package's 'musicnn' models.

  Attributes:
    architecture: of `ARCHITECTURES`.
    num_classes: tags.
    num_mels: bands of a patch.
    window_frames: frames of a patch; 'musicnn' takes any number.
    timbral_filters: of each of two convolutions ('musicnn').
    temporal_filters: of each of three convolutions ('musicnn').
    mid_filters: of each of three convolutions over time ('musicnn').
    dense_units: of the layer before the logits ('musicnn').
    vgg_filters: of each convolution ('vgg').
    vgg_pools: behind each of them, frames and bands of a pool, and the strides
      over both ('vgg').
  """

  architecture: str = "musicnn"
  num_classes: int = 50
  num_mels: int = 96
  window_frames: int = 187
  timbral_filters: int = 204
  temporal_filters: int = 51
  mid_filters: int = 64
  dense_units: int = 200
  vgg_filters: int = 128
  vgg_pools: tuple[tuple[int, ...], ...] = (
    (4, 1, 2, 2),
    (2, 2, 2, 2),
    (2, 2, 2, 2),
    (2, 2, 2, 2),
    (4, 4, 4, 4),
  )

  def __post_init__(self):
    if self.architecture not in ARCHITECTURES:
      raise ValueError(
        f"architecture={self.architecture!r}: expected one of {ARCHITECTURES}"
      )
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and value < 1:
        raise ValueError(f"{field.name}={value}: expected a positive number")
    pools = tuple(tuple(pool) for pool in self.vgg_pools)
    object.__setattr__(self, "vgg_pools", pools)
    if any(len(pool) != 4 or min(pool) < 1 for pool in pools):
      raise ValueError(
        f"vgg_pools={pools}: expected four positive numbers for each"
      )
    if self.architecture == "vgg" and min(self.vgg_map) < 1:
      raise ValueError(
        f"window_frames={self.window_frames}, num_mels={self.num_mels}: "
        "expected patches that the pools leave something of"
      )

  @property
  def timbral_heights(self) -> tuple[int, ...]:
    """Bands under each filter of timbres."""
    return tuple(int(share * self.num_mels) for share in _TIMBRAL_SHARES)

  @property
  def front_dim(self) -> int:
    """Channels of all filters of the front end."""
    return (
      len(_TIMBRAL_SHARES) * self.timbral_filters
      + len(_TEMPORAL_KERNELS) * self.temporal_filters
    )

  @property
  def pooled_dim(self) -> int:
    """Width of what is pooled over time: maximum and mean of each channel."""
    return 2 * (self.front_dim + 3 * self.mid_filters)

  @property
  def vgg_map(self) -> tuple[int, int]:
    """Frames and bands that the pools of 'vgg' leave."""
    size = [self.window_frames, self.num_mels]
    for pool in self.vgg_pools:
      size = [(n - w) // s + 1 for n, w, s in zip(size, pool[:2], pool[2:])]
    return size[0], size[1]

  @property
  def embedding_dim(self) -> int:
    """Width of what the logits are computed from."""
    if self.architecture == "musicnn":
      return self.dense_units
    return self.vgg_map[0] * self.vgg_map[1] * self.vgg_filters


class _Affine(nn.Module):
  """A batch norm at inference: `x * scale + bias` for each channel."""

  precision: precision_lib.Precision

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale, bias = (
      self.param(
        name,
        axes.named(init, ("conv_out",)),
        (x.shape[-1],),
        self.precision.param_dtype,
      ).astype(x.dtype)
      for name, init in (
        ("scale", nn.initializers.ones),
        ("bias", nn.initializers.zeros),
      )
    )
    return x * scale + bias


class Musicnn(nn.Module):
  """The network of `config.architecture`.

  Attributes:
    config: sizes.
    precision: dtypes.
  """

  config: MusicnnConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  def _conv(self, x, features, kernel, padding, name):
    """Convolution, ReLU, batch norm."""
    names = ("kernel_time", "kernel_freq")[: len(kernel)]
    x = nn.Conv(
      features,
      kernel,
      padding=padding,
      dtype=self.precision.compute_dtype,
      param_dtype=self.precision.param_dtype,
      kernel_init=axes.named(
        nn.initializers.he_normal(), (*names, "conv_in", "conv_out")
      ),
      bias_init=axes.named(nn.initializers.zeros, ("conv_out",)),
      name=name,
    )(x)
    return _Affine(self.precision, name=f"{name}_norm")(nn.relu(x))

  def _dense(self, features, name):
    return dense.Dense(
      (features,), ("embed", "mlp"), self.precision, use_bias=True, name=name
    )

  def _front(self, x: jax.Array) -> jax.Array:
    """`[batch, frames, bands, 1]` to `[batch, frames, front_dim]`."""
    config, half = self.config, _KERNEL // 2
    parts = []
    for index, height in enumerate(config.timbral_heights):
      found = self._conv(
        x,
        config.timbral_filters,
        (_KERNEL, height),
        ((half, half), (0, 0)),
        f"timbral_{index}",
      )
      parts.append(found.max(2))
    for index, length in enumerate(_TEMPORAL_KERNELS):
      found = self._conv(
        x, config.temporal_filters, (length, 1), "SAME", f"temporal_{index}"
      )
      parts.append(found.max(2))
    return jnp.concatenate(parts, -1)

  def _musicnn(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    config = self.config
    parts = [self._front(x)]
    x = None
    for index in range(3):
      found = self._conv(
        parts[-1],
        config.mid_filters,
        (_KERNEL,),
        ((_KERNEL // 2, _KERNEL // 2),),
        f"mid_{index}",
      )
      x = found if x is None else x + found
      parts.append(x)
    x = jnp.concatenate(parts, -1)
    # Maximum and mean of a channel stand side by side, as in the original.
    x = jnp.stack([x.max(1), x.mean(1)], -1).reshape(len(x), -1)
    x = _Affine(self.precision, name="pooled_norm")(x)
    x = nn.relu(self._dense(config.dense_units, "hidden")(x))
    x = _Affine(self.precision, name="hidden_norm")(x)
    return self._dense(config.num_classes, "logits")(x), x

  def _vgg(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    config = self.config
    for index, pool in enumerate(config.vgg_pools):
      x = self._conv(x, config.vgg_filters, (3, 3), "SAME", f"conv_{index}")
      x = nn.max_pool(x, pool[:2], pool[2:])
    x = x.reshape(len(x), -1)
    return self._dense(config.num_classes, "logits")(x), x

  @nn.compact
  def __call__(self, log_mel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tags patches.

    Args:
      log_mel: float32 `[batch, frames, mels]`, `log10(10000 * power + 1)`.

    Returns:
      Logits, float32 `[batch, classes]`, and what they are computed from,
      float32 `[batch, embedding_dim]`.

    Raises:
      ValueError: if a patch has another size than the config says.
    """
    config = self.config
    expected = (config.window_frames, config.num_mels)
    if log_mel.shape[1:] != expected:
      raise ValueError(
        f"log_mel has shape {log_mel.shape}: expected [batch, {expected[0]}, "
        f"{expected[1]}]"
      )
    x = log_mel[..., None].astype(self.precision.compute_dtype)
    x = _Affine(self.precision, name="input_norm")(x)
    run = self._vgg if config.architecture == "vgg" else self._musicnn
    logits, embedding = run(x)
    return logits.astype(jnp.float32), embedding.astype(jnp.float32)
