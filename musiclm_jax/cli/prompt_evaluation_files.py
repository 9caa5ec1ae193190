# SPDX-License-Identifier: Apache-2.0
"""Files of an evaluation by prompts: JSON, CSV and the page, out and in."""

import csv
import io
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from musiclm_jax.cli import evaluation_inputs, evaluation_jobs
from musiclm_jax.core import atomic_files, errors
from musiclm_jax.evaluation import (
  evaluation_page,
  run_comparison,
  summary,
)

FORMAT_VERSION = 2
REPORT, COMPARISON = "prompt_evaluation.json", "comparison.json"
METRICS_TABLE, ITEMS_TABLE = "metrics.csv", "items.csv"
COMPARISON_TABLE = "comparison.csv"
PAGE = "index.html"
MANIFEST = "musiccaps.json"
_CARD_COLUMNS = (
  "metric",
  "value",
  "low",
  "high",
  "unit",
  "better",
  "num_items",
  "num_expected",
  "embedder",
  "embedder_fingerprint",
  "reference_fingerprint",
  "num_reference",
  "items_fingerprint",
)


def read_memorization(path: str) -> Any:
  """JSON of `musiclm memorization`, or None without a path.

  Raises:
    UserError: if it is missing, or something else.
  """
  if not path:
    return None
  found = summary.read_summary(path)
  try:
    rate_hz, curve = found["protocol"]["frame_rate_hz"], found["curve"]
    numbers = [
      float(row[part]["mean"])
      for row in curve
      for part in ("exact", "approximate")
    ]
    numbers += [float(row["prompt_tokens"]) for row in curve]
    if rate_hz > 0 and numbers and min(numbers) >= 0:
      return found
  except (KeyError, TypeError, ValueError):
    pass
  raise errors.UserError(
    f"{path}: expected the memorization.json of `musiclm memorization`"
  )


def write_csv(
  path: pathlib.Path, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Writes a table; it appears whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with (
    atomic_files.written(path) as file,
    io.TextIOWrapper(file, "utf-8", newline="") as text,
  ):
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)


def write(
  job: evaluation_jobs.EvaluatePromptsJob,
  report: Mapping[str, Any],
  samples: Sequence[evaluation_inputs.Sample],
) -> pathlib.Path:
  """Writes the report as JSON, as two tables and as a page.

  Args:
    job: that was run.
    report: what it found.
    samples: its clips.

  Returns:
    The page.
  """
  folder = pathlib.Path(job.output_dir)
  report = {
    "format_version": FORMAT_VERSION,
    **report,
    # Relative, so that the folder can be moved with its samples.
    "samples": sorted(
      {os.path.relpath(_root(sample), folder.resolve()) for sample in samples}
    ),
    "versions": summary.versions(),
  }
  reference = report["reference"]
  if reference.get("kind") == "musiccaps":
    summary.write_summary(folder / MANIFEST, reference)
  summary.write_summary(folder / REPORT, report)
  write_csv(
    folder / METRICS_TABLE,
    [*_CARD_COLUMNS, "warnings", "embedder_settings", "settings"],
    (
      [
        *(card[name] for name in _CARD_COLUMNS),
        "; ".join(card["warnings"]),
        json.dumps(card["embedder_settings"]),
        json.dumps(card["settings"]),
      ]
      for card in report["cards"]
    ),
  )
  names = list(
    dict.fromkeys(name for item in report["items"] for name in item["scores"])
  )
  write_csv(
    folder / ITEMS_TABLE,
    ["file", "prompt", "kind", "seed", "reference", *names],
    (
      [
        item["file"],
        item["prompt"],
        item["source"].get("kind", ""),
        item["seed"],
        item["reference"],
        *(item["scores"].get(name, "") for name in names),
      ]
      for item in report["items"]
    ),
  )
  page = evaluation_page.write(
    folder / PAGE, [read(folder)], num_shown=job.num_shown
  )
  print(page)
  return page


def _root(sample: evaluation_inputs.Sample) -> pathlib.Path:
  """The folder that the name of a clip is relative to."""
  path = sample.clip.path
  for _ in pathlib.PurePosixPath(sample.clip.name).parts:
    path = path.parent
  return path.resolve()


def read(
  folder: str | os.PathLike, name: str | None = None
) -> run_comparison.Run:
  """A finished evaluation.

  Args:
    folder: its output_dir.
    name: what to call it; by default as its folder.

  Raises:
    UserError: if there is none, or it is damaged.
  """
  folder = pathlib.Path(folder)
  path = folder / REPORT
  if not path.is_file():
    raise errors.UserError(
      f"no evaluation by prompts at {path}: run `musiclm evaluate --prompts`"
    )
  report = summary.read_summary(path)
  version = report.get("format_version") if isinstance(report, dict) else None
  if version != FORMAT_VERSION:
    raise errors.UserError(
      f"{path} has format_version={version}: expected {FORMAT_VERSION}"
    )
  samples = tuple(folder / name for name in report["samples"])
  name = name or folder.resolve().name
  return run_comparison.Run(name, folder, samples, report)


def compare(job: evaluation_jobs.EvaluatePromptsJob) -> None:
  """Writes tables and page of several finished evaluations.

  Raises:
    UserError: if one is missing or damaged, or two have one name.
  """
  runs = [read(folder) for folder in job.run]
  write_comparison(job.output_dir, runs, job.num_shown)


def write_comparison(
  output_dir: str | os.PathLike,
  runs: Sequence[run_comparison.Run],
  num_shown: int,
) -> dict[str, Any]:
  """Writes tables and page of several runs, and prints the table.

  Returns:
    Of `run_comparison.compare`.
  """
  folder = pathlib.Path(output_dir)
  table = run_comparison.compare(runs)
  summary.write_summary(folder / COMPARISON, table)
  write_csv(
    folder / COMPARISON_TABLE,
    ["metric", "better", "run", "value", "low", "high", "num_items", "differs"],
    (
      [
        row["name"],
        row["better"],
        name,
        *(cell[key] for key in ("value", "low", "high", "num_items")),
        " ".join(cell["differs"]),
      ]
      for row in table["metrics"]
      for name, cell in zip(table["runs"], row["cells"])
      if cell is not None
    ),
  )
  page = evaluation_page.write(
    folder / PAGE, runs, table=table, num_shown=num_shown
  )
  for row in table["metrics"]:
    for name, cell in zip(table["runs"], row["cells"]):
      if cell is not None:
        differs = f" differs in {', '.join(cell['differs'])}"
        print(
          f"{row['name']} | {name}: {cell['value']:.4g} [{cell['low']:.4g}, "
          f"{cell['high']:.4g}]{differs if cell['differs'] else ''}"
        )
  print(page)
  return table
