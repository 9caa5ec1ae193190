# SPDX-License-Identifier: Apache-2.0
"""Retrieval among held-out pairs while MuLan trains: an evaluator.

The metrics of the loss rank within a batch; these rank among all pairs that
are read, by the protocol of `retrieval.py`: equal texts are asked once.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from musiclm_jax.core import errors, metric_directions, protocols
from musiclm_jax.evaluation import retrieval

_DIRECTIONS = ("text_to_audio", "audio_to_text")
_METRICS = ("recall_at_1", "recall_at_10", "median_rank")


@dataclasses.dataclass(frozen=True)
class HeldoutRetrieval:
  """An `Evaluator` of trainables with `embed_pairs`.

  Attributes:
    every_steps: how often; 0 goes with the held-out loss.
    num_batches: held-out batches whose pairs are the candidates; 0 takes all.
    name: metrics are 'NAME/recall_at_10_text_to_audio', ... .
  """

  every_steps: int = 0
  num_batches: int = 0
  name: str = "retrieval"

  def __post_init__(self):
    for field in ("every_steps", "num_batches"):
      if getattr(self, field) < 0:
        raise ValueError(f"{field}={getattr(self, field)}: expected >= 0")

  @property
  def directions(self) -> dict[str, str]:
    """Recall is best when large, a rank when small."""
    return {
      f"{metric}_{side}": metric_directions.direction_of(metric)
      for side in _DIRECTIONS
      for metric in _METRICS
    }

  def fits(self, trainable: protocols.Trainable) -> bool:
    """Whether it embeds pairs of text and audio."""
    return hasattr(trainable, "embed_pairs")

  def rows(
    self,
    trainable: Any,
    variables: protocols.Variables,
    batch: protocols.Batch,
    key: Any,
  ) -> Mapping[str, Any]:
    """Embeddings of a batch, `[batch, dim]`, and which texts are equal."""
    return trainable.embed_pairs(variables, batch, key)

  def score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Recall and median rank in both directions.

    Raises:
      UserError: if no row has a text.
    """
    has = rows["has_text"]
    if not has.any():
      raise errors.UserError(f"evaluator {self.name!r}: no held-out texts")
    found = retrieval.retrieval(
      rows["text"][has],
      rows["audio"][has],
      [" ".join(map(str, one)) for one in rows["text_ids"][has]],
    )
    return {
      f"{metric}_{side}": float(found[side][metric])
      for side in _DIRECTIONS
      for metric in _METRICS
    }
