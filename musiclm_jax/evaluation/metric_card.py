# SPDX-License-Identifier: Apache-2.0
"""A number with all that it depends on.

A metric card is what is reported in place of a bare number. Two numbers that
were made in different ways look alike and are not: `check_comparable` refuses
them and names the fields that differ.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from musiclm_jax.core import errors

FORMAT_VERSION = 1
LOWER, HIGHER, NEITHER = "lower", "higher", "neither"
# What a card says of its own value, which may differ between comparable ones.
_OUTCOME = ("value", "low", "high", "num_items", "warnings")
# Means of fewer items have intervals that a bootstrap makes too narrow.
_FEW_ITEMS = 30
# KAD is stated reliable from about 50 (arXiv 2502.15602).
_FEW_FOR_KERNEL = 50


@dataclasses.dataclass(frozen=True)
class MetricCard:
  """A metric's value and what it was made with.

  Attributes:
    metric: its name; with an embedder as `prompt_results.title` gives it.
    value: the number; NaN where there is none.
    low: lower end of its interval, NaN if it has none.
    high: upper end.
    unit: 'nats', 'dB', '' for a bare number.
    better: 'lower' or 'higher'.
    num_items: scored clips.
    num_expected: clips there would have been, 5521 for MusicCaps.
    depends_on_num_items: whether the value itself moves with their number, as
      plain FAD does; cards of other numbers are then not comparable.
    confidence: of the interval, in (0, 1).
    items_fingerprint: hash of the list of items that were to be scored
      (`fingerprint_of`), '' if none.
    embedder: its name, or that of the classifier; '' if none.
    embedder_fingerprint: hash of its weights.
    embedder_settings: all of it that changes numbers: resampler, loudness,
      sample rate, window, hop, layer, before or after the activation.
    reference_fingerprint: hash of the reference set, '' if there is none.
    num_reference: clips of the reference set, 0 if there is none.
    settings: of the metric: bandwidth, diagonal, seed, direction.
    warnings: what a reader has to know, one sentence each.
  """

  metric: str
  value: float
  low: float = math.nan
  high: float = math.nan
  unit: str = ""
  better: str = LOWER
  num_items: int = 0
  num_expected: int = 0
  depends_on_num_items: bool = False
  confidence: float = 0.95
  items_fingerprint: str = ""
  embedder: str = ""
  embedder_fingerprint: str = ""
  embedder_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reference_fingerprint: str = ""
  num_reference: int = 0
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  warnings: tuple[str, ...] = ()

  def __post_init__(self):
    """Checks what can be checked, and makes numbers plain.

    Raises:
      ValueError: naming the field.
    """
    for name in ("value", "low", "high"):
      object.__setattr__(self, name, float(getattr(self, name)))
    for name in ("embedder_settings", "settings"):
      object.__setattr__(self, name, _plain(name, getattr(self, name)))
    object.__setattr__(self, "warnings", tuple(self.warnings))
    if not self.metric:
      raise ValueError("metric='': expected a name")
    if self.better not in (LOWER, HIGHER, NEITHER):
      raise ValueError(f"better={self.better!r}: expected 'lower' or 'higher'")
    if not 0 < self.confidence < 1:
      raise ValueError(f"confidence={self.confidence}: expected in (0, 1)")
    if not 0 <= self.num_items <= self.num_expected:
      raise ValueError(
        f"num_items={self.num_items}, num_expected={self.num_expected}: "
        "expected 0 <= num_items <= num_expected"
      )
    if math.isnan(self.low) != math.isnan(self.high) or self.low > self.high:
      raise ValueError(
        f"low={self.low}, high={self.high}: expected low <= high, or neither"
      )
    if bool(self.embedder) != bool(self.embedder_fingerprint):
      raise ValueError(
        f"embedder={self.embedder!r}, embedder_fingerprint="
        f"{self.embedder_fingerprint!r}: expected both or neither"
      )

  @property
  def coverage(self) -> str:
    """How many of the items were scored, as '5,001 of 5,521'."""
    return f"{self.num_items:,} of {self.num_expected:,}"

  def __str__(self):
    """One line: name, value with interval, unit, coverage, warnings."""
    text = f"{self.metric}: {self.value:.4g}"
    if not math.isnan(self.low):
      text += f" [{self.low:.4g}, {self.high:.4g}]"
    text += f" {self.unit}" if self.unit else ""
    better = "" if self.better == NEITHER else f"{self.better} is better, "
    text += f" ({better}n = {self.coverage})"
    return "; ".join((text, *self.warnings))

  def to_dict(self) -> dict[str, Any]:
    """JSON-compatible; numbers that are not finite are null."""
    content = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    for name in ("value", "low", "high"):
      if not math.isfinite(content[name]):
        content[name] = None
    content["warnings"] = list(self.warnings)
    content["coverage"] = self.coverage
    return {"format_version": FORMAT_VERSION, **content}

  @classmethod
  def from_dict(cls, content: Mapping[str, Any]) -> "MetricCard":
    """From what `to_dict` gave.

    Raises:
      UserError: if it is another format, or a field is missing or unknown, or
        has a value that no card may have.
    """
    content = dict(content)
    version = content.pop("format_version", None)
    if version != FORMAT_VERSION:
      raise errors.UserError(
        f"metric card of format {version!r}: expected {FORMAT_VERSION}"
      )
    content.pop("coverage", None)
    names = {field.name for field in dataclasses.fields(cls)}
    if set(content) != names:
      raise errors.UserError(
        f"metric card with wrong fields: missing {sorted(names - set(content))}"
        f", unknown {sorted(set(content) - names)}"
      )
    for name in ("value", "low", "high"):
      if content[name] is None:
        content[name] = math.nan
    try:
      return cls(**content)
    except (TypeError, ValueError) as error:
      raise errors.UserError(f"damaged metric card: {error}") from error


def differing_fields(first: MetricCard, second: MetricCard) -> tuple[str, ...]:
  """Fields that keep two cards from being compared, '' for none.

  Settings are named one by one, as `embedder_settings.hop_secs`.
  """
  skipped = set(_OUTCOME)
  if first.depends_on_num_items or second.depends_on_num_items:
    skipped.discard("num_items")
  found = []
  for field in dataclasses.fields(MetricCard):
    one, other = getattr(first, field.name), getattr(second, field.name)
    if field.name in skipped or one == other:
      continue
    if isinstance(one, Mapping):
      found += [
        f"{field.name}.{key}"
        for key in sorted({*one, *other})
        if key not in one or key not in other or one[key] != other[key]
      ]
    else:
      found.append(field.name)
  return tuple(found)


def check_comparable(first: MetricCard, second: MetricCard) -> None:
  """Refuses two cards whose numbers do not mean the same.

  Raises:
    UserError: naming the fields that differ, with both values.
  """
  found = differing_fields(first, second)
  if found:
    words = ", ".join(
      f"{name} ({_at(first, name)!r} and {_at(second, name)!r})"
      for name in found
    )
    raise errors.UserError(
      f"{first.metric} and {second.metric} cannot be compared: they differ in "
      f"{words}"
    )


def small_sample_warnings(
  num_items: int,
  *,
  num_expected: int | None = None,
  num_vectors: int | None = None,
  embedding_dim: int | None = None,
  is_kernel: bool = False,
) -> tuple[str, ...]:
  """What has to be said of few items.

  Args:
    num_items: scored clips.
    num_expected: clips there would have been.
    num_vectors: of FAD, the fewer of reference and evaluated vectors.
    embedding_dim: of FAD, dimensions of the embedding.
    is_kernel: whether it is KAD.

  Returns:
    Sentences for `MetricCard.warnings`.
  """
  found = []
  if num_vectors is not None and embedding_dim is not None:
    if num_vectors <= embedding_dim:
      found.append(
        f"{num_vectors} vectors do not fill {embedding_dim} dimensions: the "
        "covariance is singular and FAD far too high"
      )
    elif num_vectors < 10 * embedding_dim:
      found.append(
        f"{num_vectors} vectors in {embedding_dim} dimensions: FAD is too high "
        "by a share that depends on n; use FAD-infinity or KAD"
      )
  if is_kernel and num_items < _FEW_FOR_KERNEL:
    found.append(f"n = {num_items}: KAD is uncertain below {_FEW_FOR_KERNEL}")
  elif num_items < _FEW_ITEMS:
    found.append(f"n = {num_items}: intervals are uncertain below {_FEW_ITEMS}")
  if num_expected is not None and num_items < num_expected:
    found.append(f"{num_items:,} of {num_expected:,} items were scored")
  return tuple(found)


def fingerprint_of(items: Iterable[str]) -> str:
  """Hash of a set of items by name or prompt, their order left out."""
  digest = hashlib.sha256()
  for item in sorted(map(str, items)):
    content = item.encode()
    digest.update(len(content).to_bytes(8, "big") + content)
  return digest.hexdigest()[:16]


def _at(card: MetricCard, path: str) -> Any:
  name, _, key = path.partition(".")
  value = getattr(card, name)
  return value.get(key, "absent") if key else value


def _plain(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
  """As JSON gives it back, so that a card equals its round trip."""
  try:
    return json.loads(
      json.dumps(dict(values), allow_nan=False, default=_number)
    )
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name}: expected values for JSON: {error}") from error


def _number(value: Any) -> Any:
  if hasattr(value, "tolist"):
    return value.tolist()
  raise TypeError(f"{value!r} of {type(value).__name__}")
