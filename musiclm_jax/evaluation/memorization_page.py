# SPDX-License-Identifier: Apache-2.0
"""The memorization page: an audit's report in, one HTML file out.

It opens from disk, needs no network and runs no script.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.core import atomic_files
from musiclm_jax.evaluation import memorization_figures as figures
from musiclm_jax.evaluation import report_page as html


def _interval(one: Mapping[str, float] | None, scale=1.0, digits=2) -> str:
  """'1.20 (0.80 to 1.70)', or a dash."""
  if not one:
    return html.number(None)
  mean, low, high = (
    html.number(scale * one[name], digits) for name in ("mean", "low", "high")
  )
  return f"{mean} ({low} to {high})"


def _verdicts(report: Mapping[str, Any]) -> str:
  """What was asked of the run, and what is doubtful."""
  items = []
  gate, curve = report["gate"], report["curve"]
  for name in ("exact", "approximate"):
    limit = gate[f"max_{name}"]
    if limit is None:
      continue
    worst = max(row[name]["mean"] for row in curve)
    text = f"{worst:.3%} at the worst prompt length, allowed {limit:.3%}"
    items.append((worst <= limit, f"{name.capitalize()} matches", text))
  one = report["calibration"]
  pairs = one["num_check_pairs"]
  items.append(
    (
      one["check_rate"] < one["max_false_rate"] and pairs > 0,
      "Permuted pairs do not match",
      f"{one['num_check_false']} of {pairs:,} pairs that did not set the "
      f"threshold, asked for fewer than {one['max_false_rate']:.2%}; with 95 % "
      f"confidence fewer than {one['highest_check_rate']:.3%}",
    )
  )
  return "".join(
    f"<li><strong>{html.escape(title)}</strong>"
    f'<b class="verdict {"pass" if passed else "fail"}">'
    f"{'yes' if passed else 'no'}</b>"
    f'<span class="note">{html.escape(text)}</span></li>'
    for passed, title, text in items
  )


def _facts(report: Mapping[str, Any]) -> str:
  curve, protocol = report["curve"], report["protocol"]
  numbers = (
    ("Examples", f"{curve[0]['num_examples']:,}"),
    ("Clips of the split", f"{protocol['num_clips']:,}"),
    (
      "Exact, longest prompt",
      f"{100 * curve[-1]['exact']['mean']:.2f} %",
    ),
    (
      "Approximate, longest prompt",
      f"{100 * curve[-1]['approximate']['mean']:.2f} %",
    ),
    ("Threshold", html.number(report["calibration"]["tau"], 3)),
    ("Stage", protocol["stage"][:12]),
  )
  cells = "".join(
    f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
    for name, value in numbers
  )
  return f'<dl class="facts">{cells}</dl>'


def _curve_table(report: Mapping[str, Any]) -> str:
  rate_hz = report["protocol"]["frame_rate_hz"]
  rows = [
    [
      f"{row['prompt_tokens']} ({row['prompt_tokens'] / rate_hz:g} s)",
      f"{row['num_examples']:,}",
      _interval(row["exact"], 100),
      _interval(row["approximate"], 100),
      html.number(row["cost"]["mean"], 2),
      _interval(row["entropy_bits"]),
      _interval(row["match_entropy_bits"]),
    ]
    for row in report["curve"]
  ]
  head = [
    "Prompt",
    "Examples",
    "Exact (%)",
    "Approximate (%)",
    "Mean cost",
    "Entropy (bits)",
    "of matches",
  ]
  return html.table("By length of the prompt, with 95 % intervals", head, rows)


def _card(match: Mapping[str, Any], rank: int, num_codes: int) -> str:
  kind = "exact" if match["exact"] else "approximate"
  lengths = ", ".join(map(str, match["approximate_at"]))
  text = (
    f"{kind} after {match['prompt_tokens']} tokens; cost "
    f"{html.number(match['cost'], 3)}, entropy "
    f"{html.number(match['entropy_bits'], 2)} bits; crop begins at "
    f"{match['start_secs']:g} s; matches with prompts of {lengths}"
  )
  work = f" · {match['work_id']}" if match["work_id"] else ""
  return (
    f'<article class="card"><h3 class="caption">{rank}. '
    f"<code>{html.escape(match['clip_id'] + work)}</code></h3>"
    f'<p class="note">{html.escape(text)}</p>'
    + html.figure(
      figures.token_rows(
        match["generated"], match["target"], num_codes, match["clip_id"]
      )
    )
    + "</article>"
  )


def write(
  path: str | os.PathLike,
  report: Mapping[str, Any],
  matches: Sequence[Mapping[str, Any]],
  costs: np.ndarray,
) -> pathlib.Path:
  """Writes the page, whole or not at all.

  Args:
    path: of the HTML file; its folder must exist.
    report: what `memorization.json` holds.
    matches: to show, worst first, with `target` and `generated`.
    costs: of all examples to their own targets, `[examples, lengths]`.

  Returns:
    The path.
  """
  path = pathlib.Path(path)
  protocol, one = report["protocol"], report["calibration"]
  notes = [*protocol["notes"], *one["warnings"]]
  listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
  told = "MuLan codes and " if "mulan" in protocol["told"] else ""
  told += "the first semantic tokens"
  lead = (
    f"The semantic stage goes on greedily from {told} of training examples: "
    f"are the {protocol['continuation_tokens']} tokens it makes those that "
    "follow in training?"
  )
  setting = (
    f"{one['num_pairs']:,} permuted pairs set the threshold "
    f"{html.number(one['tau'], 3)} "
    f"({html.number(protocol['tau_in_mean_distances'], 3)} mean centroid "
    f"distances) with {one['num_false']} false matches; "
    f"{one['num_pairs_needed']:,} are needed to show a rate below "
    f"{one['max_false_rate']:.2%} at all."
  )
  if one["source"] == "given":
    setting = f"The threshold {html.number(one['tau'], 3)} was given."
  num_codes = 1 + max(
    (max(*match["target"], *match["generated"]) for match in matches), default=0
  )
  cards = "".join(
    _card(match, rank, num_codes) for rank, match in enumerate(matches, 1)
  )
  shown = f"{len(matches)} of {report['num_matching_examples']:,}"
  text = html.page(
    "Memorization audit",
    "<header><h1>Memorization audit</h1>"
    f'<p class="lead">{html.escape(lead)}</p>{_facts(report)}</header>',
    "<main>",
    f'<ul class="criteria">{_verdicts(report)}</ul>',
    f'<ul class="note">{listed}</ul>' if listed else "",
    html.section(
      "curve",
      "Matches by length of the prompt",
      html.figure(
        figures.matches(report["curve"], protocol["frame_rate_hz"]), "", "wide"
      ),
      _curve_table(report),
    ),
    html.section(
      "costs",
      "Transport costs and the threshold",
      f"<p>{html.escape(setting)}</p>",
      html.figure(
        figures.costs(
          costs,
          one["control_costs"],
          one["tau"],
          protocol["mean_centroid_distance"],
        ),
        "",
        "wide",
      ),
    ),
    html.section(
      "entropy",
      "Entropy of what was made",
      "<p>Matches of low entropy are sustained or repeated sounds, which "
      "match easily.</p>",
      html.figure(figures.entropies(report["curve"]), "", "wide"),
    ),
    html.section(
      "matches",
      "Worst matches first",
      f"<p>{html.escape(shown)} examples with a match at any length. All are "
      "in <code>matches.jsonl</code>, with their tokens.</p>",
      f'<div class="stack">{cards}</div>',
    ),
    "</main>",
  )
  atomic_files.write_text(path, text)
  return path
