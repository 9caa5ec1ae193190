# SPDX-License-Identifier: Apache-2.0
"""What metrics of generated clips share: clips in, numbers with cards out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.core import protocols
from musiclm_jax.evaluation import (
  bootstrap,
  hearing,
  metric_card,
  published_weights,
)


@dataclasses.dataclass(frozen=True)
class Material:
  """What is compared.

  Attributes:
    names: of the generated clips, in order; only those that can be used.
    keys: of their content, by name.
    texts: of their prompts, by name.
    reference_keys: of the reference clips, in order; empty for none.
    pairs: keys of the reference clip that a generated one is to be like, by
      its name.
    num_expected: generated clips there should be.
    num_reference_expected: reference clips there should be.
    reference: fingerprint of the reference set; '' for none.
    prompts: fingerprint of all prompts there should be clips of.
  """

  names: tuple[str, ...]
  keys: Mapping[str, str]
  texts: Mapping[str, str]
  reference_keys: tuple[str, ...]
  pairs: Mapping[str, str]
  num_expected: int
  num_reference_expected: int
  reference: str
  prompts: str

  @property
  def evaluated_keys(self) -> list[str]:
    """Of the generated clips, in order."""
    return [self.keys[name] for name in self.names]


@dataclasses.dataclass(frozen=True)
class Result:
  """One number.

  Attributes:
    metric: of `prompt_metrics.METRICS`, or a part, as 'text_difference'.
    card: the number, and all that it depends on.
    per_clip: by name of the clip, where it has a number of its own.
    secs: it took, without listening.
  """

  metric: str
  card: metric_card.MetricCard
  per_clip: Mapping[str, float] = dataclasses.field(default_factory=dict)
  secs: float = 0.0


def title(listener: protocols.Listener, metric: str) -> str:
  """What a metric may be called: by the published weights, if it is them.

  Raises:
    ValueError: if the listener claims a name that its weights do not have.
  """
  if metric == "text":
    published = published_weights.short_name(listener)
    if listener.name == "mulan":
      return "MCC"
    return f"{published} score" if published else f"Text ({listener.name})"
  short = {
    "fad": "FAD",
    "fad_infinity": "FAD-inf",
    "kad": "KAD",
    "kld": "KLD",
    "diversity": "Diversity",
    "song_fad": "FAD per song",
  }[metric]
  return published_weights.metric_name(short, listener)


def make(
  listener: protocols.Listener,
  material: Material,
  metric: str,
  name: str,
  value: bootstrap.Interval,
  num_items: int,
  settings: Mapping[str, Any],
  per_clip: Mapping[str, float] | None = None,
  better: str = metric_card.LOWER,
  unit: str = "",
  warnings: Sequence[str] = (),
  with_reference: bool = True,
  **few: Any,
) -> Result:
  """A number with its card; `few` goes to `small_sample_warnings`."""
  task = hearing.CLASSIFY if metric == "kld" else hearing.EMBED
  heard = hearing.describe(listener, task)
  for spent in ("name", "fingerprint", "task"):
    heard.pop(spent)
  notes = metric_card.small_sample_warnings(
    num_items, num_expected=material.num_expected, **few
  )
  expected = material.num_reference_expected
  if with_reference and len(material.reference_keys) < expected:
    notes += (
      f"{len(material.reference_keys):,} of {expected:,} reference clips were "
      "there",
    )
  card = metric_card.MetricCard(
    metric=name,
    value=value.mean,
    low=value.low,
    high=value.high,
    unit=unit,
    better=better,
    num_items=num_items,
    num_expected=max(material.num_expected, num_items),
    depends_on_num_items=metric == "fad",
    items_fingerprint=material.prompts,
    embedder=listener.name,
    embedder_fingerprint=listener.fingerprint,
    embedder_settings=heard,
    reference_fingerprint=material.reference if with_reference else "",
    num_reference=len(material.reference_keys) if with_reference else 0,
    settings=settings,
    warnings=(*warnings, *notes),
  )
  return Result(metric, card, per_clip or {})
