# SPDX-License-Identifier: Apache-2.0
"""Cross-modal contrastive training of MuLan: pairs in, loss and metrics out.

Negatives are all other pairs of the global batch, on any mesh and with any
number of microbatches (`Contrastive.in_parts`); how that goes without holding
`[batch, batch]` is in `models/pair_losses.py`.
"""

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import alarms, protocols, rng
from musiclm_jax.core import precision as precision_lib
from musiclm_jax.models import (
  contrastive_alarms,
  embedding_health,
  pair_losses,
)
from musiclm_jax.networks import mulan, mulan_text
from musiclm_jax.partitioning import axes

_BIAS = "similarity_bias"


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
  """The contrastive loss.

  Attributes:
    loss: 'mulan' leaves the positive out of the denominator and sums both
      directions in it (MuLan sec. 3.2); 'infonce' is the mean of the two
      softmax cross-entropies; 'sigmoid' judges every pair alone (SigLIP,
      arXiv 2303.15343) and learns a bias beside the temperature.
    min_temperature: the learned temperature is clipped to this and 1.
    mask_equal_texts: pairs with the same text are no negatives of each
      other. Captions built from facts or tags repeat; pushing a clip away
      from a text that describes it would teach the towers the clip's name.
    initial_bias: of 'sigmoid', as published; no other loss has a bias.
    pair_chunk: similarities of a device's rows with so many columns are held
      at a time.
    crop_secs: audio of one training example.
    alarms: when the training calls out.
  """

  loss: str = "mulan"
  min_temperature: float = 0.01
  mask_equal_texts: bool = True
  initial_bias: float = -10.0
  pair_chunk: int = 1024
  crop_secs: float = 10.0
  alarms: contrastive_alarms.ContrastiveAlarmConfig = (
    contrastive_alarms.ContrastiveAlarmConfig()
  )

  def __post_init__(self):
    if self.loss not in pair_losses.LOSSES:
      raise ValueError(
        f"loss={self.loss!r}: expected one of {pair_losses.LOSSES}"
      )
    if self.pair_chunk < 1:
      raise ValueError(f"pair_chunk={self.pair_chunk}: expected >= 1")
    if not 0 < self.min_temperature <= 1:
      raise ValueError(
        f"min_temperature={self.min_temperature}: expected in (0, 1]"
      )
    if not self.crop_secs > 0:
      raise ValueError(f"crop_secs={self.crop_secs}: expected > 0")


def text_ids(tokens: jax.Array) -> jax.Array:
  """uint32 `[batch, 2]`, equal where two rows hold the same text.

  Two hashes: comparing tokens themselves, a chunk of pairs at a time, would
  hold `[rows, chunk, length]`.

  Args:
    tokens: int32 `[batch, length]`.
  """
  generator = np.random.default_rng(0)
  factors = generator.integers(1, 2**31, (2, tokens.shape[1])) * 2 + 1
  products = tokens.astype(jnp.uint32)[:, None] * factors.astype(np.uint32)
  hashes = products.sum(-1, dtype=jnp.uint32)
  # Sums of products collide along low bits; mixing spreads every bit.
  return (hashes ^ (hashes >> 15)) * jnp.uint32(2246822519)


class TextWeights(Protocol):
  """Parameters of a text tower, on disk (`systems/bert_import.py`)."""

  def load(self, config: mulan_text.BertTowerConfig) -> dict[str, Any]:
    """Those of the tower's parameters that are there, by top-level name."""


class Contrastive:
  """Trainable of MuLan (`core/protocols.py`).

  Attributes:
    config: the loss.
    network: the towers; its 'params' are all variables.
    text_weights: where the text tower starts from, or None.
  """

  def __init__(
    self,
    config: ContrastiveConfig,
    network_config: mulan.MuLanConfig,
    precision: precision_lib.Precision | None = None,
    text_weights: TextWeights | None = None,
  ):
    """Binds a loss to a network.

    Args:
      config: the loss.
      network_config: sizes of the towers.
      precision: dtypes; float32 by default.
      text_weights: of a text tower of kind 'bert'; None starts it at random.

    Raises:
      ValueError: if there are weights for a tower that takes none.
    """
    if text_weights is not None and network_config.text_tower != "bert":
      raise ValueError(
        f"text_weights with text_tower={network_config.text_tower!r}: expected "
        "text_tower='bert'"
      )
    self.config = config
    self.text_weights = text_weights
    self.network = mulan.MuLan(
      network_config, precision or precision_lib.Precision()
    )
    self._num_parts = 1

  @property
  def num_text_ids(self) -> int:
    """Text ids that the text tower knows."""
    return self.network.config.active_text.vocab_size

  def in_parts(self, num_microbatches: int) -> "Contrastive":
    """The same trainable with towers that see part of a batch at a time.

    The loss stays that of the whole batch, and so do its negatives: the
    towers run over one part after the other, the loss over the embeddings of
    all, and the backward pass runs the towers again (as in arXiv 2101.06983).
    Only augmentation and dropout draw otherwise than in one part.

    Args:
      num_microbatches: parts; a divisor of the batch.
    """
    other = copy.copy(self)
    other._num_parts = num_microbatches
    return other

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """`waveform` `[batch, samples]` and `text_tokens` `[batch, length]`.

    A row of `text_tokens` that is all padding is audio without a text.
    """
    network = self.network.config
    samples = round(self.config.crop_secs * network.mel.sample_rate_hz)
    length = network.active_text.max_length
    return {
      "waveform": jax.ShapeDtypeStruct((batch_size, samples), jnp.float32),
      "text_tokens": jax.ShapeDtypeStruct((batch_size, length), jnp.int32),
    }

  def init(self, key: jax.Array, batch: protocols.Batch) -> protocols.Variables:
    """Fresh boxed variables."""
    variables = self.network.init(key, batch["waveform"], batch["text_tokens"])
    if self.config.loss != "sigmoid":
      return variables
    start = jax.nn.initializers.constant(self.config.initial_bias)
    bias = axes.named(start, (None,))(key, (1,), jnp.float32)
    return {"params": {**variables["params"], _BIAS: bias}}

  def network_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """The towers' parameters, without those that only the loss has."""
    return {name: value for name, value in params.items() if name != _BIAS}

  def _embed(
    self, params: Any, batch: protocols.Batch, key: jax.Array, train: bool
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Audio and text embeddings `[batch, dim]` and the log temperature."""

    def towers(waveform, tokens, key):
      return self.network.apply(
        {"params": params},
        waveform,
        tokens,
        deterministic=not train,
        rngs={name: rng.named(key, name) for name in ("augment", "dropout")},
      )

    inputs = batch["waveform"], batch["text_tokens"]
    if self._num_parts == 1:
      return towers(*inputs, key)

    # Rows are dealt out in turn, so each device keeps the rows it holds.
    def deal(x):
      x = x.reshape(-1, self._num_parts, *x.shape[1:])
      return jnp.swapaxes(x, 0, 1)

    def one(part):
      index, waveform, tokens = part
      return towers(waveform, tokens, jax.random.fold_in(key, index))

    *parts, log_temperature = jax.lax.map(
      jax.checkpoint(one, prevent_cse=False),
      (jnp.arange(self._num_parts), *map(deal, inputs)),
    )
    audio, text = (
      jnp.swapaxes(x, 0, 1).reshape(-1, x.shape[-1]) for x in parts
    )
    return audio, text, log_temperature[0]

  def embed_pairs(
    self, variables: protocols.Variables, batch: protocols.Batch, key: jax.Array
  ) -> dict[str, jax.Array]:
    """Both sides of each pair, without augmentation or dropout.

    Args:
      variables: unboxed.
      batch: see `input_shapes`.
      key: typed key.

    Returns:
      `audio` and `text`, float32 `[batch, dim]` of unit length; `text_ids`,
      uint32 `[batch, 2]`, equal where texts are; `has_text`, bool `[batch]`.
    """
    params = self.network_params(variables["params"])
    audio, text, _ = self._embed(params, batch, key, train=False)
    tokens = batch["text_tokens"]
    return {
      "audio": audio.astype(jnp.float32),
      "text": text.astype(jnp.float32),
      "text_ids": text_ids(tokens),
      "has_text": (tokens > 0).any(1),
    }

  @property
  def num_warm_start_batches(self) -> int:
    """1 where the text tower has weights to start from; none is read."""
    return int(self.text_weights is not None)

  def warm_start(
    self,
    variables: protocols.Variables,
    batches: Iterable[protocols.Batch],
    key: jax.Array,
  ) -> dict[str, Any]:
    """Puts the weights from disk in place of the text tower's random ones.

    Args:
      variables: fresh, unboxed.
      batches: not used.
      key: not used.

    Returns:
      'params', in which the projection to the joint space is still random.

    Raises:
      UserError: if the weights do not fit the tower.
    """
    del batches, key
    params = dict(variables["params"])
    loaded = self.text_weights.load(self.network.config.active_text)
    params["text"] = {**params["text"], **loaded}
    return {"params": params}

  def alarm_rules(self, batch_size: int) -> tuple[alarms.AlarmRule, ...]:
    """Chance, collapse, hubs and the temperature (`contrastive_alarms.py`)."""
    config = self.config
    return contrastive_alarms.rules(
      config.alarms,
      batch_size,
      self.network.config.output_dim,
      config.min_temperature,
    )

  def loss(
    self,
    variables: protocols.Variables,
    batch: protocols.Batch,
    key: jax.Array,
    step: jax.Array,
    train: bool,
  ) -> tuple[jax.Array, protocols.LossOutput]:
    """Mean loss over the pairs of the global batch.

    Rows without a text are no pairs: loss, gradients and metrics are those of
    the batch without them, and 0 where no row has a text.

    Args:
      variables: unboxed, `{'params': ...}`.
      batch: see `input_shapes`.
      key: of this step.
      step: not used.
      train: augmentation and dropout.

    Returns:
      Loss, and metrics `loss`, `loss_minus_chance` (loss minus that of a
      constant encoder: ln(batch) for 'infonce', ln(2 (batch - 1)) for
      'mulan', where no texts repeat), `loss_over_chance` (their ratio), but
      with 'sigmoid' `loss_minus_log_batch`; of retrieval within the batch
      `recall_at_1_audio_to_text`, `recall_at_10_audio_to_text`,
      `median_rank_audio_to_text` (1 is best; pairs with the same text are
      not counted) and the same `_text_to_audio`; those of
      `embedding_health.panel`; `pairs_share`, rows that have a text;
      `temperature`, and with 'sigmoid' `bias`.
    """
    del step
    config, params = self.config, variables["params"]
    bias = params.get(_BIAS, jnp.zeros(1))[0]
    audio, text, log_temperature = self._embed(
      self.network_params(params), batch, key, train
    )
    temperature = jnp.clip(
      jnp.exp(log_temperature.astype(jnp.float32)), config.min_temperature, 1.0
    )
    present = (batch["text_tokens"] > 0).any(1)
    if config.mask_equal_texts:
      ids = text_ids(batch["text_tokens"])
    else:
      ids = jnp.arange(len(audio))[:, None]
    found = pair_losses.pair_losses(
      audio,
      text,
      ids,
      1 / temperature,
      bias,
      config.loss,
      config.pair_chunk,
      present,
    )
    chance = pair_losses.chance_losses(
      found.num_negatives, config.loss, present
    )
    values = {
      "loss": found.loss,
      "loss_minus_chance": found.loss - chance,
      "recall_at_1_audio_to_text": found.hit_text,
      "recall_at_1_text_to_audio": found.hit_audio,
      "recall_at_10_audio_to_text": present & (found.rank_text < 10),
      "recall_at_10_text_to_audio": present & (found.rank_audio < 10),
    }
    one, count = jnp.float32(1), present.sum(dtype=jnp.float32)
    metrics = {
      name: protocols.Mean(value.sum(dtype=jnp.float32), count)
      for name, value in values.items()
    }
    metrics["loss_over_chance"] = protocols.Mean(
      found.loss.sum(), jnp.maximum(chance.sum(), 1e-9)
    )
    if config.loss != "sigmoid":
      log_batch = jnp.log(jnp.maximum(count, 1.0))
      metrics["loss_minus_log_batch"] = protocols.Mean(
        found.loss.sum() - count * log_batch, count
      )
    metrics.update(embedding_health.panel(audio, text, found, present))
    for name, rank in (
      ("audio_to_text", found.rank_text),
      ("text_to_audio", found.rank_audio),
    ):
      median = jnp.nanmedian(jnp.where(present, rank, jnp.nan)) + 1
      metrics[f"median_rank_{name}"] = protocols.Mean(
        jnp.where(count > 0, median, 0.0), jnp.minimum(count, 1)
      )
    metrics["pairs_share"] = protocols.Mean(count, jnp.float32(len(audio)))
    metrics["temperature"] = protocols.Mean(temperature, one)
    if config.loss == "sigmoid":
      metrics["bias"] = protocols.Mean(bias, one)
    loss = found.loss.sum() / jnp.maximum(count, 1)
    return loss, protocols.LossOutput({}, metrics)
