# SPDX-License-Identifier: Apache-2.0
"""A stack of pre-norm Transformer layers: activations in, activations out.

Used causal (language models, with a cache) and bidirectional (text towers).
Layers are scanned (parameters stacked on a leading 'layers' axis, fast to
compile) or unrolled (one cache per layer, fast to decode); `unstack_layers`
turns parameters of the first form into those of the second.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import (
  attention,
  blocked_attention,
  dense,
  gelu,
  norm,
  positions,
)
from musiclm_jax.partitioning import axes

_POSITIONS = ("t5", "rotary", "none")
_ATTENTION = ("plain", "blocked", "pallas")
# What the backward pass keeps of each layer, beside its input: names given by
# `checkpoint_name`. In the order of memory they need, most first.
_KEPT = {
  "dots": ("qkv", *blocked_attention.SAVED_NAMES, "attention_out", "mlp_in"),
  "attention": ("qkv", *blocked_attention.SAVED_NAMES),
  "context": blocked_attention.SAVED_NAMES,
}
# Compiling takes a third of a second more for each layer, or somewhat less.
_MOST_UNROLLED = 8
REMAT_POLICIES = ("none", *_KEPT, "full")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Shape of a Transformer stack.

  Attributes:
    num_layers: layers.
    embed_dim: width of the residual stream.
    num_heads: attention heads.
    mlp_dim: hidden width of the feed-forward part.
    head_dim: width of a head; None: `embed_dim // num_heads`.
    num_kv_heads: heads of keys and values, a divisor of `num_heads`: 1 is
      multi-query attention (arXiv 1911.02150), more are grouped-query
      attention (arXiv 2305.13245): a smaller cache to read at each decode
      step. None: as many as `num_heads`.
    dropout_rate: dropped with masks shared along the length (as T5X does: few
      random bits); 0 costs nothing.
    gated: GEGLU instead of a plain GELU feed-forward part.
    positions: 't5' relative bias (MusicLM sec. 4.1), 'rotary' or 'none'.
    relpos_buckets: rows of the T5 bias table.
    relpos_max_distance: distance at which its last bucket starts.
    causal: each position sees only itself and earlier ones.
    scan_layers: scan over stacked parameters instead of unrolling.
    remat: what the backward pass recomputes: 'none'; all but products with
      weights and attention ('dots'); the feed-forward part ('attention' is
      kept); all but attention over keys ('context' is kept); whole layers
      ('full').
    residual_scale: factor on what a layer's branches add. Below 1 for deep
      stacks that are to learn in few steps: updates of all layers add up, and
      what all tokens have in common, which is learnt first, else drowns what
      tells them apart (docs/researchers.md). 1 / sqrt(layers) is that of
      arXiv 2310.02244; MusicLM has none.
    attention: 'plain' holds the scores of all pairs of positions; 'blocked'
      those of a block of queries, which saves memory where sequences are long
      (causal stacks only); 'pallas' is the same as a TPU kernel that keeps
      scores off the chip's main memory, where there is a TPU.
  """

  num_layers: int
  embed_dim: int
  num_heads: int
  mlp_dim: int
  head_dim: int | None = None
  dropout_rate: float = 0.1
  gated: bool = False
  positions: str = "t5"
  relpos_buckets: int = 32
  relpos_max_distance: int = 128
  causal: bool = True
  scan_layers: bool = True
  remat: str = "none"
  attention: str = "plain"
  num_kv_heads: int | None = None
  residual_scale: float = 1.0

  def __post_init__(self):
    for field in ("num_layers", "embed_dim", "num_heads", "mlp_dim"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"{field}={getattr(self, field)}: expected a positive number"
        )
    if self.head_dim is None and self.embed_dim % self.num_heads:
      raise ValueError(
        f"embed_dim={self.embed_dim}: expected a multiple of num_heads="
        f"{self.num_heads}, or head_dim set"
      )
    if self.head_dim is not None and self.head_dim < 1:
      raise ValueError(f"head_dim={self.head_dim}: expected None or positive")
    if self.kv_heads < 1 or self.num_heads % self.kv_heads:
      raise ValueError(
        f"num_kv_heads={self.num_kv_heads}: expected None or a divisor of "
        f"num_heads={self.num_heads}"
      )
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(f"dropout_rate={self.dropout_rate}: expected in [0, 1)")
    if not 0 < self.residual_scale <= 1:
      raise ValueError(
        f"residual_scale={self.residual_scale}: expected in (0, 1]"
      )
    if self.positions not in _POSITIONS:
      raise ValueError(
        f"positions={self.positions!r}: expected one of {_POSITIONS}"
      )
    if self.positions == "rotary" and self.kv_dim % 2:
      raise ValueError(f"head_dim={self.kv_dim}: expected even for rotary")
    if self.relpos_buckets < 4 or self.relpos_buckets % 4:
      raise ValueError(
        f"relpos_buckets={self.relpos_buckets}: expected a multiple of 4"
      )
    if self.relpos_max_distance <= self.relpos_buckets // 2:
      raise ValueError(
        f"relpos_max_distance={self.relpos_max_distance}: expected more than "
        f"relpos_buckets / 2 = {self.relpos_buckets // 2}"
      )
    if self.remat not in REMAT_POLICIES:
      raise ValueError(
        f"remat={self.remat!r}: expected one of {REMAT_POLICIES}"
      )
    if self.attention not in _ATTENTION:
      raise ValueError(
        f"attention={self.attention!r}: expected one of {_ATTENTION}"
      )
    if self.attention != "plain" and not self.causal:
      raise ValueError(
        f"attention={self.attention!r}: expected 'plain', as causal=False"
      )

  @property
  def kv_dim(self) -> int:
    """Width of a head."""
    return self.head_dim or self.embed_dim // self.num_heads

  @property
  def kv_heads(self) -> int:
    """Heads of keys and values."""
    return self.num_heads if self.num_kv_heads is None else self.num_kv_heads


class FeedForward(nn.Module):
  """Two products with a GELU (or a GELU gate) between them.

  Attributes:
    config: shape.
    precision: dtypes.
    deterministic: no dropout.
  """

  config: TransformerConfig
  precision: precision_lib.Precision
  deterministic: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[batch, length, embed]` to the same shape."""
    config = self.config
    if config.gated:
      hidden = dense.Dense(
        (2, config.mlp_dim), ("embed", None, "mlp"), self.precision, name="wi"
      )(x)
      hidden = checkpoint_name(hidden, "mlp_in")
      hidden = gelu.gelu(hidden[..., 0, :]) * hidden[..., 1, :]
    else:
      hidden = dense.Dense(
        (config.mlp_dim,), ("embed", "mlp"), self.precision, name="wi"
      )(x)
      hidden = gelu.gelu(checkpoint_name(hidden, "mlp_in"))
    hidden = axes.constrain(hidden, ("batch", "length", "mlp"))
    hidden = _dropout(config, self.deterministic)(hidden)
    return dense.Dense(
      (x.shape[-1],), ("mlp", "embed"), self.precision, name="wo"
    )(hidden)


def _dropout(config: TransformerConfig, deterministic: bool) -> nn.Dropout:
  return nn.Dropout(
    config.dropout_rate, broadcast_dims=(-2,), deterministic=deterministic
  )


class Layer(nn.Module):
  """Pre-norm attention and feed-forward part, each on a residual branch.

  Attributes:
    config: shape.
    precision: dtypes.
    deterministic: no dropout.
    decode: see `attention.SelfAttention`.
    cache_length: see `attention.SelfAttention`.
  """

  config: TransformerConfig
  precision: precision_lib.Precision
  deterministic: bool = True
  decode: bool = False
  cache_length: int | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    bias: jax.Array | blocked_attention.BlockedBias | None,
    positions: jax.Array,
  ) -> tuple[jax.Array, None]:
    """Returns `[batch, length, embed]`, and None as a scan wants a pair."""
    config = self.config
    x = axes.constrain(x, ("batch", "length", "embed"))
    hidden = norm.RMSNorm(self.precision, name="attention_norm")(x)
    hidden = attention.SelfAttention(
      config.num_heads,
      config.kv_dim,
      self.precision,
      rotary=config.positions == "rotary",
      dropout_rate=config.dropout_rate,
      deterministic=self.deterministic,
      decode=self.decode,
      cache_length=self.cache_length,
      num_kv_heads=config.num_kv_heads,
      name="attention",
    )(hidden, bias, positions)
    hidden = checkpoint_name(hidden, "attention_out")
    x = self._added(x, hidden)
    hidden = norm.RMSNorm(self.precision, name="mlp_norm")(x)
    hidden = FeedForward(
      config, self.precision, self.deterministic, name="mlp"
    )(hidden)
    x = self._added(x, hidden)
    return axes.constrain(x, ("batch", "length", "embed")), None

  def _added(self, x: jax.Array, branch: jax.Array) -> jax.Array:
    """The residual stream after a branch."""
    branch = _dropout(self.config, self.deterministic)(branch)
    if self.config.residual_scale != 1:
      branch = branch * jnp.asarray(self.config.residual_scale, branch.dtype)
    return x + branch


class TransformerStack(nn.Module):
  """Layers, a shared position bias and a final norm.

  Attributes:
    config: shape.
    precision: dtypes.
  """

  config: TransformerConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    mask: jax.Array | None = None,
    deterministic: bool = True,
    decode: bool = False,
    cache_length: int | None = None,
    segment_ids: jax.Array | None = None,
  ) -> jax.Array:
    """Runs the stack.

    With `decode`, the first call (no 'cache' collection yet) takes a whole
    prefix and creates the cache; every later call takes one position. What the
    mask of the prefix hides stays hidden; later calls have no mask.

    Args:
      x: `[batch, length, embed]`.
      mask: bool `[batch, length]`, True where real; None: all real. Masked
        positions may hold anything, even NaN, and come out as zeros.
      deterministic: no dropout; otherwise the 'dropout' random stream is read.
      decode: reads and writes the 'cache' collection.
      cache_length: positions the new cache holds (prefix and steps).
      segment_ids: int32 `[batch, length]` from 0 on: of the sequences packed
        into a row. Positions see only their own sequence.

    Returns:
      `[batch, length, embed]` in the compute dtype.

    Raises:
      ValueError: if decoding is asked of a bidirectional stack, with a mask
        after the prefix, or with packed sequences.
    """
    config = self.config
    length = x.shape[1]
    step = decode and self.has_variable("cache", "cache_index")
    whole = segment_ids is None and not (step and mask is not None)
    if decode and not (config.causal and whole):
      raise ValueError(
        f"causal={config.causal}, mask={'None' if mask is None else 'given'}, "
        f"segment_ids={'None' if segment_ids is None else 'given'}: "
        "decode=True expects a causal stack, no segments, and no mask after "
        "the prefix"
      )
    x = x.astype(self.precision.compute_dtype)
    if mask is not None:
      # Zeros rather than a mask on the weights only: 0 * NaN is NaN.
      x = jnp.where(mask[..., None], x, 0)
    start = 0
    if decode:
      index = self.variable("cache", "cache_index", jnp.zeros, (), jnp.int32)
      start = index.value
      index.value = start + length
    if step:
      cache_length = self._cache_length()
    seen = mask
    if decode:
      seen = self._prefix_mask(mask, cache_length)
    query_positions = start + jnp.arange(length, dtype=jnp.int32)
    if config.attention != "plain" and not decode:
      bias = self._blocked_bias(length, mask, segment_ids)
    else:
      bias = self._bias(
        length, seen, segment_ids, start if step else None, cache_length
      )
    x = _dropout(config, deterministic)(x)
    x = self._layers(deterministic, decode, cache_length)(
      x, bias, query_positions
    )
    x = norm.RMSNorm(self.precision, name="final_norm")(x)
    x = _dropout(config, deterministic)(x)
    return x if mask is None else jnp.where(mask[..., None], x, 0)

  def _prefix_mask(
    self, mask: jax.Array | None, cache_length: int | None
  ) -> jax.Array | None:
    """Keys that a call while decoding may see, as far as a mask says.

    Args:
      mask: of the prefix, bool `[batch, length]`: kept in the cache; or None.
      cache_length: positions that the cache holds.

    Returns:
      `mask`; in a step that of all cached positions `[batch, cache_length]`.
    """
    if mask is None:
      return self.get_variable("cache", "cached_mask")
    later = max(0, (cache_length or 0) - mask.shape[1])
    padded = jnp.pad(mask, ((0, 0), (0, later)), constant_values=True)
    self.put_variable("cache", "cached_mask", padded)
    return mask

  def _cache_length(self) -> int:
    keys = [
      leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(
        self.variables["cache"]
      )
      if getattr(path[-1], "key", None) == "cached_key"
    ]
    return keys[0].shape[-2]

  def _relative_bias(self) -> positions.RelativeBias:
    config = self.config
    return positions.RelativeBias(
      config.num_heads,
      config.relpos_buckets,
      config.relpos_max_distance,
      config.causal,
      self.precision,
      name="relative_bias",
    )

  def _blocked_bias(
    self,
    length: int,
    mask: jax.Array | None,
    segment_ids: jax.Array | None,
  ) -> blocked_attention.BlockedBias:
    """Position bias and masks for attention in blocks."""
    config = self.config
    block = blocked_attention.block_size(length)
    learned = config.positions == "t5"
    if learned:
      num_tiles = min(
        positions.num_near_tiles(block, config.relpos_max_distance),
        -(-length // block),
      )
      wheel = self._relative_bias().near(block, num_tiles)
    else:
      wheel = jnp.asarray(positions.near_mask(block, 1))
    if mask is not None:
      # Padding becomes a segment that no real position is in.
      ids = 0 if segment_ids is None else segment_ids
      segment_ids = jnp.where(mask, ids + 1, 0)
    return blocked_attention.BlockedBias(
      wheel, segment_ids, learned, config.attention == "pallas"
    )

  def _bias(
    self,
    length: int,
    mask: jax.Array | None,
    segment_ids: jax.Array | None,
    position: jax.Array | None,
    num_keys: int | None,
  ) -> jax.Array | None:
    """Position bias and masks in one float32 array, made once for all layers.

    Args:
      length: queries.
      mask: bool `[batch, keys]` or None.
      segment_ids: int32 `[batch, length]` or None.
      position: of the single query of a decode step; None: whole sequence.
      num_keys: cached positions of a decode step.

    Returns:
      Broadcasts to `[batch, heads, queries, keys]`; None: nothing to add.
    """
    config = self.config
    bias = None
    if config.positions == "t5":
      relative = self._relative_bias()
      if position is None:
        bias = relative(length)[None]
      else:
        bias = relative.row(position, num_keys)[None]
    seen = None
    if position is not None:
      seen = (jnp.arange(num_keys) <= position)[None, None, None, :]
    elif config.causal:
      seen = jnp.tril(jnp.ones((length, length), bool))[None, None]
    if mask is not None:
      real = mask[:, None, None, :]
      seen = real if seen is None else seen & real
    if segment_ids is not None:
      same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
      seen = same if seen is None else seen & same
    if seen is None:
      return bias
    return jnp.where(seen, 0.0 if bias is None else bias, attention.MASKED)

  def _layers(
    self, deterministic: bool, decode: bool, cache_length: int | None
  ):
    """A function (x, bias, positions) -> x over all layers."""
    config = self.config
    layer_class = Layer
    if config.remat != "none" and not decode:
      policy = None
      if config.remat in _KEPT:
        policy = jax.checkpoint_policies.save_only_these_names(
          *_KEPT[config.remat]
        )
      layer_class = nn.remat(
        Layer, policy=policy, prevent_cse=not config.scan_layers
      )
    fields = (config, self.precision, deterministic, decode, cache_length)
    if config.scan_layers:
      scanned = nn.scan(
        layer_class,
        variable_axes={"params": 0, "cache": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, nn.broadcast),
        length=config.num_layers,
        unroll=_num_unrolled(config.num_layers),
        metadata_params={nn.PARTITION_NAME: "layers"},
      )(*fields, name="layers")
      return lambda x, bias, at: scanned(x, bias, at)[0]

    layers = [
      layer_class(*fields, name=f"layers_{i}") for i in range(config.num_layers)
    ]

    def unrolled(x, bias, at):
      for layer in layers:
        x, _ = layer(x, bias, at)
      return x

    return unrolled


def _num_unrolled(num_layers: int) -> int:
  """Layers in one turn of the scan over all.

  On a CPU all of a small stack: what a layer keeps for the backward pass is
  then used where it lies, in place of being copied into zeros and out again.
  Elsewhere one: that compiles fastest, and copies cost little.
  """
  small = axes.platform() == "cpu" and num_layers <= _MOST_UNROLLED
  return num_layers if small else 1


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
  """Parameters of scanned layers as those of unrolled ones.

  Args:
    params: nested dict of (unboxed) arrays; every subtree 'layers' has a
      leading layer axis.

  Returns:
    The same with 'layers' replaced by 'layers_0', 'layers_1', ... .
  """
  result: dict[str, Any] = {}
  for name, value in params.items():
    if name == "layers":
      count = jax.tree.leaves(value)[0].shape[0]
      for i in range(count):
        result[f"layers_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], value)
    elif isinstance(value, Mapping):
      result[name] = unstack_layers(value)
    else:
      result[name] = value
  return result
