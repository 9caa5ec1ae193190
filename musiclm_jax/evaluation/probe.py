# SPDX-License-Identifier: Apache-2.0
"""Linear probes: what can be read off tokens by a linear map.

Bags of codes and labels flow in; accuracies on held-out works with intervals,
and who leads, flow out. A probe is a ridge regression onto one-hot labels: its
solution is closed, so nothing is tuned but the ridge, on validation works.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.evaluation import bootstrap

# Multiples of the mean squared length of a feature vector.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TASKS = ("pitch_class", "chord", "tempo", "instrument")
# What tokens of music should tell, and what tokens of sound.
EXPECTED_LEADERS = {
  "pitch_class": "semantic",
  "chord": "semantic",
  "instrument": "acoustic",
}


@dataclasses.dataclass(frozen=True)
class Examples:
  """Labelled windows of one split.

  Attributes:
    features: float32 `[examples, dim]` by name of the features.
    labels: int `[examples]`.
    works: the work of each example.
  """

  features: Mapping[str, np.ndarray]
  labels: np.ndarray
  works: Sequence[str]


def bag_of_codes(codes: np.ndarray, codebook_size: int) -> np.ndarray:
  """Square roots of the shares of each code, level by level.

  Args:
    codes: int `[frames, levels]`, at least one frame.
    codebook_size: entries of each level.

  Returns:
    float32 `[levels * codebook_size]`; each level has length 1.
  """
  frames, levels = codes.shape
  if not frames:
    raise ValueError(f"codes of shape {codes.shape}: expected frames")
  places = codes + codebook_size * np.arange(levels)
  counts = np.bincount(places.reshape(-1), minlength=levels * codebook_size)
  return np.sqrt(counts / frames).astype(np.float32)


def repeats(codes: np.ndarray, num_lags: int) -> np.ndarray:
  """Share of frames with the same code some frames later: rhythm.

  Args:
    codes: int `[frames, levels]`, more than `num_lags` frames.
    num_lags: lags from 1.

  Returns:
    float32 `[levels * num_lags]`.
  """
  if len(codes) <= num_lags:
    raise ValueError(f"{len(codes)} frames: expected more than {num_lags}")
  same = [
    (codes[lag:] == codes[:-lag]).mean(0) for lag in range(1, num_lags + 1)
  ]
  return np.stack(same, axis=1).reshape(-1).astype(np.float32)


def _solve(gram: np.ndarray, ridge: float, right: np.ndarray) -> np.ndarray:
  return np.linalg.solve(gram + ridge * np.eye(len(gram)), right)


def predict(
  train: np.ndarray,
  labels: np.ndarray,
  others: Sequence[np.ndarray],
  ridge: float,
) -> list[np.ndarray]:
  """Labels that a ridge classifier gives.

  Args:
    train: float `[examples, dim]`.
    labels: int `[examples]`.
    others: `[any, dim]` each, to be labelled.
    ridge: as a multiple of the mean squared length of the centred rows.

  Returns:
    int labels of each of `others`.
  """
  classes, places = np.unique(labels, return_inverse=True)
  centre = train.mean(0, dtype=np.float64)
  rows = (train - centre).astype(np.float64)
  targets = np.eye(len(classes))[places]
  mean = targets.mean(0)
  targets = targets - mean
  scale = ridge * (rows**2).sum() / max(len(rows), 1)
  # In whichever of the two spaces is smaller.
  if rows.shape[1] <= len(rows):
    weights = _solve(rows.T @ rows, scale, rows.T @ targets)
  else:
    weights = rows.T @ _solve(rows @ rows.T, scale, targets)
  return [classes[((x - centre) @ weights + mean).argmax(1)] for x in others]


def _by_work(hits: np.ndarray, works: Sequence[str]) -> np.ndarray:
  """Mean hits of each work, in the order of their names."""
  _, places = np.unique(np.asarray(works), return_inverse=True)
  return np.bincount(places, hits) / np.bincount(places)


def probe(
  train: Examples, validation: Examples, test: Examples
) -> dict[str, Any]:
  """Scores every kind of features on one task.

  Args:
    train: what probes are fitted to.
    validation: what ridges are chosen on.
    test: what is scored, of works in neither of the others.

  Returns:
    By name of the features `accuracy` (mean over works, with a bootstrap
    interval over works) and `ridge`; `majority`, that of the commonest label;
    `differences`: intervals of the first features' accuracy minus that of each
    other, work by work; counts.

  Raises:
    ValueError: if a split is empty or shares works with test.
  """
  for name, part in (
    ("train", train), ("validation", validation), ("test", test)
  ):  # fmt: skip
    if not len(part.labels):
      raise ValueError(f"{name}: expected labelled examples, found none")
  seen = {*train.works, *validation.works} & {*test.works}
  if seen:
    raise ValueError(f"test shares works with training, such as {min(seen)}")
  values, counts = np.unique(train.labels, return_counts=True)
  majority = test.labels == values[counts.argmax()]
  result: dict[str, Any] = {
    "num_classes": len(values),
    "num_examples": {
      "train": len(train.labels),
      "validation": len(validation.labels),
      "test": len(test.labels),
    },
    "num_test_works": len({*test.works}),
    "majority": float(_by_work(majority, test.works).mean()),
    "features": {},
    "differences": {},
  }
  means = {}
  for name, rows in train.features.items():
    found = []
    for ridge in RIDGES:
      guess, scored = predict(
        rows,
        train.labels,
        (validation.features[name], test.features[name]),
        ridge,
      )
      right = _by_work(guess == validation.labels, validation.works).mean()
      found.append((right, ridge, scored))
    _, ridge, scored = max(found, key=lambda one: (one[0], one[1]))
    means[name] = _by_work(scored == test.labels, test.works)
    result["features"][name] = {
      "accuracy": bootstrap.mean_interval(means[name]).to_dict(),
      "ridge": ridge,
      "dim": rows.shape[1],
    }
  first, *rest = means
  for name in rest:
    result["differences"][f"{first} - {name}"] = bootstrap.paired_difference(
      means[first], means[name]
    ).to_dict()
  return result


def leader(result: Mapping[str, Any]) -> str:
  """'semantic', 'acoustic', or 'neither' where the interval holds zero."""
  found = result["differences"]["semantic - acoustic"]
  if found["low"] > 0:
    return "semantic"
  return "acoustic" if found["high"] < 0 else "neither"


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
  """Results of all tasks as Markdown."""
  names = list(next(iter(results.values()))["features"])
  lines = [
    "| task (classes) | commonest | "
    + " | ".join(names)
    + " | semantic - acoustic | leads | expected |",
    "|---" * (len(names) + 5) + "|",
  ]

  def interval(found: Mapping[str, float]) -> str:
    low, high = (f"{100 * found[end]:.1f}" for end in ("low", "high"))
    return f"{100 * found['mean']:.1f} ({low} to {high})"

  for task, result in results.items():
    cells = [f"{task} ({result['num_classes']})"]
    cells.append(f"{100 * result['majority']:.1f}")
    cells += [interval(result["features"][n]["accuracy"]) for n in names]
    cells.append(interval(result["differences"]["semantic - acoustic"]))
    cells += [leader(result), EXPECTED_LEADERS.get(task, "-")]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)
