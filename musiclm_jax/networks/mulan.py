# SPDX-License-Identifier: Apache-2.0
"""MuLan: waveforms and texts in, unit vectors of one joint space out.

Both towers end in a linear map to 128 dimensions and an l2 norm (MuLan
sec. 3.1). Augmentation (SpecAugment, gain, equaliser, low pass, noise) runs on
the spectrogram, on the device: all of it costs a few element-wise products.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.audio import spectrogram as spectrogram_lib
from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import rng
from musiclm_jax.layers import dense
from musiclm_jax.networks import mulan_audio, mulan_text
from musiclm_jax.partitioning import axes

_TOWERS = ("resnet", "ast")
_TEXT_TOWERS = ("transformer", "bert")
# Log-mels of music lie around -5 +- 2.5: brings them to zero mean, unit scale.
_LOG_MEL_MEAN, _LOG_MEL_SCALE = -5.0, 2.5


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """Distortions of a training spectrogram; each may be switched off by 0.

  Beside SpecAugment, the range of what a lossy codec or another recording
  chain does: embeddings of decoded audio must stay where they were.

  Attributes:
    gain_db: largest change of level, up or down.
    equalizer_db: largest change of any band, by a smooth random curve.
    low_pass_rate: share of clips whose upper bands are cut, anywhere above
      the lowest third.
    noise_db: loudest added noise, below the clip's loudest band.
    num_time_masks: masked spans of frames.
    time_mask_frames: longest such span.
    num_band_masks: masked spans of bands.
    band_mask_bands: longest such span.
  """

  gain_db: float = 6.0
  equalizer_db: float = 6.0
  low_pass_rate: float = 0.3
  noise_db: float = 30.0
  num_time_masks: int = 2
  time_mask_frames: int = 64
  num_band_masks: int = 2
  band_mask_bands: int = 8

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 0:
        raise ValueError(
          f"{field.name}={getattr(self, field.name)}: expected 0 (off) or more"
        )
    if self.low_pass_rate > 1:
      raise ValueError(
        f"low_pass_rate={self.low_pass_rate}: expected a rate in [0, 1]"
      )


@dataclasses.dataclass(frozen=True)
class MuLanConfig:
  """Both towers.

  Attributes:
    audio_tower: 'resnet' or 'ast'.
    resnet: its sizes.
    ast: its sizes.
    text_tower: 'transformer', trained from the start, or 'bert'.
    text: sizes of the former.
    bert: sizes of the latter.
    mel: the spectrogram: 16 kHz, 25 ms window, 10 ms hop; 64 bands for the
      residual network, 128 for AST as published.
    augment: distortions in training.
    output_dim: width of the joint space.
    window_secs: audio one embedding describes (MusicLM sec. 3.1).
    initial_temperature: of the contrastive loss; learned from there.
  """

  audio_tower: str = "resnet"
  resnet: mulan_audio.ResNetConfig = mulan_audio.ResNetConfig()
  ast: mulan_audio.AstConfig = mulan_audio.AstConfig()
  text_tower: str = "transformer"
  text: mulan_text.TextTowerConfig = mulan_text.TextTowerConfig()
  bert: mulan_text.BertTowerConfig = mulan_text.BertTowerConfig()
  mel: spectrogram_lib.LogMelConfig = spectrogram_lib.LogMelConfig(
    sample_rate_hz=16000,
    num_mels=64,
    frame_length=400,
    hop_length=160,
    low_hz=60.0,
  )
  augment: AugmentConfig = AugmentConfig()
  output_dim: int = 128
  window_secs: float = 10.0
  initial_temperature: float = 0.1

  def __post_init__(self):
    if self.audio_tower not in _TOWERS:
      raise ValueError(
        f"audio_tower={self.audio_tower!r}: expected one of {_TOWERS}"
      )
    if self.text_tower not in _TEXT_TOWERS:
      raise ValueError(
        f"text_tower={self.text_tower!r}: expected one of {_TEXT_TOWERS}"
      )
    if self.output_dim < 1:
      raise ValueError(
        f"output_dim={self.output_dim}: expected a positive number"
      )
    if not self.window_secs > 0:
      raise ValueError(f"window_secs={self.window_secs}: expected > 0")
    if not 0 < self.initial_temperature <= 1:
      raise ValueError(
        f"initial_temperature={self.initial_temperature}: expected in (0, 1]"
      )

  @property
  def active_text(
    self,
  ) -> mulan_text.TextTowerConfig | mulan_text.BertTowerConfig:
    """Sizes of the text tower that is used."""
    return self.bert if self.text_tower == "bert" else self.text


def _mask_spans(
  key: jax.Array, shape: tuple[int, int], num_spans: int, longest: int
) -> jax.Array:
  """bool `[batch, length]`, True inside random spans of each row."""
  batch, length = shape
  longest = min(longest, length)
  widths = jax.random.uniform(
    rng.named(key, "width"), (batch, num_spans, 1), maxval=longest + 1.0
  )
  starts = jax.random.uniform(
    rng.named(key, "start"), (batch, num_spans, 1)
  ) * (length - widths)
  at = jnp.arange(length)
  return ((at >= starts) & (at < starts + widths)).any(1)


def augment(
  log_mel: jax.Array, config: AugmentConfig, key: jax.Array
) -> jax.Array:
  """Distorts log-mel spectrograms, each clip in its own way.

  Args:
    log_mel: float32 `[batch, frames, bands]`, natural log of magnitudes.
    config: how strongly.
    key: typed key.

  Returns:
    The same shape.
  """
  batch, frames, bands = log_mel.shape
  decibel = jnp.log(10.0) / 20.0

  def uniform(name, shape, low=-1.0, high=1.0):
    return jax.random.uniform(
      rng.named(key, name), (batch, *shape), minval=low, maxval=high
    )

  gain = uniform("gain", (1, 1)) * config.gain_db
  # A curve through five random points along the bands.
  knots = uniform("equalizer", (5,)) * config.equalizer_db
  at = jnp.linspace(0.0, 4.0, bands)
  hats = jnp.maximum(0.0, 1.0 - jnp.abs(at - jnp.arange(5.0)[:, None]))
  x = log_mel + (gain + (knots @ hats)[:, None]) * decibel
  cut = uniform("cut", (1, 1), bands / 3, float(bands))
  cut = jnp.where(
    uniform("low_pass", (1, 1), 0.0) < config.low_pass_rate, cut, bands
  )
  # 6 dB per band beyond the edge.
  beyond = jnp.maximum(0.0, jnp.arange(bands) - cut)
  x = x - 6.0 * decibel * beyond
  if config.noise_db > 0:
    below = config.noise_db + uniform("noise_level", (1, 1), 0.0) * 30.0
    noise = x.max((1, 2), keepdims=True) - below * decibel
    # Magnitudes of filtered noise spread by a few decibels.
    spread = jax.random.normal(rng.named(key, "noise"), x.shape) * 0.4
    x = jnp.logaddexp(x, noise + spread)
  hidden = jnp.zeros((batch, frames, bands), bool)
  if config.num_time_masks:
    spans = (config.num_time_masks, config.time_mask_frames)
    times = _mask_spans(rng.named(key, "times"), (batch, frames), *spans)
    hidden |= times[:, :, None]
  if config.num_band_masks:
    spans = (config.num_band_masks, config.band_mask_bands)
    masked = _mask_spans(rng.named(key, "bands"), (batch, bands), *spans)
    hidden |= masked[:, None, :]
  return jnp.where(hidden, x.mean((1, 2), keepdims=True), x)


def _normalize(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)


class MuLan(nn.Module):
  """The two towers.

  Methods for `apply`: `embed_audio`, `embed_text`, and both at once by
  `__call__`. With `deterministic=False` the random streams 'augment' and
  'dropout' are read.

  Attributes:
    config: sizes.
    precision: dtypes.
  """

  config: MuLanConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  def setup(self):
    config = self.config
    if config.audio_tower == "resnet":
      self.audio = mulan_audio.ResNet(config.resnet, self.precision)
    else:
      self.audio = mulan_audio.Ast(config.ast, self.precision)
    self.audio_project = dense.Dense(
      (config.output_dim,), ("embed", "code_dim"), use_bias=True
    )
    text_tower = mulan_text.TextTower
    if config.text_tower == "bert":
      text_tower = mulan_text.BertTower
    self.text = text_tower(
      config.active_text, config.output_dim, self.precision
    )
    start = math.log(config.initial_temperature)
    # One element, not a scalar: artefacts store arrays of rank 1 and up.
    self.log_temperature = self.param(
      "log_temperature",
      axes.named(nn.initializers.constant(start), (None,)),
      (1,),
    )

  def embed_audio(
    self, waveform: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Embeds clips.

    Args:
      waveform: float32 `[batch, samples]` in [-1, 1] at the rate of `mel`.
      deterministic: no augmentation.

    Returns:
      float32 `[batch, output_dim]` of unit length.
    """
    mel = spectrogram_lib.log_mel(waveform, self.config.mel)
    if not deterministic:
      mel = augment(mel, self.config.augment, self.make_rng("augment"))
    mel = (mel - _LOG_MEL_MEAN) / _LOG_MEL_SCALE
    mel = axes.constrain(mel, ("batch", "frames", None))
    return _normalize(self.audio_project(self.audio(mel, deterministic)))

  def embed_text(
    self, tokens: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Embeds texts.

    Args:
      tokens: int32 `[batch, length]`, 0 = padding.
      deterministic: no dropout.

    Returns:
      float32 `[batch, output_dim]` of unit length.
    """
    return _normalize(self.text(tokens, deterministic))

  def __call__(
    self, waveform: jax.Array, tokens: jax.Array, deterministic: bool = True
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embeds pairs for the contrastive loss; see the two methods above.

    Returns:
      Audio and text embeddings, and the learned log temperature (scalar).
    """
    return (
      self.embed_audio(waveform, deterministic),
      self.embed_text(tokens, deterministic),
      self.log_temperature[0],
    )
