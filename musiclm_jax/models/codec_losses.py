# SPDX-License-Identifier: Apache-2.0
"""Losses of a codec: waveforms and judgements of critics in, scalars out.

SoundStream sec. III-E: hinge losses, feature distance, multi-scale mel
distance.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from musiclm_jax.audio import spectrogram
from musiclm_jax.networks import discriminators

Judgements = Sequence[discriminators.Judgement]


def si_snr_db(target: jax.Array, estimate: jax.Array) -> jax.Array:
  """Scale-invariant signal-to-noise ratio of each row, `[batch]`.

  Args:
    target: `[batch, samples]`; channels behind count as more samples.
    estimate: the same shape.
  """
  target = target.reshape(target.shape[0], -1)
  estimate = estimate.reshape(target.shape)
  scale = jnp.sum(estimate * target, -1) / (jnp.sum(target**2, -1) + 1e-8)
  projection = scale[:, None] * target
  noise = estimate - projection
  ratio = (jnp.sum(projection**2, -1) + 1e-8) / (jnp.sum(noise**2, -1) + 1e-8)
  return 10.0 * jnp.log10(ratio)


def as_rows(waveform: jax.Array) -> jax.Array:
  """What distances of spectra are taken of, `[rows, samples]`.

  `[batch, samples]` itself. Of two channels `[batch, samples, 2]` middle and
  side, the middles first: an error in the width of the sound is small beside
  the left or right channel, and large beside the side.
  """
  if waveform.ndim == 2:
    return waveform
  left, right = waveform[..., 0], waveform[..., 1]
  return jnp.concatenate([left + right, left - right]) / 2


def discriminator_loss(real: Judgements, fake: Judgements) -> jax.Array:
  """Hinge loss of the critics: mean over critics of the mean over time.

  2 where they cannot tell real from fake, 0 where they tell all.
  """
  losses = [
    jnp.mean(jax.nn.relu(1.0 - r.logits))
    + jnp.mean(jax.nn.relu(1.0 + f.logits))
    for r, f in zip(real, fake)
  ]
  return sum(losses) / len(losses)


def adversarial_loss(fake: Judgements) -> jax.Array:
  """Hinge loss of the generator."""
  losses = [jnp.mean(jax.nn.relu(1.0 - f.logits)) for f in fake]
  return sum(losses) / len(losses)


def feature_loss(real: Judgements, fake: Judgements) -> jax.Array:
  """Mean L1 distance over all internal layers of all critics."""
  losses = [
    jnp.mean(jnp.abs(a - b))
    for r, f in zip(real, fake)
    for a, b in zip(r.features, f.features)
  ]
  return sum(losses) / len(losses)


def reconstruction_loss(
  target: jax.Array,
  estimate: jax.Array,
  scales: Sequence[spectrogram.LogMelConfig],
  reduction: str,
) -> jax.Array:
  """Multi-scale mel distance of `[batch, samples]` (SoundStream eq. 4).

  Args:
    target: waveforms.
    estimate: waveforms.
    scales: one spectrum per window.
    reduction: 'sum' over scales and frames as published, or 'mean', which
      divides each scale by its frames and its weight.
  """
  total = 0.0
  for scale in scales:
    a = spectrogram.mel_magnitude(target, scale)
    b = spectrogram.mel_magnitude(estimate, scale)
    alpha = (scale.frame_length / 2) ** 0.5
    linear = jnp.abs(a - b).sum(-1)
    difference = jnp.log(jnp.maximum(a, scale.floor)) - jnp.log(
      jnp.maximum(b, scale.floor)
    )
    log = jnp.sqrt((difference**2).sum(-1) + 1e-8)
    frames = linear + alpha * log
    if reduction == "mean":
      divisor = alpha * scale.num_mels**0.5 * len(scales)
      total = total + frames.mean() / divisor
    else:
      total = total + frames.sum(-1).mean()
  return total
