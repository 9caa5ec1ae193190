# SPDX-License-Identifier: Apache-2.0
"""Depth-wise model of all acoustic levels: tokens in, logits of codes out.

A temporal Transformer has one position per frame, and a small one goes over
the levels of each frame (RQ-Transformer, arXiv 2203.01941 sec. 3.2; Magenta
RealTime, arXiv 2508.04651). So a sequence is as long as its frames, not as
its codes.

Sequences are those of `StageLayout`, without BOS: `shapes` are its (frames,
levels) of each segment, the last one the target's; static.
"""

import dataclasses
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import stages
from musiclm_jax.layers import dense, embed
from musiclm_jax.layers import transformer as transformer_lib
from musiclm_jax.networks import decoder_lm
from musiclm_jax.partitioning import axes

Shapes = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class DepthwiseLMConfig:
  """Shape of the network.

  Attributes:
    transformer: over frames; must be causal.
    depth: over the levels of a frame; must be causal. A position knows its
      level, so it needs no positions of its own.
    vocab_size: input token ids, special ones included.
    num_levels: RVQ levels of a frame.
    codebook_size: codes of each level.
    prefix_conditioning: conditioning tokens stand before the frames too, so
      that a frame can look at semantic tokens before and after its instant.
      Without, a frame is told those of its own instant alone.
  """

  transformer: transformer_lib.TransformerConfig
  depth: transformer_lib.TransformerConfig
  vocab_size: int
  num_levels: int
  codebook_size: int
  prefix_conditioning: bool = True

  def __post_init__(self):
    for field in ("vocab_size", "num_levels", "codebook_size"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"{field}={getattr(self, field)}: expected a positive number"
        )
    for field in ("transformer", "depth"):
      if not getattr(self, field).causal:
        raise ValueError(f"{field}.causal=False: expected True")


class DepthHead(nn.Module):
  """The levels of a frame, one after the other, given the frames before.

  Position l is what the temporal stack says of the frame, the embedding of the
  level and that of the code of level l - 1.

  Attributes:
    config: shape.
    precision: dtypes; logits are float32.
  """

  config: DepthwiseLMConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  def setup(self):
    config, width = self.config, self.config.depth.embed_dim
    self.context = dense.Dense(
      (width,), ("embed", None), self.precision, name="context"
    )
    self.level_embed = self.param(
      "level_embed",
      axes.named(nn.initializers.normal(1.0), ("codebook", "embed")),
      (config.num_levels, width),
      self.precision.param_dtype,
    )
    # The last level's code is nobody's input.
    rows = max(1, config.num_levels - 1) * config.codebook_size
    self.code_embed = embed.Embed(rows, width, self.precision)
    self.stack = transformer_lib.TransformerStack(config.depth, self.precision)
    self.output = self.param(
      "output",
      axes.named(decoder_lm.init_code_heads, ("codebook", "embed", "vocab")),
      (config.num_levels, width, config.codebook_size),
      self.precision.param_dtype,
    )

  def hidden(
    self, frames: jax.Array, codes: jax.Array, deterministic: bool
  ) -> jax.Array:
    """Hidden states of all levels, teacher-forced.

    Args:
      frames: of the temporal stack, `[batch, frames, embed]`.
      codes: int32 `[batch, frames, levels]`; negative ones (padding) count as
        code 0.
      deterministic: no dropout.

    Returns:
      `[batch, frames, levels, embed]`; level l has seen codes before l.
    """
    config = self.config
    batch, num_frames, levels = codes.shape
    x = self.context(frames)[:, :, None] + self._levels()
    if levels > 1:
      ids = jnp.maximum(codes[..., :-1], 0)
      ids += jnp.arange(levels - 1, dtype=ids.dtype) * config.codebook_size
      x += jnp.pad(self.code_embed(ids), ((0, 0), (0, 0), (1, 0), (0, 0)))
    x = x.reshape(batch * num_frames, levels, -1)
    x = self.stack(x, deterministic=deterministic)
    return x.reshape(batch, num_frames, levels, -1)

  def scores(
    self, frames: jax.Array, codes: jax.Array, deterministic: bool
  ) -> decoder_lm.CodeScores:
    """Scores of `codes`; arguments as in `hidden`."""
    hidden = self.hidden(frames, codes, deterministic)
    return decoder_lm.score_codes(hidden, self.output, codes)

  def logits(
    self, frames: jax.Array, codes: jax.Array, deterministic: bool
  ) -> jax.Array:
    """float32 `[batch, frames, levels, codebook_size]`; see `hidden`."""
    hidden = self.hidden(frames, codes, deterministic)
    return decoder_lm.all_logits(hidden, self.output)

  def step(
    self, frame: jax.Array, code: jax.Array | None, level: int
  ) -> jax.Array:
    """Logits of one level of one frame; level 0 creates the cache.

    Args:
      frame: `[batch, embed]`, of the temporal stack.
      code: int32 `[batch]` of the level before; None for level 0.
      level: static.

    Returns:
      float32 `[batch, codebook_size]`.
    """
    x = self.context(frame) + self._levels()[level]
    if level:
      size = self.config.codebook_size
      x += self.code_embed(code + (level - 1) * size)
    hidden = self.stack(
      x[:, None], decode=True, cache_length=self.config.num_levels
    )
    return jnp.einsum(
      "be,ev->bv",
      hidden[:, 0],
      self.output[level].astype(hidden.dtype),
      preferred_element_type=jnp.float32,
    )

  def _levels(self) -> jax.Array:
    return self.level_embed.astype(self.precision.compute_dtype)


class DepthwiseLM(nn.Module):
  """Embedding, temporal Transformer, `DepthHead`.

  Attributes:
    config: shape.
    precision: dtypes; logits are float32.
  """

  config: DepthwiseLMConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  def setup(self):
    config = self.config
    self.token_embed = embed.Embed(
      config.vocab_size, config.transformer.embed_dim, self.precision
    )
    self.transformer = transformer_lib.TransformerStack(
      config.transformer, self.precision
    )
    self.depth = DepthHead(config, self.precision)

  def _frame_inputs(self, tokens: jax.Array) -> jax.Array:
    """Of frames `[batch, frames, levels]`, as input of the next frame."""
    # As large as the embedding of one token, whatever the number of levels.
    return self.token_embed(tokens).sum(-2) * self.config.num_levels**-0.5

  def _instants(self, tokens: jax.Array, shapes: Shapes) -> jax.Array:
    """What each frame is told by the conditioning of its own instant."""
    total = decoder_lm.sum_of_instants(self.token_embed, tokens, shapes)
    return total * max(1, sum(levels for _, levels in shapes[:-1])) ** -0.5

  def _inputs(
    self, tokens: jax.Array, shapes: Shapes, instants: jax.Array
  ) -> jax.Array:
    """Temporal inputs of the prefix and of frame 0 to the first unknown one.

    Args:
      tokens: `[batch, length]`: all conditioning and any number of frames.
      shapes: of the segments.
      instants: of at least one frame more than `tokens` has.
    """
    start, batch = decoder_lm.target_start(shapes), len(tokens)
    known = tokens[:, start:].reshape(batch, -1, self.config.num_levels)
    first = jnp.full((batch, 1), stages.BOS_ID, tokens.dtype)
    frames = jnp.concatenate(
      [self.token_embed(first), self._frame_inputs(known)], axis=1
    )
    frames += instants[:, : frames.shape[1]]
    if not self.config.prefix_conditioning:
      return frames
    prefix = self.token_embed(tokens[:, :start])
    return jnp.concatenate([prefix, frames], axis=1)

  def _temporal(
    self, tokens: jax.Array, shapes: Shapes, deterministic: bool
  ) -> jax.Array:
    """Hidden states of all frames `[batch, frames, embed]`."""
    frames, levels = shapes[-1]
    # The last frame is nobody's input.
    x = self._inputs(
      tokens[:, : tokens.shape[1] - levels],
      shapes,
      self._instants(tokens, shapes),
    )
    hidden = self.transformer(x, deterministic=deterministic)
    return hidden[:, hidden.shape[1] - frames :]

  def __call__(
    self,
    tokens: jax.Array,
    shapes: Shapes,
    codes: jax.Array,
    deterministic: bool = True,
  ) -> jax.Array:
    """Logits of all codes, teacher-forced.

    Args:
      tokens: int32 `[batch, length]`, conditioning and target.
      shapes: (frames, levels) of each segment.
      codes: of the target, int32 `[batch, frames, levels]`; what the levels
        of a frame see of each other. Negative ones count as code 0.
      deterministic: no dropout.

    Returns:
      float32 `[batch, frames, levels, codebook_size]`.
    """
    frames = self._temporal(tokens, shapes, deterministic)
    return self.depth.logits(frames, codes, deterministic)

  def code_scores(
    self,
    tokens: jax.Array,
    shapes: Shapes,
    codes: jax.Array,
    chunk_frames: int = 0,
    deterministic: bool = True,
  ) -> decoder_lm.CodeScores:
    """What a loss needs of the logits, without all of them at once.

    Args:
      tokens: as in `__call__`.
      shapes: as in `__call__`.
      codes: as in `__call__`.
      chunk_frames: the depth stack runs over so many frames at a time, and
        again in the backward pass; 0: over all, once.
      deterministic: no dropout.
    """
    frames = self._temporal(tokens, shapes, deterministic)
    num_frames = frames.shape[1]
    if not 0 < chunk_frames < num_frames:
      return self.depth.scores(frames, codes, deterministic)
    score = nn.remat(
      lambda depth, *arrays: depth.scores(*arrays, deterministic)
    )
    parts = [
      score(
        self.depth,
        frames[:, start : start + chunk_frames],
        codes[:, start : start + chunk_frames],
      )
      for start in range(0, num_frames, chunk_frames)
    ]
    return decoder_lm.CodeScores(
      *(jnp.concatenate(x, axis=1) for x in zip(*parts))
    )

  def prefill(self, tokens: jax.Array, shapes: Shapes) -> jax.Array:
    """Creates the cache of the temporal stack; apply with `mutable=['cache']`.

    Args:
      tokens: int32 `[batch, prefix]`: all conditioning tokens and any number
        of frames.
      shapes: (frames, levels) of each segment; the cache holds all of them.

    Returns:
      Hidden state of the first frame that is not in `tokens`,
      `[batch, embed]`.
    """
    instants = self._instants(tokens, shapes)
    # The end is never read: after the last frame nothing is predicted.
    instants = jnp.pad(instants, ((0, 0), (0, 1), (0, 0)))
    x = self._inputs(tokens, shapes, instants)
    num_known = tokens.shape[1] - decoder_lm.target_start(shapes)
    self.put_variable("cache", "instants", instants)
    self.put_variable(
      "cache", "frame_index", jnp.int32(num_known // self.config.num_levels)
    )
    length = 1 + shapes[-1][0]
    if self.config.prefix_conditioning:
      length += sum(math.prod(shape) for shape in shapes[:-1])
    return self.transformer(x, decode=True, cache_length=length)[:, -1]

  def step(self, tokens: jax.Array) -> jax.Array:
    """A finished frame, int32 `[batch, levels]`, to the next hidden state."""
    index = self.get_variable("cache", "frame_index") + 1
    instants = self.get_variable("cache", "instants")
    self.put_variable("cache", "frame_index", index)
    x = self._frame_inputs(tokens[:, None])
    x += jax.lax.dynamic_slice_in_dim(instants, index, 1, axis=1)
    return self.transformer(x, decode=True)[:, 0]

  def depth_step(
    self, frame: jax.Array, code: jax.Array | None, level: int
  ) -> jax.Array:
    """See `DepthHead.step`; it has a cache of its own for each frame."""
    return self.depth.step(frame, code, level)
