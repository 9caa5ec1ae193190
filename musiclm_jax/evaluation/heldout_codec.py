# SPDX-License-Identifier: Apache-2.0
"""What a codec's first codebooks give while it trains: an evaluator.

The held-out loss decodes all codebooks; a coarse stage hears only the first.
"""

import dataclasses
from typing import Any

import numpy as np

from musiclm_jax.core import metric_directions, protocols


@dataclasses.dataclass(frozen=True)
class HeldoutCodec:
  """An `Evaluator` of trainables with `distances_by_codebooks`.

  Attributes:
    num_codebooks: how many of the first codebooks are decoded.
    every_steps: how often; 0 goes with the held-out loss.
    num_batches: at most so many held-out batches; 0 takes all.
    name: metrics are 'NAME/log_mel_distance_04', ... .
  """

  num_codebooks: tuple[int, ...] = (1, 4, 12)
  every_steps: int = 0
  num_batches: int = 4
  name: str = "codec"

  def __post_init__(self):
    object.__setattr__(self, "num_codebooks", tuple(self.num_codebooks))
    if not self.num_codebooks or min(self.num_codebooks) < 1:
      raise ValueError(
        f"num_codebooks={self.num_codebooks}: expected numbers >= 1"
      )
    for field in ("every_steps", "num_batches"):
      if getattr(self, field) < 0:
        raise ValueError(f"{field}={getattr(self, field)}: expected >= 0")

  @property
  def directions(self) -> dict[str, str]:
    """A distance is best when small."""
    names = map(_metric, self.num_codebooks)
    return dict.fromkeys(names, metric_directions.MIN)

  def fits(self, trainable: Any) -> bool:
    """Whether it is a codec with as many codebooks."""
    return (
      hasattr(trainable, "distances_by_codebooks")
      and max(self.num_codebooks) <= trainable.config.codec.num_codebooks
    )

  def rows(
    self,
    trainable: Any,
    variables: protocols.Variables,
    batch: protocols.Batch,
    key: Any,
  ) -> Any:
    """float32 `[batch, len(num_codebooks)]` in nats."""
    del key
    return trainable.distances_by_codebooks(
      variables, batch["waveform"], self.num_codebooks
    )

  def score(self, rows: np.ndarray) -> dict[str, float]:
    """Means over all crops."""
    means = rows.mean(0, dtype=np.float64)
    return {
      _metric(count): float(mean)
      for count, mean in zip(self.num_codebooks, means, strict=True)
    }


def _metric(count: int) -> str:
  return f"log_mel_distance_{count:02d}"
