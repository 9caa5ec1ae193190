# SPDX-License-Identifier: Apache-2.0
"""Logged metrics in; alarms, and why a run diverged, out.

A trainable says what is trouble (`core/alarms.py`). The loop hands over what
it logs; each alarm is raised once per metric until its condition has ended.
"""

import collections
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from musiclm_jax.core import alarms as rules_lib
from musiclm_jax.core import protocols

# A loss term this many times its own median has left its usual range.
_UNUSUAL = 10.0
_KEPT = 200


class Diverged(FloatingPointError):
  """A rule with action 'stop' held."""


class Alarm(NamedTuple):
  """A rule whose condition held for long enough.

  Attributes:
    rule: which.
    metric: the metric it held for.
    value: of the metric.
    step: optimizer steps done.
    since: step of the first time in a row.
    reference: what it was compared with.
  """

  rule: rules_lib.AlarmRule
  metric: str
  value: float
  step: int
  since: int
  reference: float

  def __str__(self) -> str:
    rule = self.rule
    lasting = f", since step {self.since}" if self.since < self.step else ""
    return (
      f"alarm {rule.name!r} at step {self.step}: {rule.split} {self.metric} is "
      f"{self.value:.4g}, {rule.expectation(self.reference)}{lasting}. "
      f"{rule.message}"
    )


def rules_of(
  trainable: protocols.Trainable, batch_size: int
) -> tuple[rules_lib.AlarmRule, ...]:
  """The rules a trainable declares; none where it declares none."""
  declared = getattr(trainable, "alarm_rules", None)
  return () if declared is None else tuple(declared(batch_size))


class Alarms:
  """Compares metrics with rules. Remembers since when each holds."""

  def __init__(self, rules: Sequence[rules_lib.AlarmRule]):
    """Starts with nothing seen: after a restart patience begins anew."""
    self._rules = tuple(rules)
    self._since: dict[tuple[str, str], int] = {}
    self._raised: set[tuple[str, str]] = set()
    self._before: dict[tuple[str, str], collections.deque[float]] = {}

  def check(
    self, step: int, values: Mapping[str, float], split: str = "train"
  ) -> list[Alarm]:
    """Alarms that are new.

    Args:
      step: optimizer steps done.
      values: by metric, as logged.
      split: 'train' or 'heldout'.
    """
    found = []
    for rule in self._rules:
      for metric, value in values.items():
        if not rule.watches(metric, split, step):
          continue
        alarm = self._check(rule, metric, value, step)
        if alarm is not None:
          found.append(alarm)
    return found

  def _check(self, rule, metric, value, step) -> Alarm | None:
    place = (rule.name, metric)
    before = self._before.setdefault(place, collections.deque(maxlen=_KEPT))
    reference = rule.reference(before)
    if rule.is_relative and math.isfinite(value):
      if rule.condition == "risen" and before:
        # The smallest of all, also of those too long ago to be kept.
        before[0] = min(before[0], value)
      else:
        before.append(value)
    if not rule.holds(value, reference):
      self._since.pop(place, None)
      self._raised.discard(place)
      return None
    since = self._since.setdefault(place, step)
    if step - since < rule.patience_steps or place in self._raised:
      return None
    self._raised.add(place)
    return Alarm(rule, metric, value, step, since, reference)


def raise_if_stopping(alarms: Iterable[Alarm], history: "History") -> None:
  """Raises Diverged for the first alarm whose rule stops the training.

  Args:
    alarms: new ones.
    history: says what went bad first.
  """
  for alarm in alarms:
    if alarm.rule.action == "stop":
      raise Diverged(f"{alarm} {history.explain()}")


class History:
  """Loss terms over the last steps: which of them went bad first."""

  def __init__(self, trainable: Any):
    """Reads `trainable.loss_terms`: by player, names of metrics in order.

    Without it, all metrics are terms of one nameless player.
    """
    self._players = dict(getattr(trainable, "loss_terms", {}))
    self._points: collections.deque[tuple[int, dict[str, float]]] = (
      collections.deque(maxlen=_KEPT)
    )

  def add(self, step: int, values: Mapping[str, float]) -> None:
    """Keeps the values of a step, or their means over the steps up to it."""
    self._points.append((step, dict(values)))

  def first(self, metrics: Sequence[str]) -> str:
    """Of some loss terms, the one computed first and whose it is, or ''."""
    for term in self._terms():
      if term in metrics and self.player(term):
        return f"{term}{self.player(term)}"
    return ""

  def player(self, metric: str) -> str:
    """' of the PLAYER', or nothing where there are no players."""
    for name, metrics in self._players.items():
      if metric in metrics:
        return f" of the {name}"
    return ""

  def _terms(self) -> list[str]:
    if self._players:
      return [term for terms in self._players.values() for term in terms]
    names = {name: None for _, values in self._points for name in values}
    return list(names)

  def _departure(self, term: str) -> tuple[int, float, float] | None:
    """(step, value, usual value) from which on a term was unusual."""
    series = [
      (step, values[term])
      for step, values in self._points
      if math.isfinite(values.get(term, math.nan))
    ]
    left = None
    for index, (step, value) in enumerate(series):
      if left is None:
        before = [abs(v) for _, v in series[:index] if v]
        usual = statistics.median(before) if before else 0.0
        if usual and abs(value) > _UNUSUAL * usual:
          left = (step, value, usual)
      elif abs(value) <= _UNUSUAL * left[2]:
        left = None
    return left

  def explain(self) -> str:
    """A sentence on the term that left its usual range first."""
    found = [
      (departure, term)
      for term in self._terms()
      if (departure := self._departure(term)) is not None
    ]
    if not found:
      return "No loss term had grown before it."
    # Terms are in the order they are computed in: the sort keeps it.
    (step, value, usual), term = min(found, key=lambda one: one[0][0])
    more = [name for _, name in found if name != term]
    also = f" (after it: {', '.join(more)})" if more else ""
    return (
      f"First to go bad: {term}{self.player(term)}, {value:.4g} at step {step} "
      f"where {usual:.4g} was usual{also}."
    )
