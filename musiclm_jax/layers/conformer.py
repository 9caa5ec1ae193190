# SPDX-License-Identifier: Apache-2.0
"""Conformer blocks: frames `[batch, frames, embed]` in and out.

Half-step feed-forward, self-attention, convolution, half-step feed-forward,
norm (Conformer, arXiv 2005.08100 sec. 2). Two choices differ from that paper:
positions are rotary (relative, no parameters, no `[frames, frames]` bias to
keep), and the convolution is normalised by LayerNorm, not BatchNorm, so that
rows of a batch stay independent and no statistics cross devices. A third is an
option: to leave the norm behind every block out.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import dense, positions
from musiclm_jax.partitioning import axes

_ACTIVATION_NAMES = ("batch", "length", "embed")


@dataclasses.dataclass(frozen=True)
class ConformerConfig:
  """Size of a Conformer stack.

  Attributes:
    num_layers: blocks.
    embed_dim: width of a frame.
    num_heads: attention heads; `embed_dim / num_heads` must be even.
    mlp_dim: hidden width of the feed-forward modules.
    conv_kernel: frames the depthwise convolution sees; odd.
    dropout_rate: after every module.
    branch_init_scale: variance times fan-in of the kernel a module ends with,
      when it is drawn. Uniform attention gives all frames their mean, which a
      norm behind every block brings forward: with 1 the outputs of an
      untrained stack of 8 blocks differ in 2 % of their mean square over the
      frames of a clip, and of 24 in nothing.
    block_norm: LayerNorm behind every block, as published. Without it the
      blocks add to one residual stream, which a short training, or one of a
      deep stack, does not lose its input from.
    scan_layers: one compiled block run over stacked parameters.
    remat: recompute a block's activations in the backward pass.
  """

  num_layers: int = 12
  embed_dim: int = 1024
  num_heads: int = 8
  mlp_dim: int = 4096
  conv_kernel: int = 5
  dropout_rate: float = 0.1
  branch_init_scale: float = 1.0
  block_norm: bool = True
  scan_layers: bool = False
  remat: bool = False

  def __post_init__(self):
    for name in ("num_layers", "embed_dim", "num_heads", "mlp_dim"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name}={getattr(self, name)}: expected a positive number"
        )
    if self.embed_dim % (2 * self.num_heads):
      raise ValueError(
        f"embed_dim={self.embed_dim}: expected a multiple of "
        f"2 * num_heads={2 * self.num_heads}"
      )
    if self.conv_kernel < 1 or self.conv_kernel % 2 == 0:
      raise ValueError(
        f"conv_kernel={self.conv_kernel}: expected an odd positive number"
      )
    if not self.branch_init_scale > 0:
      raise ValueError(
        f"branch_init_scale={self.branch_init_scale}: expected > 0"
      )
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(
        f"dropout_rate={self.dropout_rate}: expected a rate in [0, 1)"
      )


class _Block(nn.Module):
  """One Conformer block."""

  config: ConformerConfig
  precision: precision_lib.Precision
  deterministic: bool

  def _dense(
    self,
    features: int,
    name: str,
    names: tuple[str, str],
    init_scale: float = 1.0,
  ) -> dense.Dense:
    return dense.Dense(
      (features,),
      names,
      self.precision,
      use_bias=True,
      init_scale=init_scale,
      name=name,
    )

  def _last(self, name: str) -> dense.Dense:
    """What a module ends with."""
    config = self.config
    names = ("mlp", "embed")
    return self._dense(config.embed_dim, name, names, config.branch_init_scale)

  def _drop(self, x: jax.Array) -> jax.Array:
    rate = self.config.dropout_rate
    return nn.Dropout(rate, deterministic=self.deterministic)(x)

  def _layer_norm(self, name: str, x: jax.Array) -> jax.Array:
    return nn.LayerNorm(
      dtype=self.precision.compute_dtype,
      param_dtype=self.precision.param_dtype,
      scale_init=axes.named(nn.initializers.ones, ("embed",)),
      bias_init=axes.named(nn.initializers.zeros, ("embed",)),
      name=name,
    )(x)

  def _mlp(self, x: jax.Array, prefix: str) -> jax.Array:
    x = self._layer_norm(f"{prefix}_norm", x)
    up = self._dense(self.config.mlp_dim, f"{prefix}_up", ("embed", "mlp"))
    x = self._drop(nn.swish(up(x)))
    return self._drop(self._last(f"{prefix}_down")(x))

  def _attention(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    config, dtype = self.config, self.precision.compute_dtype
    heads, kv = config.num_heads, config.embed_dim // config.num_heads
    x = self._layer_norm("attention_norm", x)
    frames = jnp.arange(x.shape[1])

    def project(name):
      return dense.Dense(
        (heads, kv), ("embed", "heads", "kv"), self.precision, name=name
      )(x)

    query = positions.rotate(project("attention_query"), frames)
    keys = positions.rotate(project("attention_key"), frames)
    scores = jnp.einsum("bqhk,bthk->bhqt", query, keys)
    scores = scores.astype(jnp.float32) * kv**-0.5
    scores = jnp.where(mask[:, None, None, :], scores, -1e9)
    weights = self._drop(jax.nn.softmax(scores).astype(dtype))
    out = jnp.einsum("bhqt,bthk->bqhk", weights, project("attention_value"))
    merge = dense.Dense(
      (config.embed_dim,),
      ("heads", "kv", "embed"),
      self.precision,
      num_in_axes=2,
      init_scale=config.branch_init_scale,
      name="attention_out",
    )
    return self._drop(merge(out))

  def _convolution(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    config, dtype = self.config, self.precision.compute_dtype
    x = self._layer_norm("conv_norm_in", x)
    x = self._dense(2 * config.embed_dim, "conv_gate", ("embed", "mlp"))(x)
    x = nn.glu(x) * mask[..., None].astype(dtype)
    kernel = self.param(
      "conv_kernel",
      axes.named(
        nn.initializers.normal(config.conv_kernel**-0.5),
        ("kernel_time", "embed"),
      ),
      (config.conv_kernel, config.embed_dim),
      self.precision.param_dtype,
    ).astype(dtype)
    # A few shifted products: on CPU and TPU faster than a grouped
    # convolution with one channel per group.
    reach = config.conv_kernel // 2
    padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
    frames = x.shape[1]
    x = sum(
      padded[:, shift : shift + frames] * kernel[shift]
      for shift in range(config.conv_kernel)
    )
    x = nn.swish(self._layer_norm("conv_norm", x))
    return self._drop(self._last("conv_out")(x))

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    x = axes.constrain(x, _ACTIVATION_NAMES)
    x = x + 0.5 * self._mlp(x, "mlp_in")
    x = x + self._attention(x, mask)
    x = x + self._convolution(x, mask)
    x = x + 0.5 * self._mlp(x, "mlp_out")
    if self.config.block_norm:
      x = self._layer_norm("norm_out", x)
    x = axes.constrain(x, _ACTIVATION_NAMES)
    return x, x


class ConformerStack(nn.Module):
  """`num_layers` Conformer blocks.

  Attributes:
    config: sizes.
    precision: dtypes.
  """

  config: ConformerConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    mask: jax.Array | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, jax.Array]:
    """Runs the blocks.

    Args:
      x: `[batch, frames, embed]`.
      mask: bool `[batch, frames]`, True on frames that count. What stands in
        other frames, even NaN, has no influence on these.
      deterministic: no dropout; else the 'dropout' rng is needed.

    Returns:
      The last block's output `[batch, frames, embed]`, and every block's
      output `[layers, batch, frames, embed]`.
    """
    config = self.config
    if mask is None:
      mask = jnp.ones(x.shape[:2], bool)
    x = jnp.where(mask[..., None], x, 0).astype(self.precision.compute_dtype)
    block = _Block
    if config.remat:
      block = nn.remat(block, prevent_cse=not config.scan_layers)
    if config.scan_layers:
      scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=config.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )
      return scanned(config, self.precision, deterministic, name="blocks")(
        x, mask
      )
    outputs = []
    for index in range(config.num_layers):
      layer = block(
        config, self.precision, deterministic, name=f"block_{index}"
      )
      x, output = layer(x, mask)
      outputs.append(output)
    return x, jnp.stack(outputs)
