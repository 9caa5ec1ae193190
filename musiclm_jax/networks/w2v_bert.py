# SPDX-License-Identifier: Apache-2.0
"""w2v-BERT: waveforms in; training outputs, or features at a tap, out.

Log-mel frames at 100 Hz pass two strided convolutions to 25 Hz. One path
quantizes them into target ids; the other masks them and runs a contrastive,
then a masked-prediction Conformer stack (w2v-BERT, arXiv 2108.06209 sec. 3).
MusicLM's semantic tokens are clusters of the output of a middle block of the
second stack (MusicLM sec. 3.1).
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.audio import spectrogram as spectrogram_lib
from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import rng
from musiclm_jax.layers import conformer, conv2d, dense, gumbel_quantize
from musiclm_jax.partitioning import axes

# Log-mels of music lie around -5 +- 2.5: brings them to zero mean, unit scale.
_LOG_MEL_MEAN, _LOG_MEL_SCALE = -5.0, 2.5
_MEL_NORMALIZATIONS = ("corpus", "clip")
# Random vectors that stand for masked frames; true frames have unit scale.
_MASK_SCALE = 0.1
_SUBSAMPLING = 4
STACKS = ("contrastive", "masked_prediction")


@dataclasses.dataclass(frozen=True)
class W2vBertConfig:
  """Sizes of w2v-BERT; the defaults are XL (0.6 B parameters).

  Attributes:
    mel: input spectrogram; frames of the network are 4 hops.
    mel_normalization: 'corpus' subtracts a constant; 'clip' the mean of each
      band over the clip (as Conformer recognisers do), so that features tell
      what changes within a clip from what its instruments sound like.
    conv_channels: of the two strided 3x3 convolutions.
    contrastive: Conformer stack under the contrastive loss.
    masked_prediction: Conformer stack above it.
    codebook_size: target ids.
    code_dim: width of a code vector.
    tap_layer: what `features` returns: a block of `masked_prediction`, from 1,
      or a name: 'masked_prediction/7', 'contrastive/12'.
    mask_start_prob: probability of a masked span to start at a frame.
    mask_span_frames: frames of a masked span; spans may overlap.
  """

  mel: spectrogram_lib.LogMelConfig = spectrogram_lib.LogMelConfig(
    sample_rate_hz=16000, num_mels=80, frame_length=400, hop_length=160
  )
  mel_normalization: str = "corpus"
  conv_channels: tuple[int, ...] = (128, 32)
  contrastive: conformer.ConformerConfig = conformer.ConformerConfig()
  masked_prediction: conformer.ConformerConfig = conformer.ConformerConfig()
  codebook_size: int = 1024
  code_dim: int = 1024
  tap_layer: int | str = 7
  mask_start_prob: float = 0.065
  mask_span_frames: int = 10

  def __post_init__(self):
    object.__setattr__(self, "conv_channels", tuple(self.conv_channels))
    if self.mel_normalization not in _MEL_NORMALIZATIONS:
      raise ValueError(
        f"mel_normalization={self.mel_normalization!r}: expected one of "
        f"{_MEL_NORMALIZATIONS}"
      )
    if len(self.conv_channels) != 2 or min(self.conv_channels) < 1:
      raise ValueError(
        f"conv_channels={self.conv_channels}: expected two positive numbers"
      )
    for name in ("codebook_size", "code_dim", "mask_span_frames"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name}={getattr(self, name)}: expected a positive number"
        )
    if self.contrastive.embed_dim != self.masked_prediction.embed_dim:
      raise ValueError(
        f"masked_prediction.embed_dim={self.masked_prediction.embed_dim}: "
        f"expected {self.contrastive.embed_dim}, that of contrastive"
      )
    stack, _, block = self._tap_name.partition("/")
    layers = getattr(self, stack).num_layers if stack in STACKS else 0
    if not (block.isascii() and block.isdigit() and 1 <= int(block) <= layers):
      choices = [f"{s}/1 to {s}/{getattr(self, s).num_layers}" for s in STACKS]
      raise ValueError(
        f"tap_layer={self.tap_layer!r}: expected {' or '.join(choices)}, or "
        "the number of a block of masked_prediction"
      )
    if not 0 < self.mask_start_prob < 1:
      raise ValueError(
        f"mask_start_prob={self.mask_start_prob}: expected in (0, 1)"
      )

  @property
  def _tap_name(self) -> str:
    if isinstance(self.tap_layer, str):
      return self.tap_layer
    return f"{STACKS[1]}/{self.tap_layer}"

  @property
  def tap(self) -> tuple[str, int]:
    """The tapped stack and the index of its block, from 0."""
    stack, _, block = self._tap_name.partition("/")
    return stack, int(block) - 1

  @property
  def sample_rate_hz(self) -> int:
    """Rate of the waveforms."""
    return self.mel.sample_rate_hz

  @property
  def feature_dim(self) -> int:
    """Width of what `features` returns."""
    return self.masked_prediction.embed_dim

  @property
  def samples_per_frame(self) -> int:
    """Samples of one network frame: 640, that is 25 Hz at 16 kHz."""
    return _SUBSAMPLING * self.mel.hop_length

  @property
  def frame_rate_hz(self) -> float:
    return self.mel.sample_rate_hz / self.samples_per_frame


class W2vBertOutput(NamedTuple):
  """What training reads; `[batch, frames, ...]`.

  Attributes:
    masked: bool, True where the input frame was replaced.
    context: float32 `[..., code_dim]`, contrastive stack, projected.
    codes: float32 `[..., code_dim]`, code vectors of the unmasked frames.
    code_ids: int32, which codes they are.
    target_ids: int32, likeliest codes, without the Gumbel noise.
    quantizer_logits: float32 `[..., codebook_size]`.
    prediction_logits: float32 `[..., codebook_size]`, of masked prediction.
    top: `[..., embed]`, last block of masked prediction.
  """

  masked: jax.Array
  context: jax.Array
  codes: jax.Array
  code_ids: jax.Array
  target_ids: jax.Array
  quantizer_logits: jax.Array
  prediction_logits: jax.Array
  top: jax.Array


def span_mask(
  key: jax.Array, shape: tuple[int, int], start_prob: float, span: int
) -> jax.Array:
  """Random masked spans, overlaps allowed (w2v-BERT sec. 4.2).

  Args:
    key: typed key.
    shape: `(batch, frames)`.
    start_prob: probability of a span to start at a frame.
    span: frames of a span, cut at the end of the row.

  Returns:
    bool `[batch, frames]`.
  """
  starts = jax.random.bernoulli(key, start_prob, shape)
  count = jnp.cumsum(starts, axis=1)
  before = jnp.pad(count, ((0, 0), (span, 0)))[:, : shape[1]]
  return count > before


class W2vBert(nn.Module):
  """The network; `__call__` is the training forward, `features` inference.

  Attributes:
    config: sizes.
    precision: dtypes.
  """

  config: W2vBertConfig
  precision: precision_lib.Precision = precision_lib.Precision()

  def setup(self):
    config, precision = self.config, self.precision

    def conv(channels):
      return nn.Conv(
        channels,
        (3, 3),
        2,
        # Every output frame is centred between the same two input frames,
        # whatever the number of frames.
        padding=((0, 1), (0, 1)),
        dtype=precision.compute_dtype,
        param_dtype=precision.param_dtype,
        kernel_init=axes.named(
          nn.initializers.he_normal(),
          ("kernel_time", "kernel_freq", "conv_in", "conv_out"),
        ),
        bias_init=axes.named(nn.initializers.zeros, ("conv_out",)),
        conv_general_dilated=conv2d.general_dilated,
      )

    def linear(features, names):
      return dense.Dense((features,), names, precision, use_bias=True)

    self.subsample = [conv(channels) for channels in config.conv_channels]
    self.feature_norm = nn.LayerNorm(
      dtype=precision.compute_dtype,
      param_dtype=precision.param_dtype,
      scale_init=axes.named(nn.initializers.ones, ("conv_out",)),
      bias_init=axes.named(nn.initializers.zeros, ("conv_out",)),
    )
    dim = config.contrastive.embed_dim
    self.input_project = linear(dim, ("conv_out", "embed"))
    self.contrastive = conformer.ConformerStack(config.contrastive, precision)
    self.masked_prediction = conformer.ConformerStack(
      config.masked_prediction, precision
    )
    self.context_project = linear(config.code_dim, ("embed", "code_dim"))
    self.prediction = linear(config.codebook_size, ("embed", "codebook"))
    self.quantizer = gumbel_quantize.GumbelQuantizer(
      config.codebook_size, config.code_dim, precision
    )

  def frames(
    self, waveform: jax.Array, mask: jax.Array | None = None
  ) -> jax.Array:
    """Unmasked 25 Hz features `[batch, frames, channels * bands]`."""
    num_frames = waveform.shape[1] // self.config.samples_per_frame
    mel = spectrogram_lib.log_mel(waveform, self.config.mel)
    mel = mel[:, : num_frames * _SUBSAMPLING]
    kept = None
    if mask is not None:
      kept = jnp.repeat(mask, _SUBSAMPLING, axis=1)[..., None]
      mel = jnp.where(kept, mel, 0)
    mean = _LOG_MEL_MEAN
    if self.config.mel_normalization == "clip":
      mean = jnp.mean(mel, axis=1, keepdims=True, where=kept)
    x = (mel - mean) / _LOG_MEL_SCALE
    if mask is not None:
      x = jnp.where(kept, x, 0)
    x = x[..., None].astype(self.precision.compute_dtype)
    for conv in self.subsample:
      x = nn.relu(conv(x))
      if mask is not None:
        # Else a bias would stand in padding and be seen by the next kernel.
        factor = x.shape[1] // num_frames
        x = jnp.where(jnp.repeat(mask, factor, axis=1)[..., None, None], x, 0)
    return self.feature_norm(x.reshape(*x.shape[:2], -1))

  def __call__(
    self,
    waveform: jax.Array,
    mask: jax.Array | None = None,
    gumbel_temperature: jax.Array | float = 1.0,
    deterministic: bool = False,
  ) -> W2vBertOutput:
    """The training forward pass; reads the random stream 'mask'.

    Args:
      waveform: float32 `[batch, samples]` in [-1, 1] at the rate of `mel`.
      mask: bool `[batch, samples // samples_per_frame]`, True on frames that
        count.
      gumbel_temperature: of the quantizer.
      deterministic: no dropout, no Gumbel noise; masks are drawn anyway. Else
        the random streams 'dropout' and 'gumbel' are read.

    Returns:
      See `W2vBertOutput`; frames out of `mask` are never `masked`.
    """
    features = self.frames(waveform, mask)
    noise_key = None if deterministic else self.make_rng("gumbel")
    codes, code_ids, quantizer_logits = self.quantizer(
      features, gumbel_temperature, noise_key
    )
    key = self.make_rng("mask")
    masked = span_mask(
      rng.named(key, "spans"),
      features.shape[:2],
      self.config.mask_start_prob,
      self.config.mask_span_frames,
    )
    if mask is not None:
      masked &= mask
    noise = jax.random.normal(rng.named(key, "vectors"), features.shape)
    noise = (noise * _MASK_SCALE).astype(features.dtype)
    x = self.input_project(jnp.where(masked[..., None], noise, features))
    context, _ = self.contrastive(x, mask, deterministic)
    top, _ = self.masked_prediction(context, mask, deterministic)
    return W2vBertOutput(
      masked=masked,
      context=self.context_project(context).astype(jnp.float32),
      codes=codes,
      code_ids=code_ids,
      target_ids=quantizer_logits.argmax(-1).astype(jnp.int32),
      quantizer_logits=quantizer_logits,
      prediction_logits=self.prediction(top).astype(jnp.float32),
      top=top,
    )

  def features(
    self, waveform: jax.Array, mask: jax.Array | None = None
  ) -> jax.Array:
    """Output of the tapped block, with nothing masked.

    Args:
      waveform: float32 `[batch, samples]` in [-1, 1] at the rate of `mel`.
      mask: bool `[batch, samples // samples_per_frame]`, False on padding.

    Returns:
      float32 `[batch, samples // samples_per_frame, embed]`: 10 s give 250
      frames.
    """
    x = self.input_project(self.frames(waveform, mask))
    stack, block = self.config.tap
    context, outputs = self.contrastive(x, mask)
    if stack != "contrastive":
      # Unrolled blocks above the tap are dead code and cost nothing.
      _, outputs = self.masked_prediction(context, mask)
    return outputs[block].astype(jnp.float32)
