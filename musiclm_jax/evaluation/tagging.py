# SPDX-License-Identifier: Apache-2.0
"""Tagging: scores and labels of clips in, AUC-ROC and mAP out.

Both are of the order that scores put clips in, tag by tag, then the mean over
tags (macro). Clips are weighted, so that one sorting serves all draws of a
bootstrap over works.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.evaluation import bootstrap

# Draws times clips held at once.
_CHUNK_VALUES = 4_000_000


def curve_areas(
  scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """AUC-ROC and average precision of one tag.

  AUC-ROC is the chance that a clip with the tag scores above one without, a
  tie counting half. Average precision sums the precision at each score times
  the recall gained there; equal scores are one step.

  Args:
    scores: float `[clips]`.
    labels: bool `[clips]`.
    weights: float `[draws, clips]`, at least 0.

  Returns:
    float64 `[draws]` each; NaN where a draw has no clip with the tag, or the
    AUC none without it.
  """
  order = np.argsort(-np.asarray(scores), kind="stable")
  scores, labels = np.asarray(scores)[order], np.asarray(labels, bool)[order]
  starts = np.flatnonzero(np.diff(scores, prepend=np.inf))
  areas, precisions = [], []
  step = max(1, _CHUNK_VALUES // max(len(scores), 1))
  for start in range(0, len(weights), step):
    part = weights[start : start + step][:, order].astype(np.float64)
    hits = np.add.reduceat(part * labels, starts, axis=1)
    misses = np.add.reduceat(part * ~labels, starts, axis=1)
    hits_above, misses_above = hits.cumsum(1), misses.cumsum(1)
    num_hits, num_misses = hits_above[:, -1], misses_above[:, -1]
    pairs = (misses * (hits_above - hits / 2)).sum(1)
    seen = hits_above + misses_above
    precision = hits_above / np.where(seen > 0, seen, 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
      areas.append(pairs / (num_hits * num_misses))
      precisions.append((hits * precision).sum(1) / num_hits)
  return np.concatenate(areas), np.concatenate(precisions)


def _mean_over_tags(values: np.ndarray) -> np.ndarray:
  """Mean over axis 0 of what is there; NaN where nothing is."""
  there = np.isfinite(values)
  total = np.where(there, values, 0.0).sum(0)
  number = there.sum(0)
  return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def table(
  scores: np.ndarray,
  labels: np.ndarray,
  tags: Sequence[str],
  groups: Sequence[str],
  num_resamples: int = 1000,
  seed: int = 0,
) -> dict[str, Any]:
  """Macro AUC-ROC and mAP with 95 % intervals over works or clips.

  Args:
    scores: float `[clips, tags]`; higher means the tag fits better.
    labels: bool `[clips, tags]`.
    tags: their names.
    groups: the work of each clip, or its id where works are not known.
    num_resamples: bootstrap draws of groups.
    seed: of the draws.

  Returns:
    'auc_roc' and 'map', each {'mean', 'low', 'high'}; 'chance_map', the mAP of
    a random order (the mean share of clips with a tag; that of the AUC-ROC is
    0.5); 'tags', by name {'auc_roc', 'average_precision', 'num_clips'};
    'left_out', tags that all clips or none have; 'num_clips', 'num_groups'.

  Raises:
    ValueError: if shapes do not fit, a score is not finite, or no tag is
      left.
  """
  scores, labels = np.asarray(scores), np.asarray(labels, bool)
  expected = (len(groups), len(tags))
  if scores.shape != expected or labels.shape != expected:
    raise ValueError(
      f"scores {scores.shape}, labels {labels.shape}: expected {expected}"
    )
  if not np.isfinite(scores).all():
    raise ValueError("scores: expected finite numbers, found NaN or Inf")
  number = labels.sum(0)
  usable = np.flatnonzero((number > 0) & (number < len(groups)))
  if not len(usable):
    raise ValueError(
      f"tags {list(tags)}: expected one that some clips have and some have not"
    )
  counts = bootstrap.resample_groups(groups, num_resamples, seed)
  once = np.ones((1, len(groups)))
  weights = np.concatenate([once, counts])
  found = np.array(
    [curve_areas(scores[:, i], labels[:, i], weights) for i in usable]
  )
  means = _mean_over_tags(found)
  names = ("auc_roc", "map")
  intervals = {
    name: bootstrap.percentile_interval(row[0], row[1:]).to_dict()
    for name, row in zip(names, means)
  }
  return {
    **intervals,
    "chance_map": float((number[usable] / len(groups)).mean()),
    "tags": {
      tags[i]: {
        "auc_roc": float(area[0]),
        "average_precision": float(precision[0]),
        "num_clips": int(number[i]),
      }
      for i, (area, precision) in zip(usable, found)
    },
    "left_out": [tags[i] for i in range(len(tags)) if i not in usable],
    "num_clips": len(groups),
    "num_groups": len(set(groups)),
  }
