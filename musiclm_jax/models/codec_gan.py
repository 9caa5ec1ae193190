# SPDX-License-Identifier: Apache-2.0
"""The codec's adversarial training: waveforms in, gradients and metrics out.

SoundStream against its discriminators (SoundStream sec. III-E). One forward
pass of the generator, and one of the discriminators, serve both players.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.audio import spectrogram
from musiclm_jax.core import protocols, rng
from musiclm_jax.layers import quantize
from musiclm_jax.networks import discriminators as discriminators_lib
from musiclm_jax.networks import soundstream


@dataclasses.dataclass(frozen=True)
class LossWeights:
  """Weights of the generator's losses; the defaults are the published ones.

  Attributes:
    adversarial: hinge loss against the discriminators.
    feature: L1 distance of the discriminators' features.
    reconstruction: multi-scale mel distance.
    commitment: of latents to their codes (not in the paper; in all ports).
    waveform: L1 distance of samples (not in the paper; helps a short training
      to find the phase).
  """

  adversarial: float = 1.0
  feature: float = 100.0
  reconstruction: float = 1.0
  commitment: float = 1.0
  waveform: float = 0.0

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value < 0:
        raise ValueError(f"{name}={value}: expected >= 0")


@dataclasses.dataclass(frozen=True)
class CodecGANConfig:
  """Codec, critics and losses.

  Attributes:
    codec: the generator.
    discriminators: the critics.
    weights: of the generator's losses.
    window_lengths: of the multi-scale mel loss (2^6 to 2^11 published).
    num_mels: bands of the mel loss.
    mel_floor: smallest mel magnitude inside its logarithm.
    reconstruction_reduction: 'sum' over scales and frames is the published
      form, which grows with the crop; 'mean' divides the term of each scale s
      by its frames and by alpha_s * sqrt(mels), and averages over scales, so
      that it is about 1 at the start whatever the crop.
    discriminator_start_step: before it the discriminators rest and the
      generator has no adversarial losses.
    crop_secs: seconds of one training example.
    kmeans_batches: batches the codebooks are started from by k-means before
      the first step; 0 starts them from the first batch, in its step, as
      published.
  """

  codec: soundstream.SoundStreamConfig = soundstream.SoundStreamConfig()
  discriminators: discriminators_lib.DiscriminatorConfig = (
    discriminators_lib.DiscriminatorConfig()
  )
  weights: LossWeights = LossWeights()
  window_lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
  num_mels: int = 64
  mel_floor: float = 1e-3
  reconstruction_reduction: str = "sum"
  discriminator_start_step: int = 0
  crop_secs: float = 3.0
  kmeans_batches: int = 0

  def __post_init__(self):
    object.__setattr__(self, "window_lengths", tuple(self.window_lengths))
    if not self.window_lengths or min(self.window_lengths) < 8:
      raise ValueError(
        f"window_lengths={self.window_lengths}: expected lengths >= 8"
      )
    if self.reconstruction_reduction not in ("sum", "mean"):
      raise ValueError(
        f"reconstruction_reduction={self.reconstruction_reduction!r}: "
        "expected 'sum' or 'mean'"
      )
    if self.discriminator_start_step < 0:
      raise ValueError(
        f"discriminator_start_step={self.discriminator_start_step}: "
        "expected >= 0"
      )
    if not self.crop_secs > 0 or not self.mel_floor > 0 or self.num_mels < 1:
      raise ValueError(
        f"crop_secs={self.crop_secs}, mel_floor={self.mel_floor}, "
        f"num_mels={self.num_mels}: expected > 0"
      )


def si_snr_db(target: jax.Array, estimate: jax.Array) -> jax.Array:
  """Scale-invariant signal-to-noise ratio, `[batch, samples]` to `[batch]`."""
  scale = jnp.sum(estimate * target, -1) / (jnp.sum(target**2, -1) + 1e-8)
  projection = scale[:, None] * target
  noise = estimate - projection
  ratio = (jnp.sum(projection**2, -1) + 1e-8) / (jnp.sum(noise**2, -1) + 1e-8)
  return 10.0 * jnp.log10(ratio)


def discriminator_loss(real, fake) -> jax.Array:
  """Hinge loss of the critics: mean over critics of the mean over time."""
  losses = [
    jnp.mean(jax.nn.relu(1.0 - r.logits))
    + jnp.mean(jax.nn.relu(1.0 + f.logits))
    for r, f in zip(real, fake)
  ]
  return sum(losses) / len(losses)


def adversarial_loss(fake) -> jax.Array:
  """Hinge loss of the generator."""
  losses = [jnp.mean(jax.nn.relu(1.0 - f.logits)) for f in fake]
  return sum(losses) / len(losses)


def feature_loss(real, fake) -> jax.Array:
  """Mean L1 distance over all internal layers of all critics."""
  losses = [
    jnp.mean(jnp.abs(a - b))
    for r, f in zip(real, fake)
    for a, b in zip(r.features, f.features)
  ]
  return sum(losses) / len(losses)


class CodecGAN:
  """A `Trainable` with two players.

  `variables['params']` is `{'generator': ..., 'discriminator': ...}`;
  `variables['codebooks']` is the quantizer's.
  """

  def __init__(self, config: CodecGANConfig):
    self.config = config
    self.codec = soundstream.SoundStream(config.codec)
    self.discriminators = discriminators_lib.Discriminators(
      config.discriminators
    )
    rate_hz = config.codec.sample_rate_hz
    self._scales = tuple(
      dataclasses.replace(scale, floor=config.mel_floor)
      for scale in spectrogram.multi_scale_configs(
        rate_hz, config.window_lengths, config.num_mels
      )
    )
    self._eval_mel = spectrogram.LogMelConfig(
      sample_rate_hz=rate_hz,
      frame_length=1024,
      hop_length=256,
      floor=config.mel_floor,
    )

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """`waveform`, float32 `[batch, samples]` of a crop."""
    codec = self.config.codec
    samples = round(self.config.crop_secs * codec.sample_rate_hz)
    shape = (batch_size, samples)
    return {"waveform": jax.ShapeDtypeStruct(shape, jnp.float32)}

  def init(self, key: jax.Array, batch: protocols.Batch) -> dict[str, Any]:
    """Fresh, boxed 'params' and 'codebooks'."""
    waveform = jnp.zeros_like(batch["waveform"])
    codec = self.codec.init(rng.named(key, "generator"), waveform)
    critics = self.discriminators.init(
      rng.named(key, "discriminator"), waveform
    )
    return {
      "params": {
        "generator": codec["params"],
        "discriminator": critics["params"],
      },
      "codebooks": codec["codebooks"],
    }

  @property
  def num_warm_start_batches(self) -> int:
    """Batches that `warm_start` wants."""
    return self.config.kmeans_batches

  def warm_start(
    self, variables: protocols.Variables, batches: Any, key: jax.Array
  ) -> dict[str, Any]:
    """Starts the codebooks from the latents of some batches.

    Args:
      variables: unboxed, fresh.
      batches: iterable of device batches.
      key: typed key.

    Returns:
      New 'codebooks'.
    """
    codec = {
      "params": variables["params"]["generator"],
      "codebooks": variables["codebooks"],
    }
    encode = jax.jit(
      lambda codec, x: self.codec.apply(codec, x, method=self.codec.latents)
    )
    latents = [encode(codec, batch["waveform"]) for batch in batches]
    per_step = latents[0].shape[0] * latents[0].shape[1]
    fit = jax.jit(quantize.fit, static_argnums=(2, 3))
    fitted = fit(
      rng.named(key, "kmeans"),
      jnp.concatenate(latents).reshape(-1, latents[0].shape[-1]),
      self.config.codec.quantizer,
      per_step,
    )
    return {"codebooks": {"quantizer": fitted}}

  def reconstruction_loss(
    self, target: jax.Array, estimate: jax.Array
  ) -> jax.Array:
    """Multi-scale mel distance of `[batch, samples]` (SoundStream eq. 4)."""
    total = 0.0
    mean = self.config.reconstruction_reduction == "mean"
    for scale in self._scales:
      a = spectrogram.mel_magnitude(target, scale)
      b = spectrogram.mel_magnitude(estimate, scale)
      alpha = (scale.frame_length / 2) ** 0.5
      linear = jnp.abs(a - b).sum(-1)
      difference = jnp.log(jnp.maximum(a, scale.floor)) - jnp.log(
        jnp.maximum(b, scale.floor)
      )
      log = jnp.sqrt((difference**2).sum(-1) + 1e-8)
      frames = linear + alpha * log
      if mean:
        divisor = alpha * scale.num_mels**0.5 * len(self._scales)
        total = total + frames.mean() / divisor
      else:
        total = total + frames.sum(-1).mean()
    return total

  def _codec_losses(self, waveform, estimate):
    """Weighted losses that need no critic, and what they consist of."""
    weights = self.config.weights
    reconstruction = self.reconstruction_loss(waveform, estimate)
    distance = jnp.abs(waveform - estimate).mean()
    loss = weights.reconstruction * reconstruction + weights.waveform * distance
    return loss, {"reconstruction": reconstruction, "waveform": distance}

  def _metrics(self, waveform, estimate, quantizer, parts):
    """All metrics as `Mean`s weighted by the batch size."""
    distance = jnp.abs(
      spectrogram.log_mel(waveform, self._eval_mel)
      - spectrogram.log_mel(estimate, self._eval_mel)
    )
    values = dict(parts)
    values["commitment"] = quantizer.commitment
    values["log_mel_distance"] = distance.mean()
    values["si_snr_db"] = si_snr_db(waveform, estimate).mean()
    for level in range(self.config.codec.num_codebooks):
      values[f"codebook_usage/{level:02d}"] = quantizer.usage[level]
      values[f"codebook_perplexity/{level:02d}"] = quantizer.perplexity[level]
    count = jnp.float32(waveform.shape[0])
    return {
      name: protocols.Mean(jax.lax.stop_gradient(value) * count, count)
      for name, value in values.items()
    }

  def loss(
    self,
    variables: protocols.Variables,
    batch: protocols.Batch,
    key: jax.Array,
    step: jax.Array,
    train: bool,
  ) -> tuple[jax.Array, protocols.LossOutput]:
    """The generator's loss without critics; what evaluation reports."""
    del step
    waveform = batch["waveform"]
    estimate, (quantizer, state) = self._generate(
      variables["params"]["generator"], variables["codebooks"], waveform, key,
      train,
    )  # fmt: skip
    loss, parts = self._codec_losses(waveform, estimate)
    loss = loss + self.config.weights.commitment * quantizer.commitment
    parts["loss"] = loss
    metrics = self._metrics(waveform, estimate, quantizer, parts)
    return loss, protocols.LossOutput(state, metrics)

  def media(
    self, variables: protocols.Variables, batch: protocols.Batch
  ) -> dict[str, Any]:
    """Originals and reconstructions of a batch, to hear and to see.

    Returns:
      By name, `(waveform [items, samples], sample_rate_hz)` and log-mel
      pictures `[items, mels, frames, 1]` in [0, 1].
    """
    waveform = batch["waveform"][:4]
    codec = {
      "params": variables["params"]["generator"],
      "codebooks": variables["codebooks"],
    }
    estimate = self.codec.apply(codec, waveform, train=False).reconstruction
    media = {}
    for name, sound in (("original", waveform), ("decoded", estimate)):
      media[f"audio/{name}"] = (sound, self.config.codec.sample_rate_hz)
      mel = spectrogram.log_mel(sound, self._eval_mel)
      mel = jnp.clip((mel + 12.0) / 14.0, 0.0, 1.0)  # about -100 to 20 dB
      media[f"spectrogram/{name}"] = mel.swapaxes(1, 2)[:, ::-1, :, None]
    return media

  def _generate(self, params, codebooks, waveform, key, train):
    """Reconstruction; quantizer output and new collections beside it."""
    variables = {"params": params, "codebooks": codebooks}
    if not train:
      out = self.codec.apply(variables, waveform, train=False)
      return out.reconstruction, (out.quantizer, {})
    out, state = self.codec.apply(
      variables,
      waveform,
      train=True,
      key=rng.named(key, "quantizer"),
      mutable=["codebooks"],
    )
    return out.reconstruction, (out.quantizer, dict(state))

  def gradients(
    self,
    variables: protocols.Variables,
    batch: protocols.Batch,
    key: jax.Array,
    step: jax.Array,
  ) -> tuple[dict[str, Any], protocols.LossOutput]:
    """Gradients of both players from one forward pass.

    Args:
      variables: unboxed 'params' and 'codebooks'.
      batch: `waveform` float32 `[batch, samples]`.
      key: typed key of this step.
      step: optimizer step, for `discriminator_start_step`.

    Returns:
      Gradients in the tree of `variables['params']`, new codebooks, metrics.
    """
    waveform = batch["waveform"]
    params = variables["params"]

    def generate(generator):
      estimate, (quantizer, state) = self._generate(
        generator, variables["codebooks"], waveform, key, True
      )
      return (estimate, quantizer.commitment), (quantizer, state)

    (estimate, commitment), pull_back, (quantizer, state) = jax.vjp(
      generate, params["generator"], has_aux=True
    )
    (loss, parts), slope = jax.value_and_grad(
      lambda x: self._codec_losses(waveform, x), has_aux=True
    )(estimate)
    critic_slope, critic_grads, critic_parts = self._critics(
      params["discriminator"], waveform, estimate, step
    )
    weights = self.config.weights
    commitment_slope = jnp.full_like(commitment, weights.commitment)
    (grads,) = pull_back((slope + critic_slope, commitment_slope))
    parts.update(critic_parts)
    parts["loss"] = (
      loss
      + weights.commitment * commitment
      + weights.adversarial * critic_parts["adversarial"]
      + weights.feature * critic_parts["feature"]
    )
    metrics = self._metrics(waveform, estimate, quantizer, parts)
    return (
      {"generator": grads, "discriminator": critic_grads},
      protocols.LossOutput(state, metrics),
    )

  def _critics(self, params, waveform, estimate, step):
    """Slope of the generator's losses at `estimate`; the critics' gradients."""
    weights = self.config.weights

    def judge(params, estimate):
      # One call for both halves: they share every kernel.
      both = jnp.concatenate([waveform, estimate])
      judgements = self.discriminators.apply({"params": params}, both)
      size = waveform.shape[0]
      real = jax.tree.map(lambda x: x[:size], judgements)
      return real, jax.tree.map(lambda x: x[size:], judgements)

    def generator_losses(judgements):
      adversarial = adversarial_loss(judgements[1])
      feature = feature_loss(*judgements)
      loss = weights.adversarial * adversarial + weights.feature * feature
      return loss, {"adversarial": adversarial, "feature": feature}

    def active():
      judgements, pull_back = jax.vjp(judge, params, estimate)
      (_, parts), slope = jax.value_and_grad(generator_losses, has_aux=True)(
        judgements
      )
      _, estimate_slope = pull_back(slope)
      loss, slope = jax.value_and_grad(
        lambda judgements: discriminator_loss(*judgements)
      )(judgements)
      grads, _ = pull_back(slope)
      return estimate_slope, grads, {**parts, "discriminator": loss}

    def resting():
      names = ("adversarial", "feature", "discriminator")
      parts = {name: jnp.zeros((), jnp.float32) for name in names}
      return (
        jnp.zeros_like(estimate),
        jax.tree.map(jnp.zeros_like, params),
        parts,
      )

    if self.config.discriminator_start_step == 0:
      return active()
    ready = step >= self.config.discriminator_start_step
    return jax.lax.cond(ready, active, resting)
