# SPDX-License-Identifier: Apache-2.0
"""What a listening test says, for people: scores in, Markdown and HTML out."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.core import atomic_files
from musiclm_jax.evaluation import report_page as html

_NUM_TEXTS = 5
_BAR_WIDTH, _BAR_HEIGHT = 600, 34
# Colour and opacity from a strong preference for the first to the second.
_BAR_PARTS = (
  ("var(--first)", 1.0),
  ("var(--first)", 0.55),
  ("var(--line)", 1.0),
  ("var(--second)", 0.55),
  ("var(--second)", 1.0),
)
_LEGEND = (
  "From left to right: strong and weak preference for the first, no "
  "preference, weak and strong preference for the second."
)


def _share(interval: Mapping[str, Any]) -> str:
  return (
    f"{html.percent(interval['mean'])} [{html.percent(interval['low'])}, "
    f"{html.percent(interval['high'])}]"
  )


def _p(value: float) -> str:
  return f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


def _systems(
  scores: Mapping[str, Any],
) -> tuple[Sequence[str], list[list[Any]]]:
  head = ("system", "comparisons", "wins", "ties", "losses", "wins, share")
  return head, [
    [
      one["system"],
      one["num_comparisons"],
      one["wins"],
      one["ties"],
      one["losses"],
      _share(one["win_share"]),
    ]
    for one in scores["systems"]
  ]


def _pairs(scores: Mapping[str, Any]) -> tuple[Sequence[str], list[list[Any]]]:
  head = (
    "pair",
    "comparisons",
    "wins of the first",
    "no preference",
    "wins of the second",
    "wins of the first, share",
  )
  return head, [
    [
      " / ".join(one["systems"]),
      one["num_comparisons"],
      one["wins"][0],
      one["ties"],
      one["wins"][1],
      _share(one["win_share"][0]),
    ]
    for one in scores["pairs"]
  ]


def _tests(scores: Mapping[str, Any]) -> tuple[Sequence[str], list[list[Any]]]:
  alpha = scores["settings"]["alpha"]
  head = ("pair", "p of answers", "p of texts", f"both below {alpha:g}")
  rows = []
  for one in scores["pairs"]:
    tests = [one["wilcoxon"], one["wilcoxon_by_text"]]
    rows.append(
      [
        " / ".join(one["systems"]),
        *(_p(test["p_bonferroni"]) for test in tests),
        "yes" if all(test["is_significant"] for test in tests) else "no",
      ]
    )
  return head, rows


def _trust(scores: Mapping[str, Any]) -> tuple[Sequence[str], list[list[Any]]]:
  states = [one["status"] for one in scores["raters"]]
  answers, place = scores["answers"], scores["position"]
  shared = scores["agreement"]
  alpha, same = shared["krippendorff_alpha"], shared["same_side_share"]
  rows = [["raters, joined", len(states)]]
  rows += [
    [f"raters, {state}", states.count(state)] for state in sorted(set(states))
  ]
  rows += [
    ["comparisons planned", answers["expected"]],
    ["comparisons answered", answers["given"]],
    ["comparisons counted", answers["counted"]],
    ["texts", scores["num_texts"]],
    [
      "clip A, no preference, clip B",
      f"{place['first']}, {place['none']}, {place['second']}",
    ],
    ["clip A preferred, of those decided", _share(place["share_first"])],
    ["p of A against B", _p(place["wilcoxon"]["p"])],
    ["comparisons of two or more raters", shared["num_shared_comparisons"]],
    ["Krippendorff's alpha, ordinal", html.number(alpha, 2)],
    ["raters on the same side", html.percent(same)],
  ]
  return ("", "value"), rows


def _markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
  return "\n".join(lines)


def table(scores: Mapping[str, Any]) -> str:
  """Tables in Markdown.

  Args:
    scores: of `listening_scores.score`.
  """
  tables = (_systems, _pairs, _tests, _trust)
  parts = [_markdown(*make(scores)) for make in tables]
  parts += [f"- {note}" for note in scores["warnings"]]
  return "\n\n".join(parts) + "\n"


def _bar(pair: Mapping[str, Any]) -> html.Raw:
  """Answers to a pair as one bar of five parts."""
  total = max(pair["num_comparisons"], 1)
  place, parts = 0.0, []
  for count, (colour, opacity) in zip(pair["counts"], _BAR_PARTS):
    width = _BAR_WIDTH * count / total
    parts.append(
      f'<rect x="{place:.2f}" y="0" width="{width:.2f}" height="{_BAR_HEIGHT}" '
      f'fill="{colour}" opacity="{opacity}"/>'
    )
    place += width
  first, second = map(html.escape, pair["systems"])
  label = f"{first} against {second}: {', '.join(map(str, pair['counts']))}"
  return html.Raw(
    f'<figure style="margin: 1rem 0"><h3>{first} / {second}</h3>'
    f'<svg viewBox="0 0 {_BAR_WIDTH} {_BAR_HEIGHT}" role="img" '
    f'aria-label="{label}">{"".join(parts)}</svg>'
    f"<figcaption>{', '.join(map(str, pair['counts']))} of "
    f"{pair['num_comparisons']}</figcaption></figure>"
  )


def _texts(pair: Mapping[str, Any]) -> html.Raw:
  """Texts for which the preference was clearest, either way."""
  texts = pair["texts"]
  sides = (
    [one for one in texts if one["mean_preference"] > 0][:_NUM_TEXTS],
    [one for one in texts if one["mean_preference"] < 0][
      : -_NUM_TEXTS - 1 : -1
    ],
  )
  parts = []
  for name, side in zip(pair["systems"], sides):
    entries = "".join(
      f"<li>{html.escape(one['prompt'])} <span class='note'>"
      f"{html.number(abs(one['mean_preference']), 1)}</span></li>"
      for one in side
    )
    other = next(other for other in pair["systems"] if other != name)
    parts.append(
      '<article class="card"><div style="margin: 0">'
      f"<h3>{html.escape(name)} preferred to {html.escape(other)}</h3>"
      f"<ul>{entries or '<li>no text</li>'}</ul>"
      "</div></article>"
    )
  return html.Raw(f'<div class="grid">{"".join(parts)}</div><br>')


def page(scores: Mapping[str, Any], title: str, question: str) -> str:
  """The page of a test's results.

  Args:
    scores: of `listening_scores.score`.
    title: of the test.
    question: that was asked.

  Returns:
    HTML that loads nothing and runs no script.
  """
  states = [one["status"] for one in scores["raters"]]
  facts = (
    ("Raters counted", f"{states.count('counted')} of {len(states)}"),
    ("Comparisons counted", f"{scores['answers']['counted']:,}"),
    ("Texts", scores["num_texts"]),
    ("Systems", len(scores["systems"])),
  )
  cells = "".join(
    f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
    for name, value in facts
  )
  notes = "".join(
    f"<li>{html.escape(note)}</li>" for note in scores["warnings"]
  )
  settings = scores["settings"]
  how = (
    "A win is a strong or a weak preference; shares are of all comparisons, "
    f"with 95 % bootstrap intervals ({settings['num_resamples']} draws of "
    "raters and of texts). p is of all answers, and of their means by text, "
    f"times {len(scores['pairs'])} pairs (Bonferroni). "
    "An answer counts if its rater failed at most "
    f"{html.percent(settings['max_failed_share'])} of the attention checks."
  )
  return html.page(
    f"{title}: results",
    f"<header><h1>{html.escape(title)}: results</h1>"
    f'<p class="lead">{html.escape(question)}</p>'
    f'<dl class="facts">{cells}</dl></header>',
    "<main>",
    html.section("notes", "Before you read on", f"<ul>{notes}</ul>")
    if notes
    else "",
    html.section(
      "systems", "Wins", html.table("Against all others", *_systems(scores))
    ),
    html.section(
      "pairs",
      "Pairs",
      f'<p class="note">{_LEGEND}</p>',
      *map(_bar, scores["pairs"]),
      html.table("By pair", *_pairs(scores)),
      html.table("Wilcoxon's signed-rank test", *_tests(scores)),
      f'<p class="note">{html.escape(how)}</p>',
    ),
    html.section(
      "trust", "Raters and answers", html.table("Counts", *_trust(scores))
    ),
    html.section(
      "texts",
      "Clearest texts",
      '<p class="note">With the mean preference, from 0 to 2.</p>',
      *map(_texts, scores["pairs"]),
    ),
    f"</main><footer>Test <code>{scores['fingerprint'][:12]}</code></footer>",
  )


def write(
  folder: str | os.PathLike,
  scores: Mapping[str, Any],
  title: str,
  question: str,
) -> pathlib.Path:
  """Writes `listening.md` and `index.html`; the path of the page."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name, text in (
    ("listening.md", table(scores)),
    ("index.html", page(scores, title, question)),
  ):
    atomic_files.write_text(folder / name, text)
  return folder / "index.html"
