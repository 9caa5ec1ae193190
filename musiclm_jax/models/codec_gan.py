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
from musiclm_jax.core import alarms, protocols, rng
from musiclm_jax.layers import quantize, scalar_quantize
from musiclm_jax.models import balancer as balancer_lib
from musiclm_jax.models import (
  codec_alarms,
  codec_losses,
  codec_measures,
  critic_pass,
)
from musiclm_jax.models import denoising as denoising_lib
from musiclm_jax.networks import discriminators as discriminators_lib
from musiclm_jax.networks import soundstream
from musiclm_jax.partitioning import axes


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

  With a balancer all but `commitment` are shares, of which only the ratios
  count.
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
      published. An FSQ starts its axes from them, or at random.
    balancer: of the generator's losses at the waveform; None adds them up.
    denoising: how noise is mixed in, for a codec with `film`; None trains its
      switch on clean sound only.
    alarms: when the training calls out.
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
  balancer: balancer_lib.BalancerConfig | None = None
  denoising: denoising_lib.DenoisingConfig | None = None
  alarms: codec_alarms.CodecAlarmConfig = codec_alarms.CodecAlarmConfig()

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
    if self.denoising is not None and self.codec.film == "none":
      raise ValueError(
        "denoising with film='none': expected a codec with "
        "film='encoder' or 'decoder', which has the switch"
      )
    if self.balancer is not None and not self.waveform_losses:
      raise ValueError(
        f"weights={self.weights}: expected a loss at the waveform to balance"
      )

  @property
  def waveform_losses(self) -> dict[str, float]:
    """Weights of the losses at the waveform that are not 0."""
    names = ("reconstruction", "waveform", "adversarial", "feature")
    weights = {name: getattr(self.weights, name) for name in names}
    return {name: weight for name, weight in weights.items() if weight}


class CodecGAN:
  """A `Trainable` with two players.

  `variables['params']` is `{'generator': ..., 'discriminator': ...}`;
  `variables['codebooks']` is the quantizer's, `variables['balancer']` has the
  usual norms of the losses' gradients if they are balanced.
  """

  loss_terms = codec_alarms.LOSS_TERMS

  def __init__(self, config: CodecGANConfig):
    self.config = config
    self._denoising = config.denoising
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
    self._measures = codec_measures.CodecMeasures(self.codec, config.mel_floor)

  @property
  def _critic_weights(self) -> dict[str, float] | None:
    """Of the sum of the generator's losses; None keeps them apart."""
    if self.config.balancer is not None:
      return None
    weights = self.config.weights
    return {"adversarial": weights.adversarial, "feature": weights.feature}

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """`waveform`, float32 `[batch, samples]` of a crop; perhaps `noise`.

    With two channels `[batch, samples, 2]`.
    """
    codec = self.config.codec
    samples = round(self.config.crop_secs * codec.sample_rate_hz)
    names = ["waveform"]
    if self._denoising is not None and self._denoising.source == "batch":
      names.append("noise")
    shape = (batch_size, samples)
    if codec.num_channels > 1:
      shape += (codec.num_channels,)
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name in names}

  def alarm_rules(self, batch_size: int) -> tuple[alarms.AlarmRule, ...]:
    """Quantizer, players and held-out sound (`codec_alarms.py`)."""
    config = self.config
    samples = self.input_shapes(batch_size)["waveform"].shape[1]
    return codec_alarms.rules(
      config.alarms,
      config.codec,
      batch_size * config.codec.num_frames(samples),
      config.discriminator_start_step,
    )

  def init(self, key: jax.Array, batch: protocols.Batch) -> dict[str, Any]:
    """Fresh, boxed 'params' and 'codebooks', and 'balancer' if there is one."""
    waveform = jnp.zeros_like(batch["waveform"])
    codec = self.codec.init(rng.named(key, "generator"), waveform)
    critics = self.discriminators.init(
      rng.named(key, "discriminator"), waveform
    )
    variables = {
      "params": {
        "generator": codec["params"],
        "discriminator": critics["params"],
      },
      "codebooks": codec["codebooks"],
    }
    if self.config.balancer is not None:
      norms = balancer_lib.fresh(len(self.config.waveform_losses))
      variables["balancer"] = {
        name: axes.named(lambda key, value=value: value, (None,))(key)
        for name, value in norms._asdict().items()
      }
    return variables

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
      New 'codebooks'; of an FSQ, which has axes in place of them, 'params'.
    """
    codec = codec_measures.codec_variables(variables)
    encode = jax.jit(
      lambda codec, x: self.codec.apply(codec, x, method=self.codec.latents)
    )
    latents = [encode(codec, batch["waveform"]) for batch in batches]
    vectors = jnp.concatenate(latents).reshape(-1, latents[0].shape[-1])
    quantizer = self.config.codec.quantizer
    if isinstance(quantizer, scalar_quantize.ScalarQuantizerConfig):
      fit = jax.jit(scalar_quantize.fit, static_argnums=1)
      params = dict(variables["params"])
      params["generator"] = {
        **params["generator"],
        "quantizer": fit(vectors, quantizer),
      }
      return {"params": params}
    per_step = latents[0].shape[0] * latents[0].shape[1]
    fit = jax.jit(quantize.fit, static_argnums=(2, 3))
    fitted = fit(
      rng.named(key, "kmeans"),
      vectors,
      quantizer,
      per_step,
    )
    return {"codebooks": {"quantizer": fitted}}

  def reconstruction_loss(
    self, target: jax.Array, estimate: jax.Array
  ) -> jax.Array:
    """Multi-scale mel distance of `[batch, samples]` (SoundStream eq. 4).

    Of two channels the mean over middle and side.
    """
    return codec_losses.reconstruction_loss(
      codec_losses.as_rows(target),
      codec_losses.as_rows(estimate),
      self._scales,
      self.config.reconstruction_reduction,
    )

  def _codec_losses(self, waveform, estimate):
    """Weighted losses that need no critic, and what they consist of."""
    weights = self.config.weights
    reconstruction = self.reconstruction_loss(waveform, estimate)
    distance = jnp.abs(waveform - estimate).mean()
    loss = weights.reconstruction * reconstruction + weights.waveform * distance
    return loss, {"reconstruction": reconstruction, "waveform": distance}

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
    generator, codebooks = (
      variables["params"]["generator"],
      variables["codebooks"],
    )
    estimate, (quantizer, state) = self._generate(
      generator, codebooks, waveform, key, train
    )
    loss, parts = self._codec_losses(waveform, estimate)
    loss = loss + self.config.weights.commitment * quantizer.commitment
    parts["loss"] = loss
    if self._denoising is not None:
      parts.update(self._denoised(generator, codebooks, batch, key))
    metrics = self._measures.metrics(
      waveform, waveform, estimate, quantizer, parts
    )
    return loss, protocols.LossOutput(state, metrics)

  def _denoised(self, generator, codebooks, batch, key):
    """SI-SNR against the clean sound of noisy input, with the switch set."""
    waveform, config = batch["waveform"], self._denoising
    always = dataclasses.replace(
      config, noisy_fraction=1.0, denoise_fraction=1.0
    )
    heard, _, denoise = denoising_lib.draw(
      waveform, batch.get("noise"), rng.named(key, "denoising"), always
    )
    values = {"noisy_si_snr_db": codec_losses.si_snr_db(waveform, heard)}
    for name, flag in (("kept", ~denoise), ("denoised", denoise)):
      estimate, _ = self._generate(
        generator, codebooks, heard, key, False, flag
      )
      snr = codec_losses.si_snr_db(waveform, estimate)
      values[f"{name}_si_snr_db"] = snr
    return {name: value.mean() for name, value in values.items()}

  def distances_by_codebooks(
    self,
    variables: protocols.Variables,
    waveform: jax.Array,
    num_codebooks: tuple[int, ...],
  ) -> jax.Array:
    """What the first codebooks alone give, against the original.

    Args:
      variables: unboxed.
      waveform: float32 `[batch, samples]` in [-1, 1] (and channels).
      num_codebooks: how many are decoded, each in [1, codebooks].

    Returns:
      float32 `[batch, len(num_codebooks)]`, mean absolute difference of
      log-mels in nats, defined as `log_mel_distance` of `loss`.
    """
    return self._measures.distances_by_codebooks(
      variables, waveform, num_codebooks
    )

  def media(
    self, variables: protocols.Variables, batch: protocols.Batch
  ) -> dict[str, Any]:
    """Originals and reconstructions of a batch, to hear and to see.

    Returns:
      By name, `(waveform [items, samples], sample_rate_hz)` and log-mel
      pictures `[items, mels, frames, 1]` in [0, 1].
    """
    return self._measures.media(variables, batch["waveform"])

  def _generate(self, params, codebooks, waveform, key, train, denoise=None):
    """Reconstruction; quantizer output and new collections beside it."""
    variables = {"params": params, "codebooks": codebooks}
    if not train:
      out = self.codec.apply(variables, waveform, train=False, denoise=denoise)
      return out.reconstruction, (out.quantizer, {})
    out, state = self.codec.apply(
      variables,
      waveform,
      train=True,
      key=rng.named(key, "quantizer"),
      denoise=denoise,
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
    params = variables["params"]
    heard = waveform = batch["waveform"]
    denoise = None
    if self._denoising is not None:
      heard, waveform, denoise = denoising_lib.draw(
        waveform,
        batch.get("noise"),
        rng.named(key, "denoising"),
        self._denoising,
      )

    def generate(generator):
      estimate, (quantizer, state) = self._generate(
        generator, variables["codebooks"], heard, key, True, denoise
      )
      return (estimate, quantizer.commitment), (quantizer, state)

    (estimate, commitment), pull_back, (quantizer, state) = jax.vjp(
      generate, params["generator"], has_aux=True
    )
    critics = critic_pass.run(
      self.discriminators,
      params["discriminator"],
      waveform,
      estimate,
      self._critic_weights,
      step,
      self.config.discriminator_start_step,
    )
    if self.config.balancer is None:
      (loss, parts), slope = jax.value_and_grad(
        lambda x: self._codec_losses(waveform, x), has_aux=True
      )(estimate)
      slope = slope + critics.slopes["sum"]
    else:
      loss, parts = self._codec_losses(waveform, estimate)
      slope, state["balancer"] = self._balance(
        self._codec_slopes(waveform, estimate) | critics.slopes,
        variables["balancer"],
        parts,
      )
    weights = self.config.weights
    commitment_slope = jnp.full_like(commitment, weights.commitment)
    (grads,) = pull_back((slope, commitment_slope))
    parts.update(critics.losses)
    parts["loss"] = (
      loss
      + weights.commitment * commitment
      + weights.adversarial * parts["adversarial"]
      + weights.feature * parts["feature"]
    )
    grads = {"generator": grads, "discriminator": critics.gradients}
    for player, tree in grads.items():
      squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))
      parts[f"gradient_norm/{player}"] = jnp.sqrt(squares)
    metrics = self._measures.metrics(
      heard, waveform, estimate, quantizer, parts
    )
    return grads, protocols.LossOutput(state, metrics)

  def _codec_slopes(self, waveform, estimate):
    """By loss that needs no critic, its slope at `estimate`."""
    return {
      "reconstruction": jax.grad(
        lambda x: self.reconstruction_loss(waveform, x)
      )(estimate),
      "waveform": jax.grad(lambda x: jnp.abs(waveform - x).mean())(estimate),
    }

  def _balance(self, slopes, norms, parts):
    """The balanced slope and new norms; adds the losses' norms to `parts`."""
    slope, norms, seen = balancer_lib.balance(
      slopes,
      self.config.waveform_losses,
      balancer_lib.Norms(**norms),
      self.config.balancer,
    )
    parts.update({f"slope_norm/{name}": norm for name, norm in seen.items()})
    return slope, norms._asdict()
