# SPDX-License-Identifier: Apache-2.0
"""Rules that say when a metric means trouble; plain data.

A trainable returns them (`Trainable.alarm_rules`); the training loop compares
them with what it logs (`training/alarms.py`).
"""

import dataclasses
import fnmatch

CONDITIONS = ("below", "above", "near", "grown")
ACTIONS = ("warn", "stop")
SPLITS = ("train", "heldout")


@dataclasses.dataclass(frozen=True)
class AlarmRule:
  """One kind of trouble.

  Attributes:
    name: of the alarm, as logs and the ledger show it.
    metric: the metric that is watched; with `*` or `?`, each metric that fits
      is watched by itself ('codebook_usage/*').
    condition: 'below' or 'above' `threshold`; 'near' it, by `tolerance`; or
      'grown' to `threshold` times the smallest positive value seen so far.
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
    if self.condition == "grown" and self.threshold <= 1:
      raise ValueError(
        f"threshold={self.threshold}: expected > 1 with condition='grown'"
      )

  def watches(self, metric: str, split: str, step: int) -> bool:
    """Whether a value of `metric` after `step` steps concerns this rule."""
    return (
      split == self.split
      and step > self.after_step
      and (not self.until_step or step <= self.until_step)
      and fnmatch.fnmatchcase(metric, self.metric)
    )

  def holds(self, value: float, smallest: float) -> bool:
    """Whether a value is trouble; NaN never is (the loop stops by itself).

    Args:
      value: of the metric.
      smallest: the smallest positive value so far; infinite before any.
    """
    if self.condition == "below":
      return value < self.threshold
    if self.condition == "above":
      return value > self.threshold
    if self.condition == "near":
      return abs(value - self.threshold) <= self.tolerance
    return value > self.threshold * smallest

  def expectation(self, smallest: float) -> str:
    """The condition in words, for the message."""
    if self.condition == "near":
      return f"within {self.tolerance:g} of {self.threshold:g}"
    if self.condition == "grown":
      return (
        f"more than {self.threshold:g} times {smallest:.4g}, its smallest value"
      )
    return f"{self.condition} {self.threshold:g}"
