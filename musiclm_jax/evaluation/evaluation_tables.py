# SPDX-License-Identifier: Apache-2.0
"""Tables of the page of an evaluation by prompts: reports in, HTML out."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.evaluation import metric_card, run_comparison
from musiclm_jax.evaluation import report_page as html

_ARROWS = {
  metric_card.LOWER: "lower",
  metric_card.HIGHER: "higher",
  metric_card.NEITHER: "–",
}
Runs = Sequence[run_comparison.Run]


def _digits(value: float) -> str:
  """Three significant digits, more for large numbers."""
  if value != value:
    return "–"
  digits = 3
  if value:
    digits = max(0, min(5, 2 - math.floor(math.log10(abs(value)))))
  return html.number(value, digits)


def _interval(value: float, low: float | None, high: float | None) -> str:
  text = _digits(value)
  if low is None or high is None or low != low:
    return text
  return f"{text} [{_digits(low)}, {_digits(high)}]"


def facts(runs: Runs) -> html.Raw:
  """What is scored, in large figures."""
  first = runs[0].report
  told = [
    ("Clips scored", f"{first['num_items']:,} of {first['num_expected']:,}"),
  ]
  if len(runs) > 1:
    told.append(("Runs", str(len(runs))))
  cards = list(runs[0].cards.values())
  reference = [card for card in cards if card.num_reference]
  if reference:
    told.append(("Reference clips", f"{reference[0].num_reference:,}"))
  num_bad = sum(len(bad) for bad in first["bad"].values())
  if num_bad:
    told.append(("Clips left out", f"{num_bad:,}"))
  cells = "".join(
    f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
    for name, value in told
  )
  return html.Raw(f'<dl class="facts">{cells}</dl>')


def numbers(runs: Runs, table: Mapping[str, Any] | None) -> list[str]:
  """The headline table, of one run or of several side by side."""
  if len(runs) == 1:
    cards = runs[0].cards.values()
    rows = [
      [
        card.metric,
        _digits(card.value),
        "–"
        if math.isnan(card.low)
        else f"{_digits(card.low)} to {_digits(card.high)}",
        _ARROWS[card.better],
        card.coverage,
      ]
      for card in cards
    ]
    header = ["", "value", "95 % interval", "better", "clips"]
    notes = _warnings(list(cards), runs[0].report["notes"])
    return [html.table("Metrics", header, rows), *notes]
  rows = []
  for row in table["metrics"]:
    cells = [_compared(cell) for cell in row["cells"]]
    rows.append([row["name"], *cells, _ARROWS[row["better"]]])
  found = [
    html.table("Value and 95 % interval", ["", *table["runs"], "better"], rows)
  ]
  if table["paired"]:
    paired = [
      [
        one["metric"],
        one["run"],
        _interval(one["mean"], one["low"], one["high"]),
        _verdict(one),
        f"{one['num_items']:,}",
      ]
      for one in table["paired"]
    ]
    found += [
      "<p>The same prompts, clip by clip: how much a run differs from "
      f"{html.escape(table['runs'][0])}.</p>",
      html.table(
        f"Difference to {table['runs'][0]}",
        ["", "run", "mean and 95 % interval", "", "clips"],
        paired,
      ),
    ]
  every = [card for run in runs for card in run.cards.values()]
  notes = [
    f"{run.name}: {note}" for run in runs for note in run.report["notes"]
  ]
  return found + _warnings(every, notes)


def _compared(cell: Mapping[str, Any] | None) -> str:
  if cell is None:
    return "–"
  if cell["differs"]:
    return f"not comparable: {', '.join(cell['differs'])}"
  return _interval(cell["value"], cell["low"], cell["high"])


def _verdict(paired: Mapping[str, Any]) -> str:
  if paired["low"] <= 0 <= paired["high"]:
    return "no difference seen"
  is_higher = paired["low"] > 0
  is_better = is_higher == (paired["better"] == metric_card.HIGHER)
  return "better" if is_better else "worse"


def _warnings(
  cards: Sequence[metric_card.MetricCard], notes: Sequence[str]
) -> list[str]:
  """What a reader has to know, each sentence once with its metrics."""
  by_text: dict[str, dict[str, None]] = {}
  for card in cards:
    for text in card.warnings:
      by_text.setdefault(text, {})[card.metric] = None
  told = [f"{text} ({', '.join(names)})" for text, names in by_text.items()]
  items = "".join(f"<li>{html.escape(text)}</li>" for text in (*told, *notes))
  if not items:
    return []
  return [f'<ul class="note">{items}</ul>']


def kinds(runs: Runs) -> list[str]:
  """Mean scores by kind of prompt."""
  parts = []
  for run in runs:
    found = run.report.get("kinds") or {}
    names = list(dict.fromkeys(n for scores in found.values() for n in scores))
    if not names:
      continue
    rows = []
    for kind, scores in found.items():
      cells = [
        _interval(one["mean"], one["low"], one["high"])
        if (one := scores.get(name))
        else "–"
        for name in names
      ]
      count = max((one["num_items"] for one in scores.values()), default=0)
      rows.append([kind, *cells, f"{count:,}"])
    parts.append(html.table(run.name, ["", *names, "clips"], rows))
  return parts


def cards(runs: Runs) -> list[str]:
  """All that a number depends on, folded away."""
  parts = []
  for run in runs:
    for card in run.cards.values():
      fields = card.to_dict()
      rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(_plain(value))}"
        "</td></tr>"
        for name, value in fields.items()
        if name not in ("format_version", "metric")
      )
      label = card.metric if len(runs) == 1 else f"{run.name}: {card.metric}"
      parts.append(
        f"<details><summary>{html.escape(label)}</summary>"
        f'<div class="scroll"><table class="fields">{rows}</table></div>'
        "</details>"
      )
  return parts


def _plain(value: Any) -> str:
  if value is None:
    return "–"
  if isinstance(value, (dict, list)):
    return json.dumps(value)
  return str(value)


def provenance(runs: Runs) -> list[str]:
  """Bundles, settings that differ from their defaults, times, bad clips."""
  parts = []
  for run in runs:
    report = run.report
    job = report["job"]
    given = {name: value for name, value in job.items() if value}
    rows = [[name, _plain(value)] for name, value in given.items()]
    rows.append(["bundle fingerprint", report["bundle_fingerprint"] or "–"])
    rows += [[f"{k} fingerprint", v] for k, v in report["fingerprints"].items()]
    rows += [[f"version of {k}", v] for k, v in report["versions"].items()]
    body = "".join(
      f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
      for name, value in rows
    )
    times = html.table(
      "Time",
      ["", "clips", "seconds", "clips per second"],
      [
        [
          one["what"],
          f"{one['num_clips']:,}",
          html.number(one["secs"], 1),
          html.number(one["clips_per_sec"], 1),
        ]
        for one in report["timing"]
      ],
    )
    bad = [
      [what, one["name"], one["reason"]]
      for what, found in report["bad"].items()
      for one in found[:50]
    ]
    parts += [
      f"<h3>{html.escape(run.name)}</h3>",
      f'<div class="scroll"><table class="fields">{body}</table></div>',
      times,
    ]
    if bad:
      parts.append(html.table("Clips left out", ["", "clip", "reason"], bad))
  return parts
