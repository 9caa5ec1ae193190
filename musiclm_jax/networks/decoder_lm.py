# SPDX-License-Identifier: Apache-2.0
"""Decoder-only language model of one stage: tokens in, logits of codes out.

Input tokens are `[BOS, tokens[:-1]]`, so the hidden state at position p
predicts token p. Logits exist for target positions only, each over the codes
legal at its level (one output kernel per level).

`shapes` below is `StageLayout.shapes`: (frames, levels) of each segment, the
last one the target's; static.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.layers import dense, embed, transformer
from musiclm_jax.partitioning import axes


@dataclasses.dataclass(frozen=True)
class DecoderLMConfig:
  """Shape of a stage's network.

  Attributes:
    transformer: the stack; must be causal.
    vocab_size: input token ids, special ones included.
    num_target_levels: RVQ levels of the target segment.
    codebook_size: codes of each target level.
    aligned_conditioning: adds to each target position the embeddings of the
      conditioning codes of the same instant, multiplied by this, and those of
      all codes of a stream without frames; 0: neither. They are in the sequence
      anyway, as in the paper; but attention has to learn which of them belongs
      to which frame from distances beyond the last bucket of the T5 bias, which
      takes more training than a small run has. The larger, the sooner they are
      learnt, before the codes that were made already explain the next.
    masks_padding: nothing attends to padding in the conditioning.
  """

  transformer: transformer.TransformerConfig
  vocab_size: int
  num_target_levels: int
  codebook_size: int
  aligned_conditioning: float = 0.0
  masks_padding: bool = False

  def __post_init__(self):
    for field in ("vocab_size", "num_target_levels", "codebook_size"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"{field}={getattr(self, field)}: expected a positive number"
        )
    if not self.aligned_conditioning >= 0:
      raise ValueError(
        f"aligned_conditioning={self.aligned_conditioning}: expected >= 0"
      )
    if self.aligned_conditioning and self.masks_padding:
      raise ValueError(
        f"aligned_conditioning={self.aligned_conditioning}: expected 0 where "
        "conditioning is padded, for codes without repeats have no instants"
      )
    if not self.transformer.causal:
      raise ValueError("transformer.causal=False: expected True")


class DecoderLM(nn.Module):
  """Embedding, causal Transformer, one output kernel per target level.

  Attributes:
    config: shape.
    precision: dtypes; logits are float32.
  """

  config: DecoderLMConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  def setup(self):
    config = self.config
    embed_dim = config.transformer.embed_dim
    self.token_embed = embed.Embed(config.vocab_size, embed_dim, self.precision)
    if config.aligned_conditioning:
      # Small: many of them are added up on top of a token.
      self.aligned_embed = embed.Embed(
        config.vocab_size, embed_dim, self.precision, scale=0.1
      )
    self.transformer = transformer.TransformerStack(
      config.transformer, self.precision
    )

    self.output = self.param(
      "output",
      axes.named(init_code_heads, ("codebook", "embed", "vocab")),
      (config.num_target_levels, embed_dim, config.codebook_size),
      self.precision.param_dtype,
    )

  def _aligned(
    self, tokens: jax.Array, shapes: Sequence[tuple[int, int]]
  ) -> jax.Array:
    """What each target frame is told, `[batch, target frames, embed]`."""
    # Position 0 holds BOS.
    return sum_of_instants(
      self.aligned_embed,
      tokens[:, 1:],
      shapes,
      self.config.aligned_conditioning,
    )

  def _mask(
    self, tokens: jax.Array, shapes: Sequence[tuple[int, int]]
  ) -> jax.Array | None:
    """False on padding in the conditioning; None where none is masked.

    The position before the first target token is never masked, for that token
    is predicted there.
    """
    if not self.config.masks_padding:
      return None
    is_told = np.arange(tokens.shape[1]) < target_start(shapes)
    return (tokens != stages_lib.PAD_ID) | ~is_told

  def __call__(
    self,
    tokens: jax.Array,
    shapes: Sequence[tuple[int, int]],
    deterministic: bool = True,
    segment_ids: jax.Array | None = None,
  ) -> jax.Array:
    """Logits of all target positions, teacher-forced.

    Args:
      tokens: int32 `[batch, length]`, `[BOS, tokens[:-1]]`.
      shapes: (frames, levels) of each segment.
      deterministic: no dropout.
      segment_ids: see `transformer.TransformerStack`.

    Returns:
      float32 `[batch, frames, levels, codebook_size]`.
    """
    hidden = self._target_hidden(tokens, shapes, deterministic, segment_ids)
    kernel = self.output
    if kernel.dtype == jnp.int8:
      kernel = kernel * self.get_variable("scales", "output")[:, None]
    return all_logits(hidden, kernel)

  def _target_hidden(
    self,
    tokens: jax.Array,
    shapes: Sequence[tuple[int, int]],
    deterministic: bool,
    segment_ids: jax.Array | None,
  ) -> jax.Array:
    """Hidden states `[batch, frames, levels, embed]` of target positions."""
    frames, levels = shapes[-1]
    x = self.token_embed(tokens)
    if self.config.aligned_conditioning:
      x = _add_at_end(
        x, jnp.repeat(self._aligned(tokens, shapes), levels, axis=1)
      )
    hidden = self.transformer(
      x,
      self._mask(tokens, shapes),
      deterministic=deterministic,
      segment_ids=segment_ids,
    )
    batch, _, embed_dim = hidden.shape
    start = target_start(shapes)
    hidden = hidden[:, start : start + frames * levels]
    return hidden.reshape(batch, frames, levels, embed_dim)

  def code_scores(
    self,
    tokens: jax.Array,
    shapes: Sequence[tuple[int, int]],
    codes: jax.Array,
    chunk_frames: int = 0,
    deterministic: bool = True,
    segment_ids: jax.Array | None = None,
  ) -> "CodeScores":
    """What a loss needs of the logits, without all of them at once.

    Args:
      tokens: as in `__call__`.
      shapes: as in `__call__`.
      codes: of the target, `[batch, frames, levels]`; negative ones (padding)
        count as code 0.
      chunk_frames: logits of so many frames are held at a time, and computed
        again in the backward pass; 0: of all, once.
      deterministic: no dropout.
      segment_ids: as in `__call__`.
    """
    hidden = self._target_hidden(tokens, shapes, deterministic, segment_ids)
    frames, _ = shapes[-1]
    if not 0 < chunk_frames < frames:
      return score_codes(hidden, self.output, codes)
    # Unrolled: slices of a scan would be copies.
    score = jax.checkpoint(score_codes)
    parts = [
      score(
        hidden[:, start : start + chunk_frames],
        self.output,
        codes[:, start : start + chunk_frames],
      )
      for start in range(0, frames, chunk_frames)
    ]
    return CodeScores(*(jnp.concatenate(x, axis=1) for x in zip(*parts)))

  def prefill(
    self,
    tokens: jax.Array,
    shapes: Sequence[tuple[int, int]],
    num_steps: int | None = None,
  ) -> jax.Array:
    """Creates the cache from a prefix; apply with `mutable=['cache']`.

    Args:
      tokens: int32 `[batch, prefix]`: BOS, all conditioning tokens and any
        number of target tokens.
      shapes: (frames, levels) of each segment; the cache holds all of them.
      num_steps: decode steps that it holds in place of all.

    Returns:
      Hidden state of the last position, `[batch, embed]`.
    """
    x = self.token_embed(tokens)
    if self.config.aligned_conditioning:
      aligned = jnp.repeat(self._aligned(tokens, shapes), shapes[-1][1], axis=1)
      known = tokens.shape[1] - target_start(shapes)
      # The end is never read: after the last token nothing is predicted.
      self.put_variable(
        "cache", "aligned_steps", jnp.pad(aligned, ((0, 0), (0, 1), (0, 0)))
      )
      self.put_variable("cache", "aligned_index", jnp.int32(known))
      x = _add_at_end(x, aligned[:, :known])
    # One more: the decode loop also takes in the last token.
    cache_length = 1 + sum(math.prod(shape) for shape in shapes)
    if num_steps is not None:
      cache_length = tokens.shape[1] + num_steps
    hidden = self.transformer(
      x, self._mask(tokens, shapes), decode=True, cache_length=cache_length
    )
    return hidden[:, -1]

  def step(self, token: jax.Array) -> jax.Array:
    """One decode step: int32 `[batch]` to hidden state `[batch, embed]`."""
    x = self.token_embed(token[:, None])
    if self.config.aligned_conditioning:
      index = self.get_variable("cache", "aligned_index")
      steps = self.get_variable("cache", "aligned_steps")
      x += jax.lax.dynamic_slice_in_dim(steps, index, 1, axis=1)
      self.put_variable("cache", "aligned_index", index + 1)
    hidden = self.transformer(x, decode=True)
    return hidden[:, 0]

  def level_logits(self, hidden: jax.Array, level: jax.Array) -> jax.Array:
    """Logits of one target level.

    Args:
      hidden: `[batch, embed]`.
      level: target level, may be traced.

    Returns:
      float32 `[batch, codebook_size]`.
    """
    kernel = _of_level(self.output, level)
    logits = jnp.einsum(
      "be,ev->bv",
      hidden,
      kernel.astype(hidden.dtype),
      preferred_element_type=jnp.float32,
    )
    if kernel.dtype == jnp.int8:
      logits *= _of_level(self.get_variable("scales", "output"), level)
    return logits


class CodeScores(NamedTuple):
  """Of each target code, float32 `[batch, frames, levels]`.

  Attributes:
    nats: negative log-probability.
    log_sum: log of the softmax's denominator.
    mean_logit: mean over all codes.
    correct: 1 where the code is the most likely one, else 0.
  """

  nats: jax.Array
  log_sum: jax.Array
  mean_logit: jax.Array
  correct: jax.Array


def init_code_heads(
  key: jax.Array, shape: Sequence[int], dtype=jnp.float32
) -> jax.Array:
  """Output kernels `[levels, embed, codebook_size]`, one per level.

  Small: the first predictions are close to uniform over the codes.
  """
  init = dense.fan_in_init(1, scale=0.01)
  keys = jax.random.split(key, shape[0])
  return jnp.stack([init(k, shape[1:], dtype) for k in keys])


def sum_of_instants(
  embed_tokens: Callable[[jax.Array], jax.Array],
  tokens: jax.Array,
  shapes: Sequence[tuple[int, int]],
  gain: float = 1.0,
) -> jax.Array:
  """What each target frame is told by the conditioning of its instant.

  Args:
    embed_tokens: int32 `[batch, length]` to `[batch, length, embed]`.
    tokens: int32 `[batch, length]`, conditioning tokens first.
    shapes: (frames, levels) of each segment, the last one the target's.
    gain: multiplies the embeddings of streams with frames.

  Returns:
    Sums of the embeddings of all conditioning codes of a frame's instant,
    `[batch, target frames, embed]`; of a stream without frames, of all.
  """
  target_frames, _ = shapes[-1]
  none = embed_tokens(tokens[:, :0])
  shape = (tokens.shape[0], target_frames, none.shape[-1])
  total = jnp.zeros(shape, none.dtype)
  start = 0
  for frames, levels in shapes[:-1]:
    end = start + frames * levels
    embedded = embed_tokens(tokens[:, start:end])
    embedded = embedded.reshape(tokens.shape[0], frames, levels, -1).sum(2)
    if frames > 1:
      embedded *= gain
    instants = np.arange(target_frames) * frames // target_frames
    total += embedded[:, instants]
    start = end
  return total


def all_logits(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
  """Logits over the codes of each level.

  Args:
    hidden: `[batch, frames, levels, embed]`.
    kernel: `[levels, embed, codebook_size]`.

  Returns:
    float32 `[batch, frames, levels, codebook_size]`.
  """
  logits = jnp.einsum(
    "bfle,lev->bflv",
    hidden,
    kernel.astype(hidden.dtype),
    preferred_element_type=jnp.float32,
  )
  return axes.constrain(logits, ("batch", "frames", "codebook", "vocab"))


def score_codes(
  hidden: jax.Array, kernel: jax.Array, codes: jax.Array
) -> CodeScores:
  """Scores of codes `[batch, frames, levels]`; see `all_logits`."""
  return scores_of_logits(all_logits(hidden, kernel), codes)


def scores_of_logits(logits: jax.Array, codes: jax.Array) -> CodeScores:
  """Scores of codes `[...]` from logits `[..., codebook_size]`."""
  log_sum = jax.nn.logsumexp(logits, axis=-1)
  return CodeScores(
    log_sum - _picked(logits, codes),
    log_sum,
    logits.mean(-1),
    (logits.argmax(-1) == codes).astype(jnp.float32),
  )


def _of_level(x: jax.Array, level: jax.Array) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(x, level, axis=0, keepdims=False)


def target_start(shapes: Sequence[tuple[int, int]]) -> int:
  """Position of the first target token, from the shapes of all segments."""
  return sum(math.prod(shape) for shape in shapes[:-1])


def _add_at_end(x: jax.Array, tail: jax.Array) -> jax.Array:
  """Adds `[batch, n, embed]` to the last n positions of `x`."""
  return x + jnp.pad(tail, ((0, 0), (x.shape[1] - tail.shape[1], 0), (0, 0)))


def code_nats(logits: jax.Array, codes: jax.Array) -> jax.Array:
  """Negative log-probability of each code.

  Args:
    logits: float32 `[..., codebook_size]`.
    codes: integers `[...]`; negative ones (padding) count as code 0.

  Returns:
    float32 `[...]`, in nats.
  """
  return jax.nn.logsumexp(logits, axis=-1) - _picked(logits, codes)


def _picked(logits: jax.Array, codes: jax.Array) -> jax.Array:
  return jnp.take_along_axis(logits, jnp.maximum(codes, 0)[..., None], axis=-1)[
    ..., 0
  ]
