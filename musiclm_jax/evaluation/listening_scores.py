# SPDX-License-Identifier: Apache-2.0
"""Scores a listening test: key and answers in, wins and what to trust out.

The protocol of MusicLM (section 5.2): a win is a strong or a weak preference;
pairs of systems are compared by Wilcoxon's signed-rank test with Bonferroni's
correction. Added here: intervals that know that answers of one rater, and to
one text, are alike; bias of position; agreement; attention checks.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from musiclm_jax.core import errors
from musiclm_jax.evaluation import (
  agreement,
  bootstrap,
  listening_answers,
  listening_design,
  listening_files,
)

COUNTED, FAILED, UNCHECKED = "counted", "failed checks", "no check answered"


@dataclasses.dataclass(frozen=True)
class Settings:
  """What scores depend on, beside the answers.

  Attributes:
    max_failed_share: of a rater's attention checks; with more, none of the
      rater's answers count.
    alpha: level of the tests, before Bonferroni's correction.
    num_resamples: draws of the bootstrap.
    seed: of the draws.
  """

  max_failed_share: float = 0.2
  alpha: float = 0.01
  num_resamples: int = 2000
  seed: int = 0

  def __post_init__(self):
    if not 0 <= self.max_failed_share <= 1:
      raise errors.UserError(
        f"max_failed_share={self.max_failed_share}: expected 0 to 1"
      )
    if not 0 < self.alpha < 1:
      raise errors.UserError(f"alpha={self.alpha}: expected between 0 and 1")
    if self.num_resamples < 1:
      raise errors.UserError(
        f"num_resamples={self.num_resamples}: expected at least 1"
      )


class Row(NamedTuple):
  """A counted answer.

  Attributes:
    rater: who gave it.
    prompt: the text.
    first: system heard as A.
    second: system heard as B.
    preference: -2 for A to 2 for B.
  """

  rater: str
  prompt: str
  first: str
  second: str
  preference: int


def is_passed(item: listening_files.KeyItem, preference: int) -> bool:
  """Whether an attention check is passed: music is preferred to noise."""
  return preference < 0 if item.first else preference > 0


def raters(
  key: listening_files.Key,
  log: listening_answers.Log,
  max_failed_share: float,
) -> list[dict[str, Any]]:
  """What each rater did, and whether it counts."""
  found = []
  for name in sorted(log.sheets):
    answers = [a for a in log.answers.values() if a.rater == name]
    checks = [a for a in answers if key.items[a.item].is_check]
    failed = sum(not is_passed(key.items[a.item], a.preference) for a in checks)
    status = COUNTED
    if not checks:
      status = UNCHECKED
    elif failed > max_failed_share * len(checks):
      status = FAILED
    secs = [a.secs for a in answers]
    found.append(
      {
        "rater": name,
        "status": status,
        "comparisons": len(answers) - len(checks),
        "checks": len(checks),
        "failed_checks": failed,
        "median_secs": float(np.median(secs)) if secs else None,
      }
    )
  return found


def rows(
  key: listening_files.Key,
  log: listening_answers.Log,
  counted: Sequence[str],
) -> list[Row]:
  """Answers of counted raters to what is no check."""
  found = []
  for (rater, item), answer in sorted(log.answers.items()):
    behind = key.items[item]
    if rater in counted and not behind.is_check:
      found.append(
        Row(
          rater, behind.prompt, behind.first, behind.second, answer.preference
        )
      )
  return found


def signed_rank(values: np.ndarray) -> dict[str, Any]:
  """Wilcoxon's signed-rank test of values around 0; zeros are left out.

  Args:
    values: float `[values]`.

  Returns:
    `statistic`, two-sided `p` (1 where nothing is left), `num_nonzero`.
  """
  from scipy import stats

  values = np.asarray(values, np.float64)
  values = values[values != 0]
  if not values.size:
    return {"statistic": 0.0, "p": 1.0, "num_nonzero": 0}
  result = stats.wilcoxon(values)
  return {
    "statistic": float(result.statistic),
    "p": float(result.pvalue),
    "num_nonzero": int(values.size),
  }


def _means(values: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
  """Mean of the values of each group, in the order of the first of each."""
  names = dict.fromkeys(groups)
  places = np.asarray(groups, object)
  return {name: float(values[places == name].mean()) for name in names}


class _Draws:
  """Bootstrap counts of all rows, clustered by rater and by text at once."""

  def __init__(self, answers: Sequence[Row], settings: Settings):
    by_rater = bootstrap.resample_groups(
      [row.rater for row in answers], settings.num_resamples, settings.seed
    )
    by_text = bootstrap.resample_groups(
      [row.prompt for row in answers], settings.num_resamples, settings.seed + 1
    )
    self._counts = by_rater * by_text

  def mean(self, values: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """Mean of chosen rows with its interval; values `[rows]`."""
    if not chosen.any():
      return {"mean": None, "low": None, "high": None}
    found = bootstrap.grouped_mean(values[chosen], self._counts[:, chosen])
    return {
      name: None if value != value else value
      for name, value in found.to_dict().items()
    }


def _pair(
  names: tuple[str, str],
  answers: Sequence[Row],
  draws: _Draws,
  num_pairs: int,
  alpha: float,
) -> dict[str, Any]:
  """All about two systems; values above 0 are for the first one named."""
  chosen = np.array([{row.first, row.second} == set(names) for row in answers])
  values = np.array(
    [
      -row.preference if row.first == names[0] else row.preference
      for row in answers
    ],
    np.float64,
  )
  mine = values[chosen]
  texts = [row.prompt for row, is_mine in zip(answers, chosen) if is_mine]
  by_text = _means(mine, texts)
  tests = {
    "wilcoxon": signed_rank(mine),
    "wilcoxon_by_text": signed_rank(np.array(list(by_text.values()))),
  }
  for one in tests.values():
    one["p_bonferroni"] = min(1.0, one["p"] * num_pairs)
    one["is_significant"] = one["p_bonferroni"] < alpha
  return {
    "systems": list(names),
    "num_comparisons": int(chosen.sum()),
    "wins": [int((mine > 0).sum()), int((mine < 0).sum())],
    "ties": int((mine == 0).sum()),
    # From a strong preference for the first to one for the second.
    "counts": [int((mine == value).sum()) for value in (2, 1, 0, -1, -2)],
    "win_share": [draws.mean(s * values > 0, chosen) for s in (1, -1)],
    "mean_preference": draws.mean(values, chosen),
    **tests,
    "texts": [
      {"prompt": text, "mean_preference": value}
      for text, value in sorted(by_text.items(), key=lambda kv: -kv[1])
    ],
  }


def _system(name: str, answers: Sequence[Row], draws: _Draws) -> dict[str, Any]:
  """Wins of a system against all others."""
  chosen = np.array([name in (row.first, row.second) for row in answers])
  values = np.array(
    [
      -row.preference if row.first == name else row.preference
      for row in answers
    ]
  )
  mine = values[chosen]
  return {
    "system": name,
    "num_comparisons": int(chosen.sum()),
    "wins": int((mine > 0).sum()),
    "ties": int((mine == 0).sum()),
    "losses": int((mine < 0).sum()),
    "win_share": draws.mean(values > 0, chosen),
  }


def _position(answers: Sequence[Row], draws: _Draws) -> dict[str, Any]:
  """Whether the clip heard as A is preferred, whatever it is."""
  values = np.array([-row.preference for row in answers])
  return {
    "first": int((values > 0).sum()),
    "none": int((values == 0).sum()),
    "second": int((values < 0).sum()),
    "share_first": draws.mean(values > 0, values != 0),
    "wilcoxon": signed_rank(values),
  }


def _agreement(
  answers: Sequence[Row], systems: Sequence[str]
) -> dict[str, Any]:
  """Of raters who compared the same clips."""
  names = sorted({row.rater for row in answers})
  units: dict[tuple[str, str, str], dict[str, int]] = {}
  for row in answers:
    low, high = sorted((row.first, row.second), key=list(systems).index)
    value = row.preference if row.first == low else -row.preference
    units.setdefault((row.prompt, low, high), {})[row.rater] = value
  shared = [unit for unit in units.values() if len(unit) > 1]
  ratings = np.full((len(names), len(shared)), np.nan)
  same, pairs = 0, 0
  for column, unit in enumerate(shared):
    for rater, value in unit.items():
      ratings[names.index(rater), column] = value
    signs = np.sign(list(unit.values()))
    count = len(signs)
    same += sum(n * (n - 1) for n in np.unique(signs, return_counts=True)[1])
    pairs += count * (count - 1)
  value = agreement.krippendorff_alpha(ratings) if shared else float("nan")
  return {
    "num_shared_comparisons": len(shared),
    "krippendorff_alpha": None if value != value else value,
    "same_side_share": same / pairs if pairs else None,
  }


def score(
  key: listening_files.Key,
  log: listening_answers.Log,
  num_expected: int,
  settings: Settings,
) -> dict[str, Any]:
  """Scores all answers.

  Args:
    key: to the test.
    log: the answers, of the same test.
    num_expected: comparisons on all sheets, without checks.
    settings: see `Settings`.

  Returns:
    JSON-compatible: `systems`, `pairs`, `position`, `agreement`, `raters`,
    `answers`, `settings`, `warnings`.

  Raises:
    UserError: if no answer counts.
  """
  people = raters(key, log, settings.max_failed_share)
  counted = [one["rater"] for one in people if one["status"] == COUNTED]
  answers = rows(key, log, counted)
  if not answers:
    raise errors.UserError(
      f"no answer counts: {len(people)} raters, of whom "
      f"{sum(one['status'] == FAILED for one in people)} failed attention "
      f"checks and {sum(one['status'] == UNCHECKED for one in people)} "
      "answered none"
    )
  draws = _Draws(answers, settings)
  pairs = [
    (key.systems[low], key.systems[high])
    for low, high in listening_design.pairs(len(key.systems))
  ]
  given = sum(one["comparisons"] for one in people)
  found = {
    "fingerprint": key.fingerprint,
    "settings": dataclasses.asdict(settings),
    "answers": {
      "expected": num_expected,
      "given": given,
      "counted": len(answers),
      "excluded": given - len(answers),
    },
    "num_texts": len({row.prompt for row in answers}),
    "systems": [_system(name, answers, draws) for name in key.systems],
    "pairs": [
      _pair(names, answers, draws, len(pairs), settings.alpha)
      for names in pairs
    ],
    "position": _position(answers, draws),
    "agreement": _agreement(answers, key.systems),
    "raters": people,
  }
  found["warnings"] = _warnings(found)
  return found


def _warnings(found: Mapping[str, Any]) -> list[str]:
  """What a reader has to know before believing a number."""
  notes = []
  states = [one["status"] for one in found["raters"]]
  num_counted, answers = states.count(COUNTED), found["answers"]
  if states.count(FAILED):
    notes.append(
      f"{states.count(FAILED)} of {len(states)} raters failed attention "
      "checks; none of their answers counts."
    )
  if states.count(UNCHECKED):
    notes.append(
      f"{states.count(UNCHECKED)} of {len(states)} raters answered no "
      "attention check; none of their answers counts."
    )
  if answers["counted"] < answers["expected"]:
    notes.append(
      f"{answers['counted']} of {answers['expected']} comparisons count: "
      "systems may have different numbers of them."
    )
  if num_counted < 5:
    notes.append(
      f"{num_counted} raters count: intervals over so few are too narrow."
    )
  low, high = (found["position"]["share_first"][k] for k in ("low", "high"))
  if low is not None and not low <= 0.5 <= high:
    notes.append(
      "Clip A was preferred more, or less, often than clip B. Each pair was "
      "heard in both orders, so wins are not shifted, but ties may hide in it."
    )
  alpha = found["agreement"]["krippendorff_alpha"]
  if not found["agreement"]["num_shared_comparisons"]:
    notes.append("No comparison has two raters: agreement is unknown.")
  elif alpha is None:
    notes.append("All shared comparisons have one answer: no alpha is defined.")
  elif alpha < 0.2:
    notes.append(f"Raters hardly agree (alpha {alpha:.2f}).")
  return notes
