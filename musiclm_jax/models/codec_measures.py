# SPDX-License-Identifier: Apache-2.0
"""What the codec's training says of itself: metrics, sounds, pictures.

Waveforms and what the codec made of them flow in; nothing here is trained on.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.audio import spectrogram
from musiclm_jax.core import protocols
from musiclm_jax.models import codec_losses
from musiclm_jax.networks import soundstream

# By level of the quantizer, as `quantize.QuantizerOutput` names them.
_OF_CODEBOOKS = ("usage", "perplexity", "average_perplexity", "replaced")
_MAX_SOUNDS = 4


def codec_variables(variables: protocols.Variables) -> dict[str, Any]:
  """Those of the generator, as its network takes them."""
  return {
    "params": variables["params"]["generator"],
    "codebooks": variables["codebooks"],
  }


class CodecMeasures:
  """Measures of one codec."""

  def __init__(self, codec: soundstream.SoundStream, mel_floor: float):
    """Computes nothing yet.

    Args:
      codec: the network.
      mel_floor: smallest mel magnitude inside a logarithm.
    """
    self._codec, self._config = codec, codec.config
    self._mel = spectrogram.LogMelConfig(
      sample_rate_hz=self._config.sample_rate_hz,
      frame_length=1024,
      hop_length=256,
      floor=mel_floor,
    )

  def metrics(
    self,
    heard: jax.Array,
    waveform: jax.Array,
    estimate: jax.Array,
    quantizer: Any,
    parts: Mapping[str, jax.Array],
  ) -> dict[str, protocols.Mean]:
    """All metrics as `Mean`s weighted by the batch size.

    Args:
      heard: float32 `[batch, samples]`, what the codec was given.
      waveform: same shape, what it should give.
      estimate: same shape, what it gave.
      quantizer: output of its quantizer.
      parts: further metrics.
    """
    distance = jnp.abs(
      spectrogram.log_mel(codec_losses.as_rows(waveform), self._mel)
      - spectrogram.log_mel(codec_losses.as_rows(estimate), self._mel)
    )
    values = dict(parts)
    values["commitment"] = quantizer.commitment
    values["log_mel_distance"] = distance.mean()
    values["si_snr_db"] = codec_losses.si_snr_db(waveform, estimate).mean()
    values["input_finite"] = jnp.isfinite(heard).all().astype(jnp.float32)
    for name in _OF_CODEBOOKS:
      by_level = getattr(quantizer, name)
      for level in range(self._config.num_codebooks):
        values[f"codebook_{name}/{level:02d}"] = by_level[level]
    count = jnp.float32(waveform.shape[0])
    return {
      name: protocols.Mean(jax.lax.stop_gradient(value) * count, count)
      for name, value in values.items()
    }

  def distances_by_codebooks(
    self,
    variables: protocols.Variables,
    waveform: jax.Array,
    num_codebooks: tuple[int, ...],
  ) -> jax.Array:
    """See `codec_gan.CodecGAN.distances_by_codebooks`."""
    codec = codec_variables(variables)

    def spectrum(sound):
      rows = spectrogram.log_mel(codec_losses.as_rows(sound), self._mel)
      # Middle and side of two channels stand one below the other.
      return rows.reshape(-1, waveform.shape[0], *rows.shape[1:])

    codes = self._codec.apply(codec, waveform, method=self._codec.encode)
    original, distances = spectrum(waveform), []
    for count in num_codebooks:
      decoded = self._codec.apply(
        codec, codes[..., :count], method=self._codec.decode
      )[:, : waveform.shape[1]]
      difference = jnp.abs(original - spectrum(decoded))
      distances.append(difference.mean((0, 2, 3)))
    return jnp.stack(distances, 1)

  def media(
    self, variables: protocols.Variables, waveform: jax.Array
  ) -> dict[str, Any]:
    """Originals and reconstructions; see `codec_gan.CodecGAN.media`."""
    waveform = waveform[:_MAX_SOUNDS]
    estimate = self._codec.apply(
      codec_variables(variables), waveform, train=False
    ).reconstruction
    media = {}
    for name, sound in (("original", waveform), ("decoded", estimate)):
      sound = codec_losses.as_rows(sound)[: len(waveform)]
      media[f"audio/{name}"] = (sound, self._config.sample_rate_hz)
      mel = spectrogram.log_mel(sound, self._mel)
      mel = jnp.clip((mel + 12.0) / 14.0, 0.0, 1.0)  # about -100 to 20 dB
      media[f"spectrogram/{name}"] = mel.swapaxes(1, 2)[:, ::-1, :, None]
    return media
