# SPDX-License-Identifier: Apache-2.0
"""Rules that say when a metric means trouble; plain data.

A trainable returns them (`Trainable.alarm_rules`); the training loop compares
them with what it logs (`training/alarms.py`).
"""

import dataclasses
import fnmatch
import math
import statistics
from collections.abc import Sequence

CONDITIONS = ("below", "above", "near", "grown", "risen")
ACTIONS = ("warn", "stop")
SPLITS = ("train", "heldout")


@dataclasses.dataclass(frozen=True)
class AlarmRule:
  """One kind of trouble.

  Attributes:
    name: of the alarm, as logs and the ledger show it.
    metric: the metric that is watched; with `*` or `?`, each metric that fits
      is watched by itself ('codebook_usage/*').
    condition: 'below' or 'above' `threshold`; 'near' it, by `tolerance`;
      'grown' above `threshold` times the median of the values before (for what
      explodes); or 'risen' above `threshold` times the smallest value before
      (for what should only fall).
    threshold: what the value is compared with.
    message: what it means and what to change, in a sentence or two; the
      numbers are put before it.
    tolerance: of 'near', in units of the metric.
    patience_steps: optimizer steps over which the condition must hold each
      time the metric is logged; 0 takes one time.
    after_step: values of steps up to this one are not looked at.
    until_step: nor are values of steps after this one; 0 looks for ever.
    split: 'train' or 'heldout' metrics.
    action: 'warn' logs; 'stop' also ends the training.
  """

  name: str
  metric: str
  condition: str
  threshold: float
  message: str
  tolerance: float = 0.0
  patience_steps: int = 0
  after_step: int = 0
  until_step: int = 0
  split: str = "train"
  action: str = "warn"

  def __post_init__(self):
    for field, choices in (
      ("condition", CONDITIONS), ("split", SPLITS), ("action", ACTIONS)
    ):  # fmt: skip
      if getattr(self, field) not in choices:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected one of {choices}"
        )
    for field in ("tolerance", "patience_steps", "after_step", "until_step"):
      if getattr(self, field) < 0:
        raise ValueError(f"{field}={getattr(self, field)}: expected >= 0")
    if self.is_relative and self.threshold <= 1:
      raise ValueError(
        f"threshold={self.threshold}: expected > 1 with "
        f"condition={self.condition!r}"
      )

  @property
  def is_relative(self) -> bool:
    """Whether values are compared with those before them."""
    return self.condition in ("grown", "risen")

  def watches(self, metric: str, split: str, step: int) -> bool:
    """Whether a value of `metric` after `step` steps concerns this rule."""
    return (
      split == self.split
      and step > self.after_step
      and (not self.until_step or step <= self.until_step)
      and fnmatch.fnmatchcase(metric, self.metric)
    )

  def reference(self, before: Sequence[float]) -> float:
    """What a value is compared with.

    Args:
      before: values so far, not NaN.

    Returns:
      `threshold`, or that many times the median or the smallest of `before`;
      infinite while those are not there or not positive.
    """
    if not self.is_relative:
      return self.threshold
    enough = 3 if self.condition == "grown" else 1
    if len(before) < enough:
      return math.inf
    pick = statistics.median if self.condition == "grown" else min
    usual = pick(before)
    return self.threshold * usual if usual > 0 else math.inf

  def holds(self, value: float, reference: float) -> bool:
    """Whether a value is trouble; NaN never is (the loop stops by itself)."""
    if self.condition == "below":
      return value < reference
    if self.condition == "near":
      return abs(value - reference) <= self.tolerance
    return value > reference

  def expectation(self, reference: float) -> str:
    """The condition in words, for the message."""
    if self.condition == "near":
      return f"within {self.tolerance:g} of {reference:g}"
    if self.is_relative:
      usual = "median" if self.condition == "grown" else "smallest value"
      return (
        f"more than {self.threshold:g} times its {usual} before, "
        f"{reference / self.threshold:.4g}"
      )
    return f"{self.condition} {reference:g}"
