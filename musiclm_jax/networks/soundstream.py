# SPDX-License-Identifier: Apache-2.0
"""SoundStream: waveform to acoustic codes and back (SoundStream sec. III).

Everything is causal with a granularity of one frame: the code of frame t sees
audio up to the end of frame t, and reaches audio from its start on. So the
codec streams by whole frames (`stream_encode`, `stream_decode`): the audio of
a frame out after the audio of that frame in, and nothing to wait for beyond.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.core import rng
from musiclm_jax.layers import conv, quantize, scalar_quantize
from musiclm_jax.networks import soundstream_coders, soundstream_config

# Its name in gin files.
SoundStreamConfig = soundstream_config.SoundStreamConfig


class SoundStreamOutput(NamedTuple):
  """Reconstruction float32 `[batch, samples]` and the quantizer's output."""

  reconstruction: jax.Array
  quantizer: quantize.QuantizerOutput


class SoundStream(nn.Module):
  """The whole codec. Collections: 'params' and 'codebooks'.

  A waveform is `[batch, samples]`, or `[batch, samples, 2]` with two channels
  (`SoundStreamConfig.num_channels`).
  """

  config: SoundStreamConfig

  def setup(self):
    self.encoder = soundstream_coders.Encoder(self.config)
    if self.config.quantizer_kind == "fsq":
      self.quantizer = scalar_quantize.ResidualScalarQuantizer(
        self.config.quantizer
      )
    else:
      self.quantizer = quantize.ResidualQuantizer(self.config.quantizer)
    self.decoder = soundstream_coders.Decoder(self.config)
    if self.config.film != "none":
      self.film = soundstream_coders.Film()

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
