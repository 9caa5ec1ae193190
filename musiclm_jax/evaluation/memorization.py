# SPDX-License-Identifier: Apache-2.0
"""Does a stage know its training examples by heart (MusicLM sec. 5.6, 6.2).

Continuations that a stage made greedily and what really follows flow in; exact
and approximate matches with their intervals flow out. Approximate means that
little has to be moved between the two histograms of tokens
(`evaluation/optimal_transport.py`); how little is measured on permuted pairs.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.core import errors
from musiclm_jax.evaluation import bootstrap, optimal_transport

# The paper: fewer than 0.01 % of permuted pairs may count as matches.
MAX_FALSE_RATE = 1e-4
CONFIDENCE = 0.95
_Z = 1.959963984540054  # of a two-sided 95 % interval
_CHUNK = 4096
_MAX_SHOWN_COSTS = 2000
_MIN_DRAWS, _MAX_DRAWS, _MAX_DRAWN = 200, 2000, 20_000_000
# In mean centroid distances; below it is what Sinkhorn leaves of nothing.
_NO_COST = 1e-3


def exact_matches(generated: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """Whether all tokens are equal.

  Args:
    generated: int `[..., frames]`.
    targets: int, of the same shape.

  Returns:
    bool `[...]`.
  """
  generated, targets = np.asarray(generated), np.asarray(targets)
  if generated.shape != targets.shape:
    raise ValueError(
      f"targets of shape {targets.shape}: expected {generated.shape}"
    )
  return (generated == targets).all(-1)


def rate_interval(count: int, total: int) -> bootstrap.Interval:
  """A share with its 95 % Wilson interval.

  Not a bootstrap: that of no matches at all is [0, 0], however few examples.

  Args:
    count: of matches.
    total: of examples, at least 1.
  """
  if not 0 <= count <= total or total < 1:
    raise ValueError(
      f"count={count}, total={total}: expected 0 <= count <= total"
    )
  rate = count / total
  scale = 1 + _Z**2 / total
  centre = (rate + _Z**2 / (2 * total)) / scale
  half = (
    _Z / scale * math.sqrt(rate * (1 - rate) / total + _Z**2 / (4 * total**2))
  )
  low = 0.0 if count == 0 else max(0.0, centre - half)
  high = 1.0 if count == total else min(1.0, centre + half)
  return bootstrap.Interval(rate, low, high)


def highest_rate(count: int, total: int) -> float:
  """The rate that so few events leave possible, one-sided at 95 %.

  Of a Poisson distribution, which is slightly above that of a binomial one.
  """
  low, high = 0.0, count + 20.0 + 10 * math.sqrt(count + 1)
  for _ in range(100):
    middle = (low + high) / 2
    below = sum(
      math.exp(k * math.log(middle) - middle - math.lgamma(k + 1))
      for k in range(count + 1)
    )
    low, high = (middle, high) if below > 1 - CONFIDENCE else (low, middle)
  return min(1.0, high / max(total, 1))


def num_pairs_needed(max_rate: float = MAX_FALSE_RATE) -> int:
  """Pairs without a single false match that show a rate below `max_rate`."""
  return math.ceil(highest_rate(0, 1 << 40) * (1 << 40) / max_rate)


@dataclasses.dataclass(frozen=True)
class Calibration:
  """The threshold of approximate matches and how well it is known.

  Attributes:
    tau: pairs that cost less count as matches; in centroid distances.
    source: 'calibrated' or 'given'.
    num_pairs: permuted pairs it was set with; 0 where it was given.
    num_false: of them that count as matches.
    highest_rate: of false matches, one-sided 95 %.
    num_check_pairs: other permuted pairs.
    num_check_false: of them that count as matches.
    check_rate: share of them.
    highest_check_rate: one-sided 95 %.
    num_pairs_needed: to show a rate below `max_false_rate` at all.
    max_false_rate: what was asked for.
    control_costs: costs of some permuted pairs, for a figure.
    warnings: in words.
  """

  tau: float
  source: str
  num_pairs: int
  num_false: int
  highest_rate: float
  num_check_pairs: int
  num_check_false: int
  check_rate: float
  highest_check_rate: float
  num_pairs_needed: int
  max_false_rate: float
  control_costs: tuple[float, ...]
  warnings: tuple[str, ...]


def permuted_pairs(
  groups: Sequence[str], num_lengths: int, num_pairs: int, seed: int
) -> np.ndarray:
  """Pairs of examples that have nothing to do with each other.

  Args:
    groups: work of each example; no pair is of one work.
    num_lengths: prompt lengths; both of a pair have the same one.
    num_pairs: most of them; all are different.
    seed: of the draw.

  Returns:
    int64 `[pairs, 3]`: generated example, target example, prompt length.
  """
  _, group = np.unique(np.asarray(groups, str), return_inverse=True)
  count = len(group)
  total = count * count * num_lengths
  rng = np.random.default_rng(seed)
  # A part of what is drawn is of one work.
  same = float(((np.bincount(group) / count) ** 2).sum()) if count else 1.0
  wanted = math.ceil(1.1 * num_pairs / max(1 - same, 1e-9)) + 100
  if wanted >= total:
    drawn = rng.permutation(total)
  else:
    drawn = rng.choice(total, wanted, replace=False)
  rest, length = np.divmod(drawn, num_lengths)
  first, second = np.divmod(rest, max(count, 1))
  apart = group[first] != group[second]
  pairs = np.stack([first, second, length], 1)[apart]
  return pairs[:num_pairs]


class _Pairs:
  """Permuted pairs, their cost known only from below at first."""

  def __init__(
    self,
    transport: optimal_transport.Transport,
    generated: np.ndarray,
    targets: np.ndarray,
    pairs: np.ndarray,
  ):
    """Takes tokens int `[examples, lengths, frames]` and `[pairs, 3]`."""
    lengths, frames = generated.shape[1:]
    self._transport = transport
    self._first, self._second = (
      optimal_transport.histograms(tokens.reshape(-1, frames))
      for tokens in (generated, targets)
    )
    self._rows = pairs[:, :2] * lengths + pairs[:, 2:]
    means = [transport.means(one) for one in (self._first, self._second)]
    self.bounds = np.concatenate(
      [np.zeros(0)]
      + [
        transport.lower_bounds(means[0][rows[:, 0]], means[1][rows[:, 1]])
        for rows in np.split(self._rows, range(_CHUNK, len(pairs), _CHUNK))
      ]
    )

  def costs(self, which: np.ndarray) -> np.ndarray:
    """What pairs `which` cost."""
    rows = self._rows[which]
    return self._transport.costs(
      self._first.take(rows[:, 0]), self._second.take(rows[:, 1])
    )

  def smallest(self, which: np.ndarray, count: int) -> np.ndarray:
    """The `count` smallest costs of pairs `which`, ascending.

    Pairs are looked at from the lowest bound on; once that is above what was
    found, no other can be smaller.
    """
    order = which[np.argsort(self.bounds[which], kind="stable")]
    found = np.empty(0)
    for start in range(0, len(order), _CHUNK // 4):
      part = order[start : start + _CHUNK // 4]
      if len(found) == count and self.bounds[part[0]] > found[-1]:
        break
      found = np.sort(np.concatenate([found, self.costs(part)]))[:count]
    return found

  def num_below(self, which: np.ndarray, tau: float) -> int:
    """How many of pairs `which` cost less than `tau`."""
    near = which[self.bounds[which] < tau]
    return int((self.costs(near) < tau).sum()) if len(near) else 0


def num_allowed(num_pairs: int, max_rate: float = MAX_FALSE_RATE) -> int:
  """False matches among so many pairs that still show a rate below."""
  count = 0
  while highest_rate(count + 1, num_pairs) < max_rate:
    count += 1
  return count


def calibrate(
  transport: optimal_transport.Transport,
  generated: np.ndarray,
  targets: np.ndarray,
  groups: Sequence[str],
  num_pairs: int = 100_000,
  seed: int = 0,
  tau: float | None = None,
  max_rate: float = MAX_FALSE_RATE,
) -> Calibration:
  """Sets the threshold on permuted pairs and checks it on others.

  Half of the pairs set it: as high as the number of false matches among them
  still shows, at 95 %, a rate below `max_rate`. The other half checks it. Where
  there are too few pairs to show that, the lowest cost among them is taken,
  with a warning: no lower threshold can be told from it.

  Args:
    transport: over the clusters of the tokens.
    generated: int `[examples, lengths, frames]`.
    targets: int, likewise.
    groups: work of each example; '' counts as one of its own.
    num_pairs: most of them.
    seed: of the pairs.
    tau: a given threshold, which all pairs then check.
    max_rate: of false matches.

  Raises:
    UserError: if no pair can be made and no `tau` is given.
  """
  groups = [group or f"\0{index}" for index, group in enumerate(groups)]
  drawn = permuted_pairs(groups, generated.shape[1], num_pairs, seed)
  if not len(drawn) and tau is None:
    raise errors.UserError(
      "no two examples of different works: expected some to permute, or a "
      "threshold given with --tau"
    )
  pairs = _Pairs(transport, generated, targets, drawn)
  order = np.arange(len(drawn))
  source, setting, checking = "given", order[:0], order
  warnings, num_false = [], 0
  needed = num_pairs_needed(max_rate)
  if tau is None:
    source = "calibrated"
    half = (len(order) + 1) // 2
    setting, checking = order[:half], order[half:]
    allowed = num_allowed(len(setting), max_rate)
    found = pairs.smallest(setting, allowed + 1)
    tau, num_false = float(found[-1]), int((found < found[-1]).sum())
    if len(setting) < needed:
      warnings.append(
        f"{len(setting)} permuted pairs set the threshold, {needed} are needed "
        f"to show a rate of false matches below {max_rate:.2%}; the lowest "
        "cost among them is taken, and the rate may be as high as "
        f"{highest_rate(0, len(setting)):.2%}"
      )
    if tau < _NO_COST * transport.mean_distance:
      warnings.append(
        "permuted pairs have equal histograms: no approximate match can be "
        "told from chance, only exact ones count"
      )
  num_check_false = pairs.num_below(checking, tau)
  rate = num_check_false / max(len(checking), 1)
  if rate >= max_rate:
    warnings.append(
      f"{num_check_false} of {len(checking)} permuted pairs that did not set "
      f"the threshold count as matches: expected fewer than {max_rate:.2%}"
    )
  return Calibration(
    tau,
    source,
    len(setting),
    num_false,
    highest_rate(num_false, len(setting)),
    len(checking),
    num_check_false,
    rate,
    highest_rate(num_check_false, len(checking)),
    needed,
    max_rate,
    tuple(pairs.costs(order[:_MAX_SHOWN_COSTS]).tolist()) if len(order) else (),
    tuple(warnings),
  )


def _mean(values: np.ndarray) -> dict[str, float] | None:
  """Mean with its interval; fewer draws where there are very many values."""
  if not len(values):
    return None
  draws = max(_MIN_DRAWS, min(_MAX_DRAWS, _MAX_DRAWN // len(values)))
  return bootstrap.mean_interval(values, draws).to_dict()


def curve(
  prompt_frames: Sequence[int],
  exact: np.ndarray,
  costs: np.ndarray,
  entropies: np.ndarray,
  tau: float,
) -> list[dict[str, Any]]:
  """Matches by length of the prompt.

  Args:
    prompt_frames: semantic tokens of each prompt.
    exact: bool `[examples, lengths]`.
    costs: float `[examples, lengths]`.
    entropies: of the continuations, in bits, `[examples, lengths]`.
    tau: threshold of approximate matches; exact ones count as such too.

  Returns:
    By length: `prompt_tokens`, `num_examples`, `num_exact`,
    `num_approximate`, `exact` and `approximate` (share with interval),
    `cost` (mean with interval), `cost_quantiles` (1, 10, 50 %), `entropy_bits`
    of all continuations and `match_entropy_bits` of the approximate matches
    (None without any).
  """
  rows = []
  for column, frames in enumerate(prompt_frames):
    is_exact, cost = exact[:, column], costs[:, column]
    near = is_exact | (cost < tau)
    counts = int(is_exact.sum()), int(near.sum())
    rows.append(
      {
        "prompt_tokens": int(frames),
        "num_examples": len(cost),
        "num_exact": counts[0],
        "num_approximate": counts[1],
        "exact": rate_interval(counts[0], len(cost)).to_dict(),
        "approximate": rate_interval(counts[1], len(cost)).to_dict(),
        "cost": _mean(cost),
        "cost_quantiles": np.quantile(cost, (0.01, 0.1, 0.5)).tolist(),
        "entropy_bits": _mean(entropies[:, column]),
        "match_entropy_bits": _mean(entropies[near, column]),
      }
    )
  return rows


def check_gate(
  rows: Sequence[Mapping[str, Any]],
  max_exact: float | None,
  max_approximate: float | None,
) -> list[str]:
  """What exceeds a limit, in words; empty if all is well.

  Args:
    rows: of `curve`; the largest share over them counts.
    max_exact: share of exact matches that is allowed, None for any.
    max_approximate: likewise.
  """
  found = []
  for name, limit in (("exact", max_exact), ("approximate", max_approximate)):
    if limit is None:
      continue
    worst = max(rows, key=lambda row: row[name]["mean"])
    if worst[name]["mean"] > limit:
      found.append(
        f"{worst[name]['mean']:.3%} {name} matches "
        f"({worst[f'num_{name}']} of {worst['num_examples']} at "
        f"{worst['prompt_tokens']} prompt tokens) exceed "
        f"--max_{name}={limit:g}"
      )
  return found
