# SPDX-License-Identifier: Apache-2.0
"""The page of generated audio and the training clips nearest to it."""

import os
import pathlib
import urllib.parse
from collections.abc import Mapping
from typing import Any

from musiclm_jax.core import atomic_files
from musiclm_jax.evaluation import report_page as html

_NAMES = {"mulan": "MuLan", "tokens": "tokens"}


def _player(path: str, page: pathlib.Path) -> str:
  """A player of a file where it lies."""
  relative = os.path.relpath(
    pathlib.Path(path).resolve(), page.parent.resolve()
  )
  address = urllib.parse.quote(pathlib.PurePath(relative).as_posix())
  return html.player(address, pathlib.PurePath(path).name)


def _tables(record: Mapping[str, Any]) -> str:
  parts = []
  if record["tokens"]:
    rows = [
      [
        one["clip_id"],
        one["run_tokens"],
        f"{one['start_secs']:g} s",
        f"{one['clip_start_secs']:g} s",
        html.percent(one["containment"]),
        html.number(one["entropy_bits"], 2),
        html.percent(one["heldout_below"]),
      ]
      for one in record["tokens"]
    ]
    head = [
      "Training clip",
      "Tokens",
      "From",
      "In the clip from",
      "N-grams shared",
      "Entropy (bits)",
      "Held-out below",
    ]
    parts.append(html.table("Longest common runs of tokens", head, rows))
  if record["mulan"]:
    rows = [
      [
        one["clip_id"],
        html.number(one["cosine"]),
        f"{one['start_secs']:g} s",
        f"{one['clip_start_secs']:g} s",
        html.percent(one["heldout_below"]),
      ]
      for one in record["mulan"]
    ]
    head = ["Training clip", "Cosine", "From", "In the clip from"]
    parts.append(
      html.table("Nearest by MuLan", [*head, "Held-out below"], rows)
    )
  return "".join(parts)


def _card(record: Mapping[str, Any], page: pathlib.Path) -> str:
  flags = ""
  if record["flagged"]:
    names = " and ".join(_NAMES[name] for name in record["flagged"])
    flags = (
      f'<p><b class="fail">Flagged by {html.escape(names)}</b>: nearer than '
      "all held-out clips.</p>"
    )
  return (
    '<article class="card"><h3 class="caption">'
    f"{html.escape(pathlib.PurePath(record['file']).name)}</h3>{flags}"
    + _player(record["file"], page)
    + _tables(record)
    + "</article>"
  )


def write(
  path: str | os.PathLike, report: Mapping[str, Any], num_shown: int
) -> pathlib.Path:
  """Writes the page, whole or not at all.

  Args:
    path: of the HTML file; its folder must exist.
    report: what `memorization_search.json` holds.
    num_shown: most files on the page, the worst ones.

  Returns:
    The path.
  """
  page = pathlib.Path(path)
  heldout = report["heldout"]
  numbers = [
    ("Files", f"{len(report['files']):,}"),
    ("Flagged", f"{report['num_flagged']:,}"),
    ("Training clips", f"{report['num_clips']:,}"),
    ("Held-out clips", f"{heldout['num_clips']:,}"),
  ]
  if heldout["tokens"]:
    longest = f"{heldout['tokens']['highest']:.0f} tokens"
    numbers.append(("Longest run held-out", longest))
  if heldout["mulan"]:
    highest = html.number(heldout["mulan"]["highest"])
    numbers.append(("Highest cosine held-out", highest))
  cells = "".join(
    f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
    for name, value in numbers
  )
  shown = report["files"][:num_shown]
  text = html.page(
    "Nearest training clips",
    "<header><h1>Nearest training clips</h1>"
    '<p class="lead">Generated audio against every training clip, the worst '
    "first. Held-out clips, which cannot have been copied, tell how near is "
    f'near.</p><dl class="facts">{cells}</dl></header>',
    f"<main><p>{len(shown)} of {len(report['files']):,} files. Runs shorter "
    f"than {report['ngram']} tokens are not seen.</p>"
    f'<div class="stack">{"".join(_card(one, page) for one in shown)}</div>'
    "</main>",
  )
  atomic_files.write_text(page, text)
  return page
