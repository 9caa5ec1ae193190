# SPDX-License-Identifier: Apache-2.0
"""What a SoundStream consists of, and the rates that follow from it."""

import dataclasses
import math

from musiclm_jax.layers import conv, quantize, rotation, scalar_quantize, snake
from musiclm_jax.networks import subband_init

QUANTIZERS = ("rvq", "fsq")


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
