# SPDX-License-Identifier: Apache-2.0
"""Melody embedder: waveforms in, unit vectors of the melody out.

A small Vision Transformer over temporal frames of a mel spectrogram; clips with
the same melody in other voices lie close (MusicLM appendix C: 12 layers, 512
wide, FFN 1024, 192 dimensions per 4 s). The paper has 6 heads, which do not
divide 512: here are 8, each 64 wide. What it leaves open is chosen too: a token
is four frames of 10 ms; windows of 64 ms resolve low notes; the mean over
tokens is embedded.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.audio import log_frequency
from musiclm_jax.audio import spectrogram as spectrogram_lib
from musiclm_jax.core import precision as precision_lib
from musiclm_jax.layers import dense
from musiclm_jax.layers import transformer as transformer_lib
from musiclm_jax.partitioning import axes

_POOLINGS = ("mean", "cls")
_BANDS = ("mel", "log")
# Log-mels of music lie around -5 +- 2.5: brings them to zero mean, unit scale.
_LOG_MEL_MEAN, _LOG_MEL_SCALE = -5.0, 2.5


@dataclasses.dataclass(frozen=True)
class MelodyConfig:
  """Sizes of the melody embedder; the defaults are MusicLM's but for 8 heads.

  Attributes:
    mel: input spectrogram.
    bands: 'mel', or 'log' for bands of equal musical width from `low_hz` to
      `high_hz` of `mel`: a melody in another key is moved along them.
    dynamic_range_db: what lies deeper below the loudest point of a clip is not
      seen, and neither is how loud that is; 0 shows levels as they are.
    patch_frames: spectrogram frames of one token.
    window_secs: audio that one embedding describes, and the longest input.
    output_dim: width of the embedding.
    pooling: 'mean' over real tokens, or a learned 'cls' position.
    transformer: the stack, not causal; positions are learned, so 'none' here.
  """

  mel: spectrogram_lib.LogMelConfig = spectrogram_lib.LogMelConfig(
    sample_rate_hz=16000,
    num_mels=128,
    frame_length=1024,
    hop_length=160,
    low_hz=50.0,
  )
  bands: str = "mel"
  dynamic_range_db: float = 0.0
  patch_frames: int = 4
  window_secs: float = 4.0
  output_dim: int = 192
  pooling: str = "mean"
  transformer: transformer_lib.TransformerConfig = (
    transformer_lib.TransformerConfig(
      num_layers=12,
      embed_dim=512,
      num_heads=8,
      head_dim=64,
      mlp_dim=1024,
      positions="none",
      causal=False,
    )
  )

  def __post_init__(self):
    for name in ("patch_frames", "output_dim"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name}={getattr(self, name)}: expected a positive number"
        )
    if not self.window_secs > 0:
      raise ValueError(f"window_secs={self.window_secs}: expected > 0")
    if self.bands not in _BANDS:
      raise ValueError(f"bands={self.bands!r}: expected one of {_BANDS}")
    if self.bands == "log" and not self.mel.low_hz > 0:
      raise ValueError(
        f"mel.low_hz={self.mel.low_hz} with bands='log': expected > 0"
      )
    if self.dynamic_range_db < 0:
      raise ValueError(
        f"dynamic_range_db={self.dynamic_range_db}: expected >= 0"
      )
    if self.pooling not in _POOLINGS:
      raise ValueError(f"pooling={self.pooling!r}: expected one of {_POOLINGS}")
    if self.transformer.causal:
      raise ValueError("transformer.causal=True: expected False")
    if self.transformer.positions != "none":
      raise ValueError(
        f"transformer.positions={self.transformer.positions!r}: expected "
        "'none', positions are learned"
      )

  @property
  def num_samples(self) -> int:
    """Samples of a window."""
    return round(self.window_secs * self.mel.sample_rate_hz)

  @property
  def max_tokens(self) -> int:
    """Tokens of a window."""
    frames = spectrogram_lib.num_frames(self.num_samples, self.mel.hop_length)
    return -(-frames // self.patch_frames)


class MelodyEmbedder(nn.Module):
  """The embedder.

  Attributes:
    config: sizes.
    precision: dtypes.
  """

  config: MelodyConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  @nn.compact
  def __call__(
    self,
    waveform: jax.Array,
    num_samples: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Embeds clips.

    Args:
      waveform: float32 `[batch, samples]` in [-1, 1] at the rate of `mel`, at
        most a window.
      num_samples: int32 `[batch]`, real samples of each clip; what follows
        them may be anything. None: all.
      deterministic: no dropout; otherwise the 'dropout' stream is read.

    Returns:
      float32 `[batch, output_dim]` of unit length.

    Raises:
      ValueError: if the clips are longer than a window.
    """
    config = self.config
    if waveform.shape[1] > config.num_samples:
      raise ValueError(
        f"waveform has {waveform.shape[1]} samples: expected at most "
        f"{config.num_samples}, window_secs={config.window_secs}"
      )
    patches, mask = self._patches(waveform, num_samples)
    dim = config.transformer.embed_dim
    x = dense.Dense(
      (dim,), ("conv_in", "embed"), self.precision, use_bias=True, name="stem"
    )(patches)
    x = x + self._table("position", config.max_tokens)[: x.shape[1]]
    if config.pooling == "cls":
      first = jnp.broadcast_to(self._table("cls", 1), (x.shape[0], 1, dim))
      x = jnp.concatenate([first, x], axis=1)
      mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
    x = axes.constrain(x, ("batch", "length", "embed"))
    x = transformer_lib.TransformerStack(
      config.transformer, self.precision, name="transformer"
    )(x, mask, deterministic).astype(jnp.float32)
    if config.pooling == "cls":
      pooled = x[:, 0]
    else:
      weights = mask[..., None].astype(jnp.float32)
      pooled = (x * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
    x = dense.Dense(
      (config.output_dim,), ("embed", "code_dim"), use_bias=True, name="project"
    )(pooled)
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)

  def _table(self, name: str, rows: int) -> jax.Array:
    value = self.param(
      name,
      axes.named(nn.initializers.normal(0.02), (None, "embed")),
      (rows, self.config.transformer.embed_dim),
      self.precision.param_dtype,
    )
    return value.astype(self.precision.compute_dtype)

  def _spectrogram(self, waveform: jax.Array) -> jax.Array:
    """Log-magnitudes `[batch, frames, bands]`, about zero mean, unit scale."""
    config = self.config
    if config.bands == "log":
      bands = log_frequency.log_bands(waveform, config.mel)
    else:
      bands = spectrogram_lib.log_mel(waveform, config.mel)
    if not config.dynamic_range_db:
      return (bands - _LOG_MEL_MEAN) / _LOG_MEL_SCALE
    depth = config.dynamic_range_db * math.log(10) / 20
    loudest = bands.max(axis=(1, 2), keepdims=True)
    seen = jnp.maximum(bands - loudest, -depth) / depth + 1.0
    # In [0, 1], and mostly 0.
    return (seen - 0.2) / 0.25

  def _patches(
    self, waveform: jax.Array, num_samples: jax.Array | None
  ) -> tuple[jax.Array, jax.Array]:
    """Frames grouped into tokens, `[batch, tokens, frames * bands]`, and mask.

    Frames behind the end of a clip become 0, the mean: a clip has the same
    tokens however much padding follows it.
    """
    config = self.config
    batch, samples = waveform.shape
    if num_samples is None:
      num_samples = jnp.full((batch,), samples, jnp.int32)
    real = jnp.arange(samples) < num_samples[:, None]
    mel = self._spectrogram(jnp.where(real, waveform, 0.0))
    num_frames = -(-num_samples // config.mel.hop_length)
    real = jnp.arange(mel.shape[1]) < num_frames[:, None]
    mel = jnp.where(real[..., None], mel, 0.0)
    missing = -mel.shape[1] % config.patch_frames
    mel = jnp.pad(mel, ((0, 0), (0, missing), (0, 0)))
    patches = mel.reshape(batch, -1, config.patch_frames * mel.shape[2])
    num_tokens = -(-num_frames // config.patch_frames)
    return patches, jnp.arange(patches.shape[1]) < num_tokens[:, None]
