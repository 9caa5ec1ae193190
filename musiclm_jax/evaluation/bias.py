# SPDX-License-Identifier: Apache-2.0
"""What a set of music is made of: names of items in, shares and distances out.

A facet (instruments, tempi, ...) gives each item no, one or several names. An
item counts once: its names share its weight. Items without a name are counted
apart and left out of the shares.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.evaluation import bootstrap


@dataclasses.dataclass(frozen=True)
class Facet:
  """The names of one facet of the items of one side.

  Attributes:
    names: by item, no, one or several.
    groups: by item; items of a group (a work, a prompt) are alike and are
      drawn together.
  """

  names: tuple[tuple[str, ...], ...]
  groups: tuple[str, ...]

  def __post_init__(self):
    if len(self.names) != len(self.groups):
      raise ValueError(
        f"{len(self.names)} items, {len(self.groups)} groups: expected as many"
      )

  @property
  def num_named(self) -> int:
    """Items that have a name."""
    return sum(map(bool, self.names))

  def table(self, names: Sequence[str]) -> np.ndarray:
    """float64 `[items, names]`, rows of items with a name sum to 1."""
    place = {name: column for column, name in enumerate(names)}
    rows = np.zeros((len(self.names), len(names)))
    for row, found in zip(rows, self.names):
      for name in found:
        row[place[name]] += 1 / len(found)
    return rows


def total_variation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Half the sum of differences of shares, in [0, 1]: 0 equal, 1 disjoint.

  Args:
    first: float `[..., names]`, sums to 1.
    second: the same.
  """
  return 0.5 * np.abs(np.asarray(first) - np.asarray(second)).sum(-1)


def _shares(table: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Shares of each draw, `[draws, names]`; NaN where it has no name."""
  total = counts @ table
  number = total.sum(-1, keepdims=True)
  return np.where(number > 0, total / np.maximum(number, 1e-12), np.nan)


def _side(
  facet: Facet, names: Sequence[str], num_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
  """Shares `[names]`, of draws `[draws, names]`, and both as JSON."""
  table = facet.table(names)
  counts = bootstrap.resample_groups(facet.groups, num_resamples, seed)
  whole = _shares(table, np.ones((1, len(table))))[0]
  draws = _shares(table, counts.astype(np.float64))
  report = {
    "num_items": len(facet.names),
    "num_named": facet.num_named,
    "num_groups": len(set(facet.groups)),
    "shares": {
      name: bootstrap.percentile_interval(share, column).to_dict()
      for name, share, column in zip(names, whole, draws.T)
    },
  }
  return whole, draws, report


def describe(
  facet: Facet, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
  """The shares of one side.

  Args:
    facet: of its items.
    num_resamples: bootstrap draws of groups.
    seed: of the draws.

  Returns:
    'names', the commonest first, and 'corpus': {'num_items', 'num_named',
    'num_groups', 'shares': {name: {'mean', 'low', 'high'}}}.

  Raises:
    ValueError: if no item has a name.
  """
  names = _names(facet)
  return {
    "names": names,
    "corpus": _side(facet, names, num_resamples, seed)[2],
  }


def _names(corpus: Facet, generated: Facet | None = None) -> list[str]:
  """All names, the commonest in the corpus first."""
  sides = [corpus] if generated is None else [corpus, generated]
  for side in sides:
    if not side.num_named:
      raise ValueError("no item has a name: expected at least one")
  known = sorted({n for side in sides for found in side.names for n in found})
  weights = np.ones((1, len(corpus.names)))
  share = _shares(corpus.table(known), weights)[0]
  return [known[i] for i in np.argsort(-share, kind="stable")]


def compare(
  corpus: Facet,
  generated: Facet,
  num_resamples: int = 1000,
  seed: int = 0,
) -> dict[str, Any]:
  """The shares of both sides, and how far they are apart.

  Args:
    corpus: of its clips.
    generated: of what was made.
    num_resamples: bootstrap draws, of the groups of both sides apart.
    seed: of the draws.

  Returns:
    What `describe` returns, 'generated' like 'corpus', and 'total_variation':
    'mean' (of the items as they are), 'low', 'high' (95 %), 'chance' and
    'chance_high', mean and 97.5 % quantile of the distance of as many clips
    drawn from the corpus itself, in groups like theirs, and 'above_chance',
    whether 'mean' is above the latter.

  Raises:
    ValueError: if a side has no item with a name.
  """
  names = _names(corpus, generated)
  whole, draws, report = _side(corpus, names, num_resamples, seed)
  other, other_draws, other_report = _side(
    generated, names, num_resamples, seed + 1
  )
  # Few items are never spread like many, even where all come from one place.
  rows = corpus.table(names)
  drawn = _drawn_like(corpus, generated, num_resamples, seed + 2)
  chance = total_variation(rows[drawn].mean(1), whole)
  distance = float(total_variation(whole, other))
  # Redrawn sides are farther apart than the ones they are drawn from: what the
  # draws say is how far they scatter, not where.
  apart = total_variation(draws, other_draws)
  apart = np.clip(apart - np.nanmean(apart) + distance, 0.0, 1.0)
  high = float(np.quantile(chance, 0.975))
  return {
    "names": names,
    "corpus": report,
    "generated": other_report,
    "total_variation": {
      **bootstrap.percentile_interval(distance, apart).to_dict(),
      "chance": float(chance.mean()),
      "chance_high": high,
      "above_chance": distance > high,
    },
  }


def _drawn_like(
  corpus: Facet, generated: Facet, num_resamples: int, seed: int
) -> np.ndarray:
  """Items of the corpus in groups like those of what was made.

  In place of each group comes a work of the corpus, chosen by how many items
  it has, and items of that work in place of those of the group: items of a
  group are alike on both sides.

  Returns:
    int64 `[draws, generated items with a name]`, places in the corpus.
  """
  named = np.flatnonzero([bool(one) for one in corpus.names])
  _, work = np.unique(
    np.asarray(corpus.groups, str)[named], return_inverse=True
  )
  places = named[np.argsort(work, kind="stable")]
  counts = np.bincount(work)
  starts = np.cumsum(counts) - counts
  sizes = collections.Counter(
    group for group, one in zip(generated.groups, generated.names) if one
  )
  generator = np.random.default_rng(seed)
  chosen = generator.integers(0, len(named), (num_resamples, len(sizes)))
  chosen = np.repeat(work[chosen], list(sizes.values()), axis=1)
  within = generator.random(chosen.shape) * counts[chosen]
  return places[starts[chosen] + within.astype(int)]


def top_names(scores: np.ndarray, names: Sequence[str]) -> list[tuple[str]]:
  """The best name of each item.

  Args:
    scores: float `[items, names]`.
    names: of the columns.
  """
  return [(names[int(one)],) for one in np.asarray(scores).argmax(1)]


def agreement(
  judged: Sequence[Sequence[str]], known: Facet, seed: int = 0
) -> dict[str, float] | None:
  """How often a judge names what is known of an item.

  Args:
    judged: the judge's single name of each item.
    known: what is known of the items.
    seed: of the bootstrap over groups.

  Returns:
    'mean', 'low', 'high' over items with a known name, and 'commonest', the
    same of a judge that always gives the name that fits most items; None
    where nothing is known.
  """
  kept = [place for place, found in enumerate(known.names) if found]
  if not kept:
    return None
  hits = np.array([judged[i][0] in known.names[i] for i in kept], float)
  groups = [known.groups[i] for i in kept]
  counts = bootstrap.resample_groups(groups, 1000, seed)
  every = {name for found in known.names for name in found}
  best = max(sum(name in known.names[i] for i in kept) for name in every)
  return {
    **bootstrap.grouped_mean(hits, counts).to_dict(),
    "commonest": best / len(kept),
  }
