# SPDX-License-Identifier: Apache-2.0
"""SoundStream: waveform to acoustic codes and back (SoundStream sec. III).

Everything is causal with a granularity of one frame: the code of frame t sees
audio up to the end of frame t, and reaches audio from its start on. So the
codec streams by whole frames (`stream_encode`, `stream_decode`): the audio of
a frame out after the audio of that frame in, and nothing to wait for beyond.

Two channels go through the network as middle and side.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import rng
from musiclm_jax.layers import (
  conv,
  quantize,
  rotation,
  scalar_quantize,
  snake,
)
from musiclm_jax.networks import subband_init
from musiclm_jax.partitioning import axes

QUANTIZERS = ("rvq", "fsq")
_EDGE = ("batch", "frames", None)
# Left and right to middle and side; twice this is its own inverse.
_MID_SIDE = ((0.5, 0.5), (0.5, -0.5))


@dataclasses.dataclass(frozen=True)
class SoundStreamConfig:
  """The codec; the defaults are MusicLM's (24 kHz, 50 Hz, 12 x 1024).

  Attributes:
    sample_rate_hz: rate of the waveform.
    num_channels: of the waveform, 1 (`[batch, samples]`) or 2 (`[batch,
      samples, 2]`, left and right).
    channels: of the first convolution; doubled by each block.
    max_channels: upper bound of the doubling; 0 for none.
    strides: of the encoder blocks, the product is the frame length. The paper
      gives only the product, 480.
    dilations: of the residual units of a block.
    kernel_size: of the first, last and residual convolutions.
    code_dim: width of a latent frame.
    num_codebooks: RVQ levels.
    codebook_size: entries per level.
    codebook_decay: of the moving averages.
    dead_threshold: averaged count below which an entry is replaced.
    kmeans_iterations: of the start from the first batch.
    quantizer_dropout: train with a random number of levels per example.
    unquantized_fraction: of training examples whose latents reach the decoder
      as they are, while the codebooks follow them all the same. A short
      training otherwise settles on latents that survive a poor quantizer, and
      more codebooks add nothing.
    quantizer_kind: 'rvq' as published, or 'fsq': residual finite scalar
      quantization (`layers/scalar_quantize.py`), without codebooks.
    fsq_steps: with 'fsq', values of each axis of a level; their product is
      `codebook_size`.
    quantizer_gradient: how it passes the quantizer, 'straight_through' or
      'rotation' (`layers/rotation.py`).
    decoder_activation: 'elu' as published, or 'snake' (`layers/snake.py`).
    film: where denoising can be switched at the bottleneck: 'none',
      'encoder' (before the RVQ) or 'decoder' (after).
    conv_implementation: 'lax' or 'matmul' for the convolutions.
    transpose_implementation: 'matmul' or 'lax' for the upsampling ones.
    init: 'subband' starts as a transform codec (`networks/subband_init.py`;
      of two channels the middle), 'random' from random kernels.
  """

  sample_rate_hz: int = 24000
  num_channels: int = 1
  channels: int = 32
  max_channels: int = 0
  strides: tuple[int, ...] = (3, 4, 5, 8)
  dilations: tuple[int, ...] = (1, 3, 9)
  kernel_size: int = 7
  code_dim: int = 128
  num_codebooks: int = 12
  codebook_size: int = 1024
  codebook_decay: float = 0.99
  dead_threshold: float = 2.0
  kmeans_iterations: int = 10
  quantizer_dropout: bool = True
  unquantized_fraction: float = 0.0
  quantizer_kind: str = "rvq"
  fsq_steps: tuple[int, ...] = (4, 4, 4, 4, 4)
  quantizer_gradient: str = "straight_through"
  decoder_activation: str = "elu"
  film: str = "none"
  conv_implementation: str = "lax"
  transpose_implementation: str = "matmul"
  init: str = "subband"

  def __post_init__(self):
    object.__setattr__(self, "strides", tuple(self.strides))
    object.__setattr__(self, "dilations", tuple(self.dilations))
    object.__setattr__(self, "fsq_steps", tuple(self.fsq_steps))
    for name in ("sample_rate_hz", "channels", "kernel_size"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected >= 1")
    if self.num_channels not in (1, 2):
      raise ValueError(f"num_channels={self.num_channels}: expected 1 or 2")
    if not 0 <= self.unquantized_fraction < 1:
      raise ValueError(
        f"unquantized_fraction={self.unquantized_fraction}: expected in [0, 1)"
      )
    for name in ("strides", "dilations"):
      values = getattr(self, name)
      if not values or min(values) < 1:
        raise ValueError(f"{name}={values}: expected positive numbers")
    if self.max_channels < 0:
      raise ValueError(f"max_channels={self.max_channels}: expected >= 0")
    if self.film not in ("none", "encoder", "decoder"):
      raise ValueError(
        f"film={self.film!r}: expected 'none', 'encoder' or 'decoder'"
      )
    for name, choices in (
      ("conv_implementation", conv.IMPLEMENTATIONS),
      ("transpose_implementation", conv.IMPLEMENTATIONS),
      ("quantizer_kind", QUANTIZERS),
      ("quantizer_gradient", rotation.GRADIENTS),
      ("decoder_activation", snake.ACTIVATIONS),
    ):
      if getattr(self, name) not in choices:
        raise ValueError(
          f"{name}={getattr(self, name)!r}: expected one of {choices}"
        )
    size = math.prod(self.fsq_steps)
    if self.quantizer_kind == "fsq" and size != self.codebook_size:
      raise ValueError(
        f"fsq_steps={self.fsq_steps} make {size} codes: expected "
        f"codebook_size={self.codebook_size}"
      )
    _ = self.quantizer  # validates the fields of the quantizer

  @property
  def hop_length(self) -> int:
    """Samples per frame."""
    return math.prod(self.strides)

  @property
  def frame_rate_hz(self) -> float:
    return self.sample_rate_hz / self.hop_length

  @property
  def latency_frames(self) -> int:
    """Frames of audio that must be in before the first one is out.

    A code needs the whole of its frame; the decoder waits for nothing.
    """
    return 1

  @property
  def latency_ms(self) -> float:
    """`latency_frames` as time; what computing takes comes on top."""
    return 1000.0 * self.latency_frames / self.frame_rate_hz

  @property
  def bits_per_frame(self) -> float:
    """Bits of one codebook per frame."""
    return math.log2(self.codebook_size)

  def bitrate_bps(self, num_codebooks: int) -> float:
    """Bits per second of the codes of the first `num_codebooks` levels."""
    return num_codebooks * self.bits_per_frame * self.frame_rate_hz

  @property
  def quantizer(
    self,
  ) -> quantize.ResidualQuantizerConfig | scalar_quantize.ScalarQuantizerConfig:
    if self.quantizer_kind == "fsq":
      return scalar_quantize.ScalarQuantizerConfig(
        num_codebooks=self.num_codebooks,
        steps=self.fsq_steps,
        code_dim=self.code_dim,
        decay=self.codebook_decay,
        dropout=self.quantizer_dropout,
        gradient=self.quantizer_gradient,
      )
    return quantize.ResidualQuantizerConfig(
      num_codebooks=self.num_codebooks,
      codebook_size=self.codebook_size,
      code_dim=self.code_dim,
      decay=self.codebook_decay,
      dead_threshold=self.dead_threshold,
      kmeans_iterations=self.kmeans_iterations,
      dropout=self.quantizer_dropout,
      gradient=self.quantizer_gradient,
    )

  def num_frames(self, num_samples: int) -> int:
    """Frames of a waveform: `ceil(samples / hop_length)`."""
    return -(-num_samples // self.hop_length)

  @property
  def num_bands(self) -> list[int]:
    """Subbands in use behind each block at the start, waveform first."""
    channels = [
      self.block_channels(block + 1) for block in range(len(self.strides))
    ]
    return subband_init.num_bands(self.strides, tuple(channels))

  def block_channels(self, block: int) -> int:
    """Channels before encoder block `block` (and after the last one)."""
    channels = self.channels * 2**block
    return min(channels, self.max_channels) if self.max_channels else channels


class SoundStreamOutput(NamedTuple):
  """Reconstruction float32 `[batch, samples]` and the quantizer's output."""

  reconstruction: jax.Array
  quantizer: quantize.QuantizerOutput


def elu(x: jax.Array) -> jax.Array:
  """ELU by a plain exponential, to 6e-8 what `jax.nn.elu` gives.

  XLA's `expm1` is exact for small numbers, which no layer here needs, and on
  CPU took 6 % of encoding.
  """
  return jnp.maximum(x, 0.0) + (jnp.exp(jnp.minimum(x, 0.0)) - 1.0)


def _activate(
  config: SoundStreamConfig, kind: str, name: str, x: jax.Array
) -> jax.Array:
  """ELU, or a learned activation that becomes submodule `name`."""
  if kind == "elu":
    return elu(x)
  # As the first kernels: a start that passes the sound through is kept.
  start = 0.1 if config.init == "subband" else 1.0
  return snake.Snake(start, name=name)(x)


class ResidualUnit(nn.Module):
  """Dilated convolution, ELU, pointwise convolution, ELU, plus the input."""

  config: SoundStreamConfig
  dilation: int
  activation: str = "elu"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config = self.config
    y = conv.CausalConv1d(
      x.shape[-1],
      config.kernel_size,
      dilation=self.dilation,
      implementation=config.conv_implementation,
      name="dilated",
    )(x)
    quiet = config.init == "subband"
    y = conv.CausalConv1d(
      x.shape[-1],
      1,
      implementation="matmul",
      kernel_init=nn.initializers.zeros if quiet else None,
      name="pointwise",
    )(_activate(config, self.activation, "inner", y))
    return x + _activate(config, self.activation, "outer", y)


class Encoder(nn.Module):
  """Waveform to latents `[batch, frames, code_dim]`."""

  config: SoundStreamConfig

  @nn.compact
  def __call__(self, waveform: jax.Array) -> jax.Array:
    config = self.config
    options = {"implementation": config.conv_implementation}
    subband = config.init == "subband"
    bands = config.num_bands
    init = None
    if subband:
      init = subband_init.passing(
        config.kernel_size,
        config.num_channels,
        config.block_channels(0),
        1,
        subband_init.GAIN,
      )
    tail = () if config.num_channels == 1 else (config.num_channels,)
    if waveform.ndim < 2 or waveform.shape[2:] != tail:
      raise ValueError(
        f"waveform has shape {waveform.shape}: expected [batch, samples"
        f"{''.join(f', {size}' for size in tail)}], as num_channels="
        f"{config.num_channels}"
      )
    x = waveform @ jnp.asarray(_MID_SIDE) if tail else waveform[..., None]
    x = conv.CausalConv1d(
      config.block_channels(0),
      config.kernel_size,
      kernel_init=init,
      name="first",
      **options,
    )(x)
    for block, stride in enumerate(config.strides):
      for unit, dilation in enumerate(config.dilations):
        x = ResidualUnit(config, dilation, name=f"block_{block}_unit_{unit}")(x)
      features = config.block_channels(block + 1)
      if subband:
        init = subband_init.split(stride, x.shape[-1], features, bands[block])
      x = conv.CausalConv1d(
        features,
        2 * stride,
        stride=stride,
        kernel_init=init,
        name=f"block_{block}_down",
        **options,
      )(elu(x))
      x = axes.constrain(x, _EDGE)
    if subband:
      init = subband_init.passing(
        3, x.shape[-1], config.code_dim, bands[-1], subband_init.LATENT_GAIN
      )
    return conv.CausalConv1d(
      config.code_dim, 3, kernel_init=init, name="last", **options
    )(elu(x))


class Decoder(nn.Module):
  """Latents `[batch, frames, code_dim]` to a waveform."""

  config: SoundStreamConfig

  @nn.compact
  def __call__(self, latents: jax.Array) -> jax.Array:
    config = self.config
    options = {"implementation": config.conv_implementation}
    kind = config.decoder_activation
    subband = config.init == "subband"
    bands = config.num_bands
    channels = config.block_channels(len(config.strides))
    init = None
    if subband:
      init = subband_init.passing(
        config.kernel_size,
        config.code_dim,
        channels,
        bands[-1],
        1.0 / subband_init.LATENT_GAIN,
      )
    x = conv.CausalConv1d(
      channels, config.kernel_size, kernel_init=init, name="first", **options
    )(latents)
    for block, stride in reversed(list(enumerate(config.strides))):
      features = config.block_channels(block)
      if subband:
        overlap = dict(enumerate(subband_init.OVERLAPS)).get(block, 0.0)
        init = subband_init.join(
          stride, x.shape[-1], features, bands[block], overlap
        )
      x = conv.CausalConvTranspose1d(
        features,
        stride,
        kernel_init=init,
        implementation=config.transpose_implementation,
        name=f"block_{block}_up",
      )(_activate(config, kind, f"block_{block}_activation", x))
      for unit, dilation in enumerate(config.dilations):
        x = ResidualUnit(
          config, dilation, kind, name=f"block_{block}_unit_{unit}"
        )(x)
      x = axes.constrain(x, _EDGE)
    if subband:
      init = subband_init.passing(
        config.kernel_size,
        x.shape[-1],
        config.num_channels,
        1,
        1.0 / subband_init.GAIN,
      )
    else:
      # Residual blocks add up: unscaled, the first output would be far louder
      # than music and the mel loss spend its first steps on the level.
      init = nn.initializers.variance_scaling(1e-3, "fan_in", "uniform")
    x = conv.CausalConv1d(
      config.num_channels,
      config.kernel_size,
      kernel_init=init,
      name="last",
      **options,
    )(_activate(config, kind, "last_activation", x))
    if config.num_channels == 1:
      return x[..., 0]
    return x @ (2.0 * jnp.asarray(_MID_SIDE))


class Film(nn.Module):
  """Scale and shift per channel, chosen by a flag (SoundStream sec. III-F)."""

  @nn.compact
  def __call__(self, x: jax.Array, denoise: jax.Array) -> jax.Array:
    """`x` `[batch, frames, dim]`, `denoise` bool `[batch]` or with frames."""
    flag = jax.nn.one_hot(denoise.astype(jnp.int32), 2, dtype=x.dtype)
    if flag.ndim == 2:
      flag = flag[:, None]
    init = axes.named(nn.initializers.normal(0.01), (None, "code_dim"))
    kernel = self.param("kernel", init, (2, 2 * x.shape[-1]))
    gamma, beta = jnp.split(flag @ kernel, 2, axis=-1)
    return (1.0 + gamma) * x + beta


class SoundStream(nn.Module):
  """The whole codec. Collections: 'params' and 'codebooks'.

  A waveform is `[batch, samples]`, or `[batch, samples, 2]` with two channels
  (`SoundStreamConfig.num_channels`).
  """

  config: SoundStreamConfig

  def setup(self):
    self.encoder = Encoder(self.config)
    if self.config.quantizer_kind == "fsq":
      self.quantizer = scalar_quantize.ResidualScalarQuantizer(
        self.config.quantizer
      )
    else:
      self.quantizer = quantize.ResidualQuantizer(self.config.quantizer)
    self.decoder = Decoder(self.config)
    if self.config.film != "none":
      self.film = Film()

  def _switch(self, side: str, x: jax.Array, denoise) -> jax.Array:
    if self.config.film != side:
      return x
    if denoise is None:
      denoise = jnp.zeros(x.shape[:1], bool)
    return self.film(x, denoise)

  def latents(
    self, waveform: jax.Array, denoise: jax.Array | None = None
  ) -> jax.Array:
    """float32 `[batch, samples]` to `[batch, frames, code_dim]`, unquantized.

    Args:
      waveform: in [-1, 1].
      denoise: bool `[batch]` or `[batch, frames]`, with film='encoder' only.
    """
    x = self.encoder(waveform.astype(jnp.float32))
    return self._switch("encoder", x, denoise)

  def encode(
    self, waveform: jax.Array, denoise: jax.Array | None = None
  ) -> jax.Array:
    """Waveform `[batch, samples]` to codes.

    Returns:
      int32 `[batch, ceil(samples / hop_length), codebooks]`.
    """
    return self.quantizer.encode(self.latents(waveform, denoise))

  def decode(
    self, codes: jax.Array, denoise: jax.Array | None = None
  ) -> jax.Array:
    """Codes to waveform.

    Args:
      codes: int32 `[batch, frames, levels]` of the first `levels` codebooks.
      denoise: bool `[batch]` or `[batch, frames]`, with film='decoder' only.

    Returns:
      float32 `[batch, frames * hop_length]`; crop it to the length wanted.
    """
    latents = self.quantizer.decode(codes)
    return self.decoder(self._switch("decoder", latents, denoise))

  def __call__(
    self,
    waveform: jax.Array,
    train: bool = False,
    key: jax.Array | None = None,
    denoise: jax.Array | None = None,
  ) -> SoundStreamOutput:
    """Encodes, quantizes and decodes.

    Args:
      waveform: float32 `[batch, samples]`.
      train: quantizer dropout and codebook updates; needs `key`.
      key: typed key.
      denoise: bool `[batch]` or `[batch, frames]`.

    Returns:
      A reconstruction as long as `waveform`, and the quantizer's output.
    """
    latents = self.latents(waveform, denoise)
    quantized = self.quantizer(latents, train, key)
    heard = quantized.quantized
    if train and self.config.unquantized_fraction > 0:
      key = jax.random.key(0) if key is None else key
      draw = jax.random.uniform(rng.named(key, "unquantized"), heard.shape[:1])
      skip = draw < self.config.unquantized_fraction
      heard = jnp.where(skip[:, None, None], latents, heard)
    latents = self._switch("decoder", heard, denoise)
    out = self.decoder(latents)[:, : waveform.shape[1]]
    return SoundStreamOutput(out, quantized)

  @nn.nowrap
  def stream_state(
    self, variables: Mapping[str, Any], batch_size: int, method: str
  ) -> dict[str, Any]:
    """The state of a stream before its first frame: zeros.

    Args:
      variables: unboxed 'params' and 'codebooks', or their shapes.
      batch_size: streams side by side.
      method: 'encode' or 'decode'.

    Returns:
      A pytree of float32 arrays `[batch, time, channels]`, the last inputs of
      every convolution.
    """
    config = self.config
    if method == "encode":
      shape, dtype = (batch_size, config.hop_length), jnp.float32
      shape += () if config.num_channels == 1 else (config.num_channels,)
    else:
      shape, dtype = (batch_size, 1, 1), jnp.int32
    _, state = jax.eval_shape(
      lambda v, x: self._stream(v, {}, x, method),
      variables,
      jax.ShapeDtypeStruct(shape, dtype),
    )
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)

  @nn.nowrap
  def _stream(self, variables, state, x, method):
    out, updates = self.apply(
      {**variables, conv.STREAM: state}, x, method=method, mutable=[conv.STREAM]
    )
    return out, updates[conv.STREAM]

  @nn.nowrap
  def stream_encode(
    self,
    variables: Mapping[str, Any],
    state: Mapping[str, Any],
    waveform: jax.Array,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The next frames of a stream; pure, for `jax.jit` and `jax.lax.scan`.

    Chunk by chunk, in any cut at frame borders, this gives what `encode`
    gives for the whole.

    Args:
      variables: unboxed 'params' and 'codebooks'.
      state: of `stream_state`, or of the call before.
      waveform: float32 `[batch, frames * hop_length]` (and channels).

    Returns:
      Codes int32 `[batch, frames, codebooks]`, the new state.

    Raises:
      ValueError: if the samples are no whole frames.
    """
    return self._stream(variables, state, waveform, "encode")

  @nn.nowrap
  def stream_decode(
    self,
    variables: Mapping[str, Any],
    state: Mapping[str, Any],
    codes: jax.Array,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """As `stream_encode`, from codes `[batch, frames, levels]` to waveform."""
    return self._stream(variables, state, codes, "decode")
