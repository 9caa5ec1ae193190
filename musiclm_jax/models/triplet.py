# SPDX-License-Identifier: Apache-2.0
"""Semi-hard triplet training of the melody embedder: clips in, loss out.

Rows with the same melody, in other voices or by other players, are pulled
together; all other rows of the global batch are candidates to be pushed away
(MusicLM appendix C; mining as in FaceNet, arXiv 1503.03832 sec. 3.2).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from musiclm_jax.core import alarms, protocols, rng
from musiclm_jax.core import precision as precision_lib
from musiclm_jax.models import melody_alarms
from musiclm_jax.networks import melody


@dataclasses.dataclass(frozen=True)
class TripletConfig:
  """The loss.

  Attributes:
    margin: squared distance by which a negative must be farther than the
      positive. FaceNet's; the paper gives none.
    crop_secs: audio of one training example.
    alarms: when to call out.
  """

  margin: float = 0.2
  crop_secs: float = 4.0
  alarms: melody_alarms.MelodyAlarmConfig = melody_alarms.MelodyAlarmConfig()

  def __post_init__(self):
    if not self.margin > 0:
      raise ValueError(f"margin={self.margin}: expected > 0")
    if not self.crop_secs > 0:
      raise ValueError(f"crop_secs={self.crop_secs}: expected > 0")


class Triplets(NamedTuple):
  """Every pair (anchor, other) with the negative mined for it.

  Attributes:
    loss: float32 `[batch, batch]`, anchor first; 0 where there is no triplet.
    positive: float32 `[batch, batch]`, squared distance of the pair.
    negative: float32 `[batch, batch]`, that of anchor and negative.
    valid: bool `[batch, batch]`, True where other is a positive of anchor and
      anchor has a negative.
  """

  loss: jax.Array
  positive: jax.Array
  negative: jax.Array
  valid: jax.Array


def squared_distances(embeddings: jax.Array) -> jax.Array:
  """float32 `[batch, batch]` between unit vectors `[batch, dim]`."""
  similarity = jnp.einsum(
    "id,jd->ij", embeddings, embeddings, precision=jax.lax.Precision.HIGHEST
  )
  return jnp.maximum(2.0 - 2.0 * similarity, 0.0)


def semi_hard_triplets(
  distances: jax.Array,
  ids: jax.Array,
  margin: float,
  is_real: jax.Array | None = None,
) -> Triplets:
  """Mines one negative for every pair with the same id.

  It is the nearest one that is farther than the positive; if all are nearer,
  the farthest of them. The hardest, nearest of all, would collapse the
  embedding early in training.

  Args:
    distances: float32 `[batch, batch]`, symmetric.
    ids: int32 `[batch]`, same number for the same melody.
    margin: see `TripletConfig`.
    is_real: bool `[batch]`, False for rows that only fill the batch; None: all
      are real.
  """
  size = len(ids)
  if is_real is None:
    is_real = jnp.ones(size, bool)
  # A row that fills is neither the same as another nor different from it.
  both = is_real[:, None] & is_real[None]
  same = (ids[:, None] == ids[None]) & both
  differs = (ids[:, None] != ids[None]) & both
  count = differs.sum(1)
  # Negatives by distance, then everything else.
  fixed = jax.lax.stop_gradient(distances)
  far = jnp.where(differs, fixed, jnp.inf)
  order = jnp.argsort(far, axis=1)
  ranked = jnp.take_along_axis(far, order, axis=1)
  beyond = jax.vmap(lambda row, at: jnp.searchsorted(row, at, side="right"))(
    ranked, fixed
  )
  beyond = jnp.clip(beyond, 0, jnp.maximum(count - 1, 0)[:, None])
  chosen = jnp.take_along_axis(order, beyond, axis=1)
  negative = jnp.take_along_axis(distances, chosen, axis=1)
  valid = same & ~jnp.eye(size, dtype=bool) & (count > 0)[:, None]
  loss = jnp.maximum(distances - negative + margin, 0.0)
  return Triplets(jnp.where(valid, loss, 0.0), distances, negative, valid)


def _spread(embeddings: jax.Array, is_real: jax.Array) -> protocols.Mean:
  weights = is_real.astype(jnp.float32)[:, None]
  count = weights.sum()
  mean = (weights * embeddings).sum(0) / jnp.maximum(count, 1.0)
  return protocols.Mean((weights * (embeddings - mean) ** 2).sum(), count)


class Triplet:
  """Trainable of the melody embedder (`core/protocols.py`).

  Attributes:
    config: the loss.
    network: the embedder; its 'params' are all variables.
  """

  def __init__(
    self,
    config: TripletConfig,
    network_config: melody.MelodyConfig,
    precision: precision_lib.Precision | None = None,
  ):
    """Binds a loss to a network.

    Args:
      config: the loss.
      network_config: sizes of the embedder.
      precision: dtypes; float32 by default.

    Raises:
      ValueError: if a crop is longer than a window of the network.
    """
    if config.crop_secs > network_config.window_secs:
      raise ValueError(
        f"crop_secs={config.crop_secs}: expected at most window_secs="
        f"{network_config.window_secs}"
      )
    self.config = config
    self.network = melody.MelodyEmbedder(
      network_config, precision or precision_lib.Precision()
    )

  def alarm_rules(self, batch_size: int) -> tuple[alarms.AlarmRule, ...]:
    """What means trouble, for the loop to call out."""
    del batch_size
    return melody_alarms.rules(self.config.alarms, self.config.margin)

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """`waveform` `[batch, samples]` and `melody_ids` `[batch]`."""
    rate_hz = self.network.config.mel.sample_rate_hz
    samples = round(self.config.crop_secs * rate_hz)
    return {
      "waveform": jax.ShapeDtypeStruct((batch_size, samples), jnp.float32),
      "melody_ids": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }

  def init(self, key: jax.Array, batch: protocols.Batch) -> protocols.Variables:
    """Fresh boxed variables."""
    return self.network.init(key, batch["waveform"])

  def loss(
    self,
    variables: protocols.Variables,
    batch: protocols.Batch,
    key: jax.Array,
    step: jax.Array,
    train: bool,
  ) -> tuple[jax.Array, protocols.LossOutput]:
    """Mean loss over the pairs of the global batch that share a melody.

    Args:
      variables: unboxed, `{'params': ...}`.
      batch: see `input_shapes`.
      key: of this step.
      step: not used.
      train: dropout.

    Returns:
      Loss, and metrics `loss`, `active` (share of triplets inside the margin),
      `distance_positive`, `distance_negative` (squared; 2 is that of unrelated
      directions), `recall_at_1` (share of clips whose nearest other clip has
      their melody, of those that have another), and `spread`, the mean squared
      distance of all rows from their mean: 0 where all clips get one
      embedding, 1 where they lie all around.
    """
    del step
    ids = batch["melody_ids"]
    is_real = batch.get("example_weights", jnp.ones(len(ids))) > 0
    embeddings = self.network.apply(
      {"params": variables["params"]},
      batch["waveform"],
      deterministic=not train,
      rngs={"dropout": rng.named(key, "dropout")},
    )
    distances = squared_distances(embeddings)
    triplets = semi_hard_triplets(distances, ids, self.config.margin, is_real)
    valid = triplets.valid.astype(jnp.float32)
    count = valid.sum()
    total = triplets.loss.sum()
    hidden = jnp.eye(len(ids), dtype=bool) | ~is_real
    nearest = jnp.where(hidden, jnp.inf, distances).argmin(1)
    has_other = triplets.valid.any(1).astype(jnp.float32)
    hits = (ids[nearest] == ids).astype(jnp.float32) * has_other
    metrics = {
      "loss": protocols.Mean(total, count),
      "active": protocols.Mean(((triplets.loss > 0) * valid).sum(), count),
      "distance_positive": protocols.Mean(
        (triplets.positive * valid).sum(), count
      ),
      "distance_negative": protocols.Mean(
        (triplets.negative * valid).sum(), count
      ),
      "recall_at_1": protocols.Mean(hits.sum(), has_other.sum()),
      "spread": _spread(embeddings, is_real),
    }
    return total / jnp.maximum(count, 1.0), protocols.LossOutput({}, metrics)
