# SPDX-License-Identifier: Apache-2.0
"""Training curves: the loop's metrics files in, lists of points out.

A metrics file has one JSON object per line:
`{"step": 100, "split": "train", "loss": 3.2, ...}`.
"""

import json
import os
import pathlib
from collections.abc import Mapping

from musiclm_jax.core import errors

FILE_NAME = "metrics.jsonl"

# Metric, then (step, value) in rising step order.
Points = list[tuple[int, float]]


def read_metrics(path: str | os.PathLike) -> dict[str, dict[str, Points]]:
  """Reads every scalar of a run.

  Args:
    path: a metrics file, or the model folder that holds `metrics.jsonl`.

  Returns:
    Points by split, then by metric. Where a resumed run wrote a step twice
    the last value counts. A last line cut off by a crash is left out.

  Raises:
    UserError: if the file is missing or a line is damaged.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path = path / FILE_NAME
  if not path.is_file():
    raise errors.UserError(f"no metrics at {path}: expected a JSON lines file")
  lines = path.read_text(encoding="utf-8").split("\n")
  by_split: dict[str, dict[str, dict[int, float]]] = {}
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
      step = int(record["step"])
    except (ValueError, KeyError, TypeError) as error:
      if number == len(lines):  # No newline after it: a write was cut off.
        break
      raise errors.UserError(
        f"{path} line {number}: expected a JSON object with 'step', found "
        f"{line[:60]!r}"
      ) from error
    metrics = by_split.setdefault(str(record.get("split", "train")), {})
    for name, value in record.items():
      if name == "step" or isinstance(value, bool):
        continue
      if isinstance(value, int | float):
        metrics.setdefault(name, {})[step] = float(value)
  return {
    split: {name: sorted(points.items()) for name, points in metrics.items()}
    for split, metrics in by_split.items()
  }


def loss_curves(
  directories: Mapping[str, str | os.PathLike],
  metric: str = "loss",
  metrics: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Points]]:
  """One metric of several runs, for the report.

  Args:
    directories: model folder by the name to show.
    metric: which scalar.
    metrics: another scalar for some of the names, where one loss does not
      tell the whole (the codec's GAN).

  Returns:
    Points by run name, then by split; splits without the metric are left out.

  Raises:
    UserError: if a run has no metrics file or never wrote its metric.
  """
  found = {}
  for name, directory in directories.items():
    wanted = (metrics or {}).get(name, metric)
    by_split = read_metrics(directory)
    found[name] = {
      split: values[wanted]
      for split, values in by_split.items()
      if wanted in values
    }
    if not found[name]:
      known = sorted({key for values in by_split.values() for key in values})
      raise errors.UserError(
        f"no metric {wanted!r} at {directory}{errors.nearest(wanted, known)}; "
        f"expected one of {known}"
      )
  return found
