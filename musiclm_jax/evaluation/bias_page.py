# SPDX-License-Identifier: Apache-2.0
"""The bias card as a page: shares of a corpus and of what is generated.

It opens from disk, needs no network and runs no script.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.core import atomic_files
from musiclm_jax.evaluation import report_page as html

_MAX_ROWS = 24


def write(path: str | os.PathLike, report: Mapping[str, Any]) -> pathlib.Path:
  """Writes the page, whole or not at all.

  Args:
    path: of the HTML file.
    report: as `cli/bias_card.py` makes it: 'facets' by name, each with
      'title', 'source' and what `bias.compare` or `bias.describe` returns,
      perhaps 'agreement'; 'corpus', 'prompts', 'samples'.

  Returns:
    The path.
  """
  path = pathlib.Path(path)
  facets = report["facets"]
  compared = {n: one for n, one in facets.items() if "generated" in one}
  alone = {n: one for n, one in facets.items() if "generated" not in one}
  parts = [
    "<header><h1>Bias card</h1>"
    f'<p class="lead">{html.escape(_lead(report, bool(compared)))}</p>'
    "</header>",
    "<main>",
  ]
  if compared:
    parts.append(
      html.section("distance", "How far apart", _distances(compared))
    )
  parts += [_section(name, one) for name, one in compared.items()]
  if alone:
    parts.append(
      html.section(
        "known",
        "What the corpus says of itself",
        "<p>From its metadata; there is nothing of the kind for what is "
        "generated.</p>",
        html.columns(*(_shares(one) for one in alone.values())),
      )
    )
  if report["samples"]:
    parts.append(_samples(report["samples"]))
  parts.append("</main>")
  atomic_files.write_text(path, html.page("Bias card", *parts))
  return path


def _lead(report: Mapping[str, Any], is_compared: bool) -> str:
  corpus = report["corpus"]
  text = f"{corpus['num_clips']} clips of {corpus['name']}"
  if not is_compared:
    return f"What {text} are made of."
  return (
    f"What {text} are made of, beside {len(report['samples'])} pieces that "
    f"were generated for {len(report['prompts'])} prompts that ask for "
    "nothing in particular."
  )


def _distances(facets: Mapping[str, Any]) -> str:
  rows = []
  for one in facets.values():
    found = one["total_variation"]
    rows.append(
      [
        one["title"],
        html.number(found["mean"], 2),
        f"{html.number(found['low'], 2)} to {html.number(found['high'], 2)}",
        f"{html.number(found['chance'], 2)} to "
        f"{html.number(found['chance_high'], 2)}",
        "yes" if found["above_chance"] else "no",
        _agreement(one.get("agreement")),
      ]
    )
  return (
    "<p>Total variation distance of the shares: 0 where both sides are made "
    "of the same, 1 where they have nothing in common; 95 % bootstrap over "
    "works and prompts. Few pieces are never spread like many, so beside it "
    "stands chance: mean and 97.5 % quantile of the distance of as many clips "
    "of the corpus itself. The last column says how often what is heard is "
    "what the metadata of a clip say, and in brackets how often that would be "
    "so of the commonest name alone: distances of a judge that knows little "
    "say little.</p>"
    + html.table(
      "Distance between corpus and generated",
      ["", "distance", "95 %", "chance", "above it", "agrees"],
      rows,
    )
  )


def _agreement(known: Mapping[str, float] | None) -> str:
  if known is None:
    return "–"
  return f"{html.percent(known['mean'])} ({html.percent(known['commonest'])})"


def _cell(side: Mapping[str, Any], name: str) -> html.Raw:
  share = side["shares"][name]
  interval = f"{html.percent(share['low'])} to {html.percent(share['high'])}"
  return html.Raw(
    f'{html.bar(share["mean"])}<span class="note">'
    f"{html.percent(share['mean'])} ({html.escape(interval)})</span>"
  )


def _kept(one: Mapping[str, Any]) -> Sequence[str]:
  """The names with the largest shares on either side, in their order."""
  sides = [one[side] for side in ("corpus", "generated") if side in one]

  def largest(name):
    return max(side["shares"][name]["mean"] for side in sides)

  chosen = sorted(one["names"], key=largest, reverse=True)[:_MAX_ROWS]
  return [name for name in one["names"] if name in chosen]


def _more(one: Mapping[str, Any], kept: Sequence[str]) -> str:
  rest = len(one["names"]) - len(kept)
  return f'<p class="note">{rest} rarer names are left out.</p>' if rest else ""


def _section(name: str, one: Mapping[str, Any]) -> html.Raw:
  kept = _kept(one)
  rows = []
  for label in kept:
    shares = [one[side]["shares"][label]["mean"] for side in _SIDES]
    change = f"{100 * (shares[1] - shares[0]):+.1f}".replace("-", "−")
    rows.append([label, *(_cell(one[side], label) for side in _SIDES), change])
  counts = " and ".join(
    f"{one[side]['num_named']} of {one[side]['num_items']} {word}"
    for side, word in zip(_SIDES, ("clips", "pieces"))
  )
  return html.section(
    name,
    one["title"],
    f"<p>{html.escape(one['source'])} Named: {counts}.</p>",
    html.table(
      "Shares with 95 % intervals", ["", "corpus", "generated", "points"], rows
    ),
    _more(one, kept),
  )


_SIDES = ("corpus", "generated")


def _shares(one: Mapping[str, Any]) -> str:
  kept = _kept(one)
  rows = [[label, _cell(one["corpus"], label)] for label in kept]
  counts = f"{one['corpus']['num_named']} of {one['corpus']['num_items']} clips"
  return html.table(f"{one['title']}, {counts}", ["", "share"], rows) + _more(
    one, kept
  )


def _samples(samples: Sequence[Mapping[str, Any]]) -> html.Raw:
  cards = []
  for sample in samples:
    heard = ", ".join(f"{name}: {one}" for name, one in sample["heard"].items())
    prompt = sample["prompt"]
    cards.append(
      f'<article class="card"><p class="caption">{html.escape(prompt)}</p>'
      f"{html.player(sample['file'], prompt)}"
      f'<p class="note">{html.escape(heard)}</p></article>'
    )
  return html.section(
    "samples",
    "What was generated",
    f'<div class="grid">{"".join(cards)}</div>',
  )
