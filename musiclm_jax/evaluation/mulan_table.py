# SPDX-License-Identifier: Apache-2.0
"""`mulan_evaluation.json` in, its numbers as Markdown tables out."""

from collections.abc import Mapping
from typing import Any

_ROWS = (
  ("captions", "captions"),
  ("paraphrases", "paraphrases"),
  ("paraphrases_minus_captions", "paraphrases minus captions"),
)
_DIRECTIONS = (
  ("text_to_audio", "text to audio"),
  ("audio_to_text", "audio to text"),
)
_COLUMNS = ("recall_at_1", "recall_at_5", "recall_at_10", "map_at_10")


def interval(found: Mapping[str, Any] | None, scale: float = 100.0) -> str:
  """'31.0 (24.1 to 38.2)', or '-' where there is none."""
  if not found or any(found[end] is None for end in ("mean", "low", "high")):
    return "-"
  mean, low, high = (f"{scale * found[k]:.1f}" for k in ("mean", "low", "high"))
  return f"{mean} ({low} to {high})"


def _retrieval(result: Mapping[str, Any]) -> list[str]:
  lines = [
    "| texts | direction | queries / items | R@1 | R@5 | R@10 (chance) | "
    "median rank | mAP@10 |",
    "|---" * 8 + "|",
  ]
  for key, name in _ROWS:
    for direction, words in _DIRECTIONS:
      if key not in result:
        continue
      row = result[key][direction]
      cells = [interval(row[column]) for column in _COLUMNS]
      counts = "-"
      if "num_items" in row:
        counts = f"{row['num_queries']} / {row['num_items']}"
        cells[2] += f", {100 * row['chance_at_10']:.1f}"
      rank = interval(row.get("median_rank"), 1.0)
      cells = [name, words, counts, *cells[:3], rank, cells[3]]
      lines.append("| " + " | ".join(cells) + " |")
  return lines


def _tagging(sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
  lines = [
    "| tags | number | clips | AUC-ROC (chance 50) | mAP | chance mAP |",
    "|---" * 6 + "|",
  ]
  for name, row in sets.items():
    cells = [name, str(len(row["tags"])), str(row["num_clips"])]
    cells += [interval(row["auc_roc"]), interval(row["map"])]
    cells.append(f"{100 * row['chance_map']:.1f}")
    lines.append("| " + " | ".join(cells) + " |")
  return lines


def _probes(probes: Mapping[str, Mapping[str, Any]]) -> list[str]:
  lines = [
    "| linear probe (classes) | train / test clips | accuracy | commonest |",
    "|---" * 4 + "|",
  ]
  for name, row in probes.items():
    number = row["num_examples"]
    cells = [
      f"{name} ({row['num_classes']})",
      f"{number['train']} / {number['test']}",
      interval(row["features"]["audio"]["accuracy"]),
      f"{100 * row['majority']:.1f}",
    ]
    lines.append("| " + " | ".join(cells) + " |")
  return lines


def table(result: Mapping[str, Any]) -> str:
  """All numbers; shares in percent, with 95 % intervals.

  Args:
    result: of `cli/mulan_evaluation.py`.
  """
  parts = []
  if result.get("retrieval"):
    parts.append(_retrieval(result["retrieval"]))
  sets = {f"{k} (zero-shot)": v for k, v in result["zero_shot"].items()}
  if sets:
    parts.append(_tagging(sets))
  if result.get("probe"):
    parts.append(_probes(result["probe"]))
  return "\n\n".join("\n".join(lines) for lines in parts)
