# SPDX-License-Identifier: Apache-2.0
"""wav2vec 2.0, HuBERT and MERT: waveforms in, frames of one block out.

For imported weights only (`systems/encoder_import.py`): strided convolutions
over samples, a convolution that stands for positions, Transformer blocks
(wav2vec 2.0, arXiv 2006.11477 sec. 2; HuBERT, arXiv 2106.07447; MERT, arXiv
2306.00107). Used as w2v-BERT is: `features` has the same arguments.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import dense, encoder_block, norm
from musiclm_jax.partitioning import axes

CONV_NORMS = ("group", "layer")
_FIELDS_OF_ONE_LENGTH = ("conv_channels", "conv_kernels", "conv_strides")


@dataclasses.dataclass(frozen=True)
class SpeechEncoderConfig:
  """Sizes; the defaults are HuBERT base (95 M parameters).

  Attributes:
    sample_rate_hz: of the waveforms.
    conv_channels: of the convolutions over samples.
    conv_kernels: their kernels.
    conv_strides: their strides.
    conv_bias: whether they have biases.
    conv_norm: 'group' normalises each channel over time behind the first of
      them; 'layer' each frame behind each of them.
    projection_norm: LayerNorm before the projection to `embed_dim`.
    embed_dim: width of a block.
    num_layers: blocks.
    num_heads: attention heads.
    mlp_dim: hidden width of the feed-forward module.
    position_kernel: frames seen by the convolution for positions.
    position_groups: of that convolution.
    pre_norm: LayerNorm before the modules of a block, and one at the end
      ('stable layer norm'); else behind them, and one at the start.
    norm_eps: of all norms but that of 'group'.
    normalize_waveform: zero mean and unit variance of each clip.
    tap_layer: block from 1 that `features` returns; 0 is the blocks' input.
    pool_frames: frames averaged to one: 2 makes 25 Hz of 50 Hz.
  """

  sample_rate_hz: int = 16000
  conv_channels: tuple[int, ...] = (512,) * 7
  conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
  conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
  conv_bias: bool = False
  conv_norm: str = "group"
  projection_norm: bool = True
  embed_dim: int = 768
  num_layers: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  position_kernel: int = 128
  position_groups: int = 16
  pre_norm: bool = False
  norm_eps: float = 1e-5
  normalize_waveform: bool = True
  tap_layer: int = 7
  pool_frames: int = 1

  def __post_init__(self):
    for name in _FIELDS_OF_ONE_LENGTH:
      values = tuple(getattr(self, name))
      object.__setattr__(self, name, values)
      if len(values) != len(self.conv_kernels) or min(values, default=0) < 1:
        raise ValueError(
          f"{name}={values}: expected {len(self.conv_kernels)} positive numbers"
        )
    for name in ("num_layers", "num_heads", "pool_frames", "position_kernel"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name}={getattr(self, name)}: expected a positive number"
        )
    for name in ("num_heads", "position_groups"):
      if self.embed_dim % getattr(self, name):
        raise ValueError(
          f"{name}={getattr(self, name)}: expected a divisor of "
          f"embed_dim={self.embed_dim}"
        )
    if self.conv_norm not in CONV_NORMS:
      raise ValueError(
        f"conv_norm={self.conv_norm!r}: expected one of {CONV_NORMS}"
      )
    if not 0 <= self.tap_layer <= self.num_layers:
      raise ValueError(
        f"tap_layer={self.tap_layer}: expected 0 to {self.num_layers}, the "
        "number of blocks"
      )

  @property
  def hop_length(self) -> int:
    """Samples between two frames of the network."""
    return math.prod(self.conv_strides)

  @property
  def reach(self) -> int:
    """Samples under one frame of the network."""
    reach = 1
    for kernel, stride in zip(self.conv_kernels[::-1], self.conv_strides[::-1]):
      reach = (reach - 1) * stride + kernel
    return reach

  @property
  def samples_per_frame(self) -> int:
    """Samples of one frame of `features`."""
    return self.hop_length * self.pool_frames

  @property
  def frame_rate_hz(self) -> float:
    return self.sample_rate_hz / self.samples_per_frame

  @property
  def feature_dim(self) -> int:
    """Width of what `features` returns."""
    return self.embed_dim

  def num_frames(self, num_samples: jax.Array | int, depth: int = 0):
    """Frames behind `depth` convolutions (0: all) without any padding."""
    for kernel, stride in list(zip(self.conv_kernels, self.conv_strides))[
      : depth or None
    ]:
      num_samples = (num_samples - kernel) // stride + 1
    return num_samples


class _SampleConvolutions(nn.Module):
  """Samples `[batch, samples]` to frames `[batch, frames, channels]`."""

  config: SpeechEncoderConfig
  precision: precision_lib.Precision

  def _over_time(self, x: jax.Array, num_valid: jax.Array) -> jax.Array:
    """Zero mean and unit variance of each channel over the valid frames."""
    shape, dtype = (x.shape[-1],), self.precision.param_dtype
    scale, bias = (
      self.param(name, axes.named(init, ("conv_out",)), shape, dtype)
      for name, init in (
        ("group_scale", nn.initializers.ones),
        ("group_bias", nn.initializers.zeros),
      )
    )
    valid = (jnp.arange(x.shape[1]) < num_valid[:, None])[..., None]
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, 1, keepdims=True, where=valid)
    variance = jnp.mean((x - mean) ** 2, 1, keepdims=True, where=valid)
    x = (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias
    return x.astype(self.precision.compute_dtype)

  @nn.compact
  def __call__(self, waveform: jax.Array, num_samples: jax.Array) -> jax.Array:
    config, precision = self.config, self.precision
    x = waveform[..., None].astype(precision.compute_dtype)
    for index, (channels, kernel, stride) in enumerate(
      zip(config.conv_channels, config.conv_kernels, config.conv_strides)
    ):
      x = nn.Conv(
        channels,
        (kernel,),
        stride,
        padding="VALID",
        use_bias=config.conv_bias,
        dtype=precision.compute_dtype,
        param_dtype=precision.param_dtype,
        kernel_init=axes.named(
          nn.initializers.he_normal(), ("kernel_time", "conv_in", "conv_out")
        ),
        bias_init=axes.named(nn.initializers.zeros, ("conv_out",)),
        name=f"conv_{index}",
      )(x)
      if config.conv_norm == "layer":
        # torch's LayerNorm there has its own default epsilon.
        x = norm.layer_norm(precision, 1e-5, "conv_out", f"norm_{index}")(x)
      elif index == 0:
        x = self._over_time(x, config.num_frames(num_samples, 1))
      x = nn.gelu(x, approximate=False)
    return x


class SpeechEncoder(nn.Module):
  """The network up to the tapped block; nothing above it has parameters.

  Attributes:
    config: sizes.
    precision: dtypes.
  """

  config: SpeechEncoderConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  @nn.compact
  def hidden_states(
    self, waveform: jax.Array, num_samples: jax.Array
  ) -> jax.Array:
    """Output of the tapped block, as the original network gives it.

    Args:
      waveform: float32 `[batch, samples]`, normalised if it must be, 0 behind
        `num_samples`.
      num_samples: int32 `[batch]`, samples that count.

    Returns:
      float32 `[batch, frames, embed]`, `config.num_frames(samples)` frames,
      without any padding.
    """
    config, precision = self.config, self.precision
    x = _SampleConvolutions(config, precision, name="samples")(
      waveform, num_samples
    )
    if config.projection_norm:
      x = norm.layer_norm(
        precision, config.norm_eps, "conv_out", "projection_norm"
      )(x)
    x = dense.Dense(
      (config.embed_dim,),
      ("conv_out", "embed"),
      precision,
      use_bias=True,
      name="projection",
    )(x)
    valid = jnp.arange(x.shape[1]) < config.num_frames(num_samples)[:, None]
    x = jnp.where(valid[..., None], x, 0)
    kernel = config.position_kernel
    placed = nn.Conv(
      config.embed_dim,
      (kernel,),
      # With an even kernel the last frame is left out.
      padding=((kernel // 2, (kernel - 1) // 2),),
      feature_group_count=config.position_groups,
      dtype=precision.compute_dtype,
      param_dtype=precision.param_dtype,
      kernel_init=axes.named(
        nn.initializers.he_normal(), ("kernel_time", "conv_in", "embed")
      ),
      bias_init=axes.named(nn.initializers.zeros, ("embed",)),
      name="position",
    )(x)
    x = x + nn.gelu(placed, approximate=False)
    if not config.pre_norm:
      x = norm.layer_norm(precision, config.norm_eps, "embed", "norm")(x)
    for index in range(config.tap_layer):
      x = encoder_block.EncoderBlock(
        config.num_heads,
        config.mlp_dim,
        precision,
        config.norm_eps,
        config.pre_norm,
        name=f"block_{index}",
      )(x, valid)
    if config.pre_norm and config.tap_layer == config.num_layers:
      x = norm.layer_norm(precision, config.norm_eps, "embed", "norm")(x)
    return x.astype(jnp.float32)

  def features(
    self, waveform: jax.Array, mask: jax.Array | None = None
  ) -> jax.Array:
    """Output of the tapped block on a whole number of frames.

    The waveform gets zeros at both ends, so that there are as many frames as
    hops, each centred over its hop.

    Args:
      waveform: float32 `[batch, samples]` in [-1, 1].
      mask: bool `[batch, samples // samples_per_frame]`, True on frames that
        count: the first ones of each row.

    Returns:
      float32 `[batch, samples // samples_per_frame, embed]`.
    """
    config, per_frame = self.config, self.config.samples_per_frame
    num_frames = waveform.shape[1] // per_frame
    waveform = waveform[:, : num_frames * per_frame]
    if mask is None:
      mask = jnp.ones((len(waveform), num_frames), bool)
    kept = jnp.repeat(mask, per_frame, axis=1)
    if config.normalize_waveform:
      mean = jnp.mean(waveform, 1, keepdims=True, where=kept)
      variance = jnp.mean((waveform - mean) ** 2, 1, keepdims=True, where=kept)
      waveform = (waveform - mean) * jax.lax.rsqrt(variance + 1e-7)
    waveform = jnp.where(kept, waveform, 0.0)
    more = config.reach - config.hop_length
    x = jnp.pad(waveform, ((0, 0), (more // 2, more - more // 2)))
    x = self.hidden_states(x, mask.sum(1) * per_frame + more)
    return x.reshape(len(x), num_frames, config.pool_frames, -1).mean(2)
