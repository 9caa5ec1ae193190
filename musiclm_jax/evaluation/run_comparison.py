# SPDX-License-Identifier: Apache-2.0
"""Evaluations of several runs side by side: reports in, a table out.

Numbers that were made in different ways are not put beside each other: the
table says which fields differ in their place. Scores of clips are compared
prompt by prompt, which tells more than two means with their intervals.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.core import errors
from musiclm_jax.evaluation import bootstrap, metric_card


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished evaluation.

  Attributes:
    name: for people; unique among those compared.
    folder: of its files.
    samples: folders of its clips, in the order they are looked for.
    report: as it was written.
  """

  name: str
  folder: pathlib.Path
  samples: tuple[pathlib.Path, ...]
  report: Mapping[str, Any]

  @property
  def cards(self) -> dict[str, metric_card.MetricCard]:
    """By the name of the metric.

    Raises:
      UserError: if one is damaged.
    """
    cards = map(metric_card.MetricCard.from_dict, self.report["cards"])
    return {card.metric: card for card in cards}

  def path(self, file: str) -> pathlib.Path | None:
    """Where a clip is; None where it is not there any more."""
    for folder in self.samples:
      if (folder / file).is_file():
        return folder / file
    return None


def item_keys(items: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
  """What items of runs are paired by: the prompt, and which clip of it.

  Clips that were left out count, so that those behind them keep their pairs.
  """
  return [(item["prompt"], item["take"]) for item in items]


def compare(runs: Sequence[Run]) -> dict[str, Any]:
  """The table of several runs; the first is what others are compared with.

  Returns:
    JSON-compatible: 'runs', names; 'metrics', for each metric 'name',
    'better' and 'cells', one per run: None where it lacks the metric, else
    'value', 'low', 'high', 'num_items', 'num_expected' and 'differs', the
    fields that keep it from being compared with the first; 'paired', for each
    score and further run the mean difference to the first, clip by clip.

  Raises:
    UserError: if there are fewer than 2 runs, two have one name, or a card is
      damaged.
  """
  names = [run.name for run in runs]
  if len(runs) < 2 or len(set(names)) < len(names):
    raise errors.UserError(
      f"runs {names}: expected at least 2, with different names"
    )
  cards = [run.cards for run in runs]
  metrics = list(dict.fromkeys(name for found in cards for name in found))
  table = []
  for metric in metrics:
    first = next(found[metric] for found in cards if metric in found)
    cells = [_cell(first, found.get(metric)) for found in cards]
    table.append({"name": metric, "better": first.better, "cells": cells})
  return {"runs": names, "metrics": table, "paired": _paired(runs, cards)}


def _cell(
  first: metric_card.MetricCard, card: metric_card.MetricCard | None
) -> dict[str, Any] | None:
  if card is None:
    return None
  kept = ("value", "low", "high", "num_items", "num_expected")
  return {
    **{name: getattr(card, name) for name in kept},
    "differs": list(metric_card.differing_fields(first, card)),
  }


def _paired(
  runs: Sequence[Run], cards: Sequence[dict[str, metric_card.MetricCard]]
) -> list[dict[str, Any]]:
  """Mean differences to the first run of clips of the same prompts."""
  by_item = [
    dict(zip(item_keys(run.report["items"]), run.report["items"]))
    for run in runs
  ]
  found = []
  for metric, card in cards[0].items():
    for index in range(1, len(runs)):
      other = cards[index].get(metric)
      if other is None or metric_card.differing_fields(card, other):
        continue
      pairs = [
        (one["scores"][metric], by_item[index][key]["scores"][metric])
        for key, one in by_item[0].items()
        if key in by_item[index]
        and metric in one["scores"]
        and metric in by_item[index][key]["scores"]
      ]
      if len(pairs) < 2:
        continue
      before, after = np.array(pairs, np.float64).T
      found.append(
        {
          "metric": metric,
          "run": runs[index].name,
          "better": card.better,
          "num_items": len(pairs),
          **bootstrap.paired_difference(after, before).to_dict(),
        }
      )
  return found
