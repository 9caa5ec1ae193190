# SPDX-License-Identifier: Apache-2.0
"""Cross-modal contrastive training of MuLan: pairs in, loss and metrics out.

Negatives are all other pairs of the global batch: under `jit` the arrays are
global, so one `[batch, batch]` product says it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import protocols, rng
from musiclm_jax.networks import mulan

_LOSSES = ("mulan", "infonce")
_MASKED = -1e9


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
  """The contrastive loss.

  Attributes:
    loss: 'mulan' leaves the positive out of the denominator and sums both
      directions in it (MuLan sec. 3.2); 'infonce' is the mean of the two
      softmax cross-entropies.
    min_temperature: the learned temperature is clipped to this and 1.
    mask_equal_texts: pairs with the same text are no negatives of each
      other. Captions built from facts or tags repeat; pushing a clip away
      from a text that describes it would teach the towers the clip's name.
    crop_secs: audio of one training example.
  """

  loss: str = "mulan"
  min_temperature: float = 0.01
  mask_equal_texts: bool = True
  crop_secs: float = 10.0

  def __post_init__(self):
    if self.loss not in _LOSSES:
      raise ValueError(f"loss={self.loss!r}: expected one of {_LOSSES}")
    if not 0 < self.min_temperature <= 1:
      raise ValueError(
        f"min_temperature={self.min_temperature}: expected in (0, 1]"
      )
    if not self.crop_secs > 0:
      raise ValueError(f"crop_secs={self.crop_secs}: expected > 0")


def equal_texts(tokens: jax.Array) -> jax.Array:
  """bool `[batch, batch]`, True where two rows hold the same text.

  Compared by two 32-bit hashes: `[batch, batch, length]` comparisons would
  be gigabytes at batch 6144.

  Args:
    tokens: int32 `[batch, length]`.
  """
  generator = np.random.default_rng(0)
  factors = generator.integers(1, 2**31, (2, tokens.shape[1])) * 2 + 1
  products = tokens.astype(jnp.uint32)[:, None] * factors.astype(np.uint32)
  hashes = products.sum(-1, dtype=jnp.uint32)
  # Sums of products collide along low bits; mixing spreads every bit.
  hashes = (hashes ^ (hashes >> 15)) * jnp.uint32(2246822519)
  return (hashes[:, None] == hashes[None]).all(-1)


def pair_losses(
  similarity: jax.Array, negatives: jax.Array, loss: str
) -> tuple[jax.Array, jax.Array]:
  """Loss of each pair, and what a constant encoder would get.

  Args:
    similarity: float32 `[batch, batch]`, audio i with text j, already divided
      by the temperature.
    negatives: bool `[batch, batch]`, True where (i, j) is a negative pair;
      symmetric, False on the diagonal.
    loss: 'mulan' or 'infonce'.

  Returns:
    float32 `[batch]` each. A pair without any negative has loss 0.
  """
  positive = jnp.diagonal(similarity)
  count = negatives.sum(1).astype(jnp.float32)
  masked = jnp.where(negatives, similarity, _MASKED)
  if loss == "mulan":
    both = jnp.concatenate([masked, masked.T], axis=1)
    losses = jax.nn.logsumexp(both, axis=1) - positive
    chance = jnp.log(2.0 * jnp.maximum(count, 1.0))
    some = count > 0
    return jnp.where(some, losses, 0.0), jnp.where(some, chance, 0.0)
  full = jnp.where(jnp.eye(len(positive), dtype=bool), similarity, masked)
  to_text = jax.nn.logsumexp(full, axis=1) - positive
  to_audio = jax.nn.logsumexp(full, axis=0) - positive
  return (to_text + to_audio) / 2, jnp.log(count + 1.0)


class Contrastive:
  """Trainable of MuLan (`core/protocols.py`).

  Attributes:
    config: the loss.
    network: the towers; its 'params' are all variables.
  """

  def __init__(
    self,
    config: ContrastiveConfig,
    network_config: mulan.MuLanConfig,
    precision: precision_lib.Precision | None = None,
  ):
    """Binds a loss to a network.

    Args:
      config: the loss.
      network_config: sizes of the towers.
      precision: dtypes; float32 by default.
    """
    self.config = config
    self.network = mulan.MuLan(
      network_config, precision or precision_lib.Precision()
    )

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """`waveform` `[batch, samples]` and `text_tokens` `[batch, length]`."""
    network = self.network.config
    samples = round(self.config.crop_secs * network.mel.sample_rate_hz)
    length = network.text.max_length
    return {
      "waveform": jax.ShapeDtypeStruct((batch_size, samples), jnp.float32),
      "text_tokens": jax.ShapeDtypeStruct((batch_size, length), jnp.int32),
    }

  def init(self, key: jax.Array, batch: protocols.Batch) -> protocols.Variables:
    """Fresh boxed variables."""
    return self.network.init(key, batch["waveform"], batch["text_tokens"])

  def loss(
    self,
    variables: protocols.Variables,
    batch: protocols.Batch,
    key: jax.Array,
    step: jax.Array,
    train: bool,
  ) -> tuple[jax.Array, protocols.LossOutput]:
    """Mean loss over the pairs of the global batch.

    Args:
      variables: unboxed, `{'params': ...}`.
      batch: see `input_shapes`.
      key: of this step.
      step: not used.
      train: augmentation and dropout.

    Returns:
      Loss, and metrics `loss`, `loss_minus_chance` (loss minus that of a
      constant encoder: ln(batch) for 'infonce', ln(2 (batch - 1)) for
      'mulan', where no texts repeat), `recall_at_1_audio_to_text`,
      `recall_at_1_text_to_audio` within the batch, and `temperature`.
    """
    del step
    tokens = batch["text_tokens"]
    audio, text, log_temperature = self.network.apply(
      {"params": variables["params"]},
      batch["waveform"],
      tokens,
      deterministic=not train,
      rngs={name: rng.named(key, name) for name in ("augment", "dropout")},
    )
    temperature = jnp.clip(
      jnp.exp(log_temperature.astype(jnp.float32)),
      self.config.min_temperature,
      1.0,
    )
    similarity = jnp.einsum(
      "id,jd->ij", audio, text, precision=jax.lax.Precision.HIGHEST
    )
    size = similarity.shape[0]
    same = jnp.eye(size, dtype=bool)
    if self.config.mask_equal_texts:
      same |= equal_texts(tokens)
    losses, chance = pair_losses(
      similarity / temperature, ~same, self.config.loss
    )
    rows = jnp.arange(size)
    values = {
      "loss": losses,
      "loss_minus_chance": losses - chance,
      "recall_at_1_audio_to_text": same[rows, similarity.argmax(1)],
      "recall_at_1_text_to_audio": same[similarity.argmax(0), rows],
    }
    count = jnp.float32(size)
    metrics = {
      name: protocols.Mean(value.sum(dtype=jnp.float32), count)
      for name, value in values.items()
    }
    metrics["temperature"] = protocols.Mean(temperature, jnp.float32(1))
    return losses.mean(), protocols.LossOutput({}, metrics)
