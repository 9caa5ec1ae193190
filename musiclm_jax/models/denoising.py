# SPDX-License-Identifier: Apache-2.0
"""Waveforms in; what a denoising codec hears, should give, and its switch out.

SoundStream sec. III-F: the codec is trained on triples of input, target and
flag. Noisy input with the flag set has the clean sound as its target, without
the flag the noisy one; for clean input the flag makes no difference.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from musiclm_jax.core import rng

SOURCES = ("synthetic", "batch")


@dataclasses.dataclass(frozen=True)
class DenoisingConfig:
  """How noise is mixed in.

  Attributes:
    source: 'batch' takes the feature 'noise' of the batch, as long as the
      waveforms (`data/noise.py`); 'synthetic' draws noise whose power falls by
      0 to 6 dB per octave, for those who have no recordings of noise.
    min_gain_db: of the noise, relative to the power of the waveform
      (SoundStream: -30).
    max_gain_db: the same (SoundStream: 0).
    noisy_fraction: of examples that noise is mixed into.
    denoise_fraction: of examples whose flag is set.
  """

  source: str = "synthetic"
  min_gain_db: float = -30.0
  max_gain_db: float = 0.0
  noisy_fraction: float = 0.5
  denoise_fraction: float = 0.5

  def __post_init__(self):
    if self.source not in SOURCES:
      raise ValueError(f"source={self.source!r}: expected one of {SOURCES}")
    if not self.min_gain_db <= self.max_gain_db:
      raise ValueError(
        f"min_gain_db={self.min_gain_db}: expected at most "
        f"max_gain_db={self.max_gain_db}"
      )
    for name in ("noisy_fraction", "denoise_fraction"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected in [0, 1]")


class Triple(NamedTuple):
  """One batch of denoising.

  Attributes:
    input: float32 `[batch, samples]` or with channels behind.
    target: the same shape.
    denoise: bool `[batch]`.
  """

  input: jax.Array
  target: jax.Array
  denoise: jax.Array


def coloured_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Noise `[batch, samples, ...]` of unit power, each row with its own tilt."""
  tilt_key, noise_key = jax.random.split(key)
  white = jnp.fft.rfft(jax.random.normal(noise_key, shape), axis=1)
  rest = (1,) * (len(shape) - 2)
  # Amplitude falls with frequency to the power of 0 (white) to 1 (brown).
  power = jax.random.uniform(tilt_key, (shape[0], 1, *rest))
  frequency = jnp.arange(1, white.shape[1] + 1, dtype=jnp.float32)
  noise = jnp.fft.irfft(
    white * frequency.reshape(1, -1, *rest) ** -power, shape[1], axis=1
  )
  return noise / rms(noise)


def rms(waveform: jax.Array) -> jax.Array:
  """Root of the mean square of each row, at least 1e-5, with kept axes."""
  axes = tuple(range(1, waveform.ndim))
  return jnp.sqrt((waveform**2).mean(axes, keepdims=True) + 1e-10)


def mix(waveform: jax.Array, noise: jax.Array, gain_db: jax.Array) -> jax.Array:
  """Adds noise at a gain relative to each waveform's power.

  Args:
    waveform: `[batch, samples]` or with channels behind.
    noise: of the same shape.
    gain_db: `[batch]`.

  Returns:
    The sum, not clipped.
  """
  gain = 10.0 ** (gain_db / 20.0)
  gain = gain.reshape(-1, *(1,) * (waveform.ndim - 1))
  return waveform + noise / rms(noise) * rms(waveform) * gain


def draw(
  waveform: jax.Array,
  noise: jax.Array | None,
  key: jax.Array,
  config: DenoisingConfig,
) -> Triple:
  """Triples for a training step.

  Args:
    waveform: clean, `[batch, samples]` or with channels behind.
    noise: the batch's own, or None where it is synthetic.
    key: typed key.
    config: how much of it.
  """
  batch = waveform.shape[0]
  if noise is None:
    noise = coloured_noise(rng.named(key, "noise"), waveform.shape)
  gain_db = jax.random.uniform(
    rng.named(key, "gain"),
    (batch,),
    minval=config.min_gain_db,
    maxval=config.max_gain_db,
  )
  noisy = jax.random.bernoulli(
    rng.named(key, "noisy"), config.noisy_fraction, (batch,)
  )
  denoise = jax.random.bernoulli(
    rng.named(key, "denoise"), config.denoise_fraction, (batch,)
  )

  def rows(flag):
    return flag.reshape(-1, *(1,) * (waveform.ndim - 1))

  heard = jnp.where(rows(noisy), mix(waveform, noise, gain_db), waveform)
  target = jnp.where(rows(denoise), waveform, heard)
  return Triple(heard, target, denoise)
