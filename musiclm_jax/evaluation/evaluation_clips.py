# SPDX-License-Identifier: Apache-2.0
"""Clips of the page of an evaluation by prompts, the worst ones first."""

import math
import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.core import errors
from musiclm_jax.evaluation import (
  clip_files,
  metric_card,
  run_comparison,
  thumbnails,
)
from musiclm_jax.evaluation import report_page as html

SPECTROGRAMS = "spectrograms"
STYLE_SHEET = """
.clip {
  content-visibility: auto; contain-intrinsic-size: auto 12rem;
  border-top: 1px solid var(--line); padding: .9rem 0;
}
.clip h3 { font-weight: 600; margin: 0; }
@media (min-width: 760px) {
  .clip.single {
    contain-intrinsic-size: auto 9rem; display: grid; gap: 0 1.5rem;
    grid-template-columns: minmax(0, 1fr) minmax(0, 24rem);
  }
  .clip.single .takes { margin: 0; }
}
.takes {
  display: grid; gap: .6rem 1.2rem; margin-top: .5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 256px), 1fr));
}
.takes h4 { margin: 0 0 .25rem; font-size: .85rem; color: var(--muted); }
.takes img {
  display: block; width: 100%; height: 64px; border-radius: 6px;
  image-rendering: auto; margin-bottom: .3rem;
}
.takes .note { margin: .25rem 0 0; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  #numbers th, #numbers td { padding: .35rem .45rem; }
  #numbers td:first-child { white-space: normal; padding-left: 0; }
}
details { border-top: 1px solid var(--line); padding: .4rem 0; }
summary { cursor: pointer; }
.fields td { white-space: normal; overflow-wrap: anywhere; text-align: left; }
.fields td:first-child { white-space: nowrap; vertical-align: top; }
ul.note { padding-left: 1.1rem; margin: .5rem 0 0; }
"""


def clips(
  page: pathlib.Path, runs: Sequence[run_comparison.Run], num_shown: int
) -> list[str]:
  """Rows of clips: a prompt, and what each run made of it.

  Args:
    page: that will show them; pictures are written beside it.
    runs: the first decides the order.
    num_shown: most rows.
  """
  cards = runs[0].cards
  items = runs[0].report["items"]
  name = _ranking(cards, items)
  if name is None:
    order, told = list(range(len(items))), "in the order of the prompts"
  else:
    sign = 1.0 if cards[name].better == metric_card.HIGHER else -1.0
    values = [item["scores"].get(name, math.nan) for item in items]
    order = sorted(
      range(len(items)),
      key=lambda i: (math.isnan(values[i]), sign * values[i], i),
    )
    told = f"by {name}, the worst first"
  others = [
    dict(
      zip(run_comparison.item_keys(run.report["items"]), run.report["items"])
    )
    for run in runs[1:]
  ]
  keys = run_comparison.item_keys(items)
  rows = []
  for rank, index in enumerate(order[:num_shown], 1):
    takes = [items[index], *(found.get(keys[index]) for found in others)]
    rows.append(_row(page, runs, rank, takes))
  count = f"All {len(items):,} clips"
  if len(rows) < len(items):
    count = f"{len(rows):,} of {len(items):,} clips (items.csv has all)"
  return [f"<p>{count}, {html.escape(told)}.</p>", *rows]


def _ranking(
  cards: Mapping[str, metric_card.MetricCard],
  items: Sequence[Mapping[str, Any]],
) -> str | None:
  """The score that clips are ordered by: the first one that they have."""
  names = list(dict.fromkeys(n for item in items for n in item["scores"]))
  names = [name for name in names if name in cards]
  return names[0] if names else None


def _row(
  page: pathlib.Path,
  runs: Sequence[run_comparison.Run],
  rank: int,
  takes: Sequence[Mapping[str, Any] | None],
) -> html.Raw:
  first = takes[0]
  kind = first["source"].get("kind")
  about = [] if kind is None else [kind]
  if first["reference"]:
    about.append(f"written for {first['reference']}")
  parts = [
    _take(page, run, item, runs)
    for run, item in zip(runs, takes)
    if item is not None
  ]
  return html.Raw(
    f'<article class="clip{" single" if len(runs) == 1 else ""}" '
    f'id="clip{rank}"><div>'
    f'<h3 class="caption">{rank}. {html.escape(first["prompt"])}</h3>'
    + (f'<p class="note">{html.escape(", ".join(about))}</p>' if about else "")
    + f'</div><div class="takes">{"".join(parts)}</div></article>'
  )


def _take(
  page: pathlib.Path,
  run: run_comparison.Run,
  item: Mapping[str, Any],
  runs: Sequence[run_comparison.Run],
) -> str:
  """Player, spectrogram and scores of a clip."""
  scores = ", ".join(
    f"{name} {html.number(value)}" for name, value in item["scores"].items()
  )
  note = f'<p class="note">{html.escape(scores or item["file"])}</p>'
  heading = f"<h4>{html.escape(run.name)}</h4>" if len(runs) > 1 else ""
  path = run.path(item["file"])
  if path is None:
    missing = '<p class="note">The file is not there any more.</p>'
    return f"<div>{heading}{missing}{note}</div>"
  label = f"{run.name}: {item['prompt']}"
  return (
    f"<div>{heading}{_picture(page, path, item, label)}"
    + html.player(_address(path, page), label, "none")
    + f"{note}</div>"
  )


def _address(path: pathlib.Path, page: pathlib.Path) -> str:
  relative = os.path.relpath(path.resolve(), page.parent.resolve())
  return urllib.parse.quote(pathlib.PurePath(relative).as_posix())


def _picture(
  page: pathlib.Path,
  path: pathlib.Path,
  item: Mapping[str, Any],
  label: str,
) -> str:
  """The spectrogram, made once for each content."""
  target = page.parent / SPECTROGRAMS / (item["key"][:24] + thumbnails.ENDING)
  if not target.is_file():
    clip = clip_files.of_path(path)
    try:
      thumbnails.write(target, *clip.decode(clip.read()))
    except errors.UserError as error:
      return f'<p class="note">{html.escape(error)}</p>'
  return (
    f'<img loading="lazy" decoding="async" width="{thumbnails.WIDTH}" '
    f'height="{thumbnails.HEIGHT}" src="{SPECTROGRAMS}/{target.name}" '
    f'alt="Spectrogram of {html.escape(label)}">'
  )
