# SPDX-License-Identifier: Apache-2.0
"""The page of an evaluation by prompts, of one run or several side by side.

Beside it are a `spectrograms/` folder and the samples where they lie. It opens
from disk, needs no network and runs no script. Sounds and pictures are loaded
when they are needed, and clips outside the screen are not laid out, so that a
thousand of them stay usable.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.core import atomic_files
from musiclm_jax.evaluation import (
  evaluation_clips,
  evaluation_tables,
  memorization_figures,
  run_comparison,
)
from musiclm_jax.evaluation import report_page as html

_LEAD = (
  "Clips made from prompts, what was measured of them, and the clips "
  "themselves, the worst ones first."
)


def write(
  path: str | os.PathLike,
  runs: Sequence[run_comparison.Run],
  table: Mapping[str, Any] | None = None,
  num_shown: int = 1000,
) -> pathlib.Path:
  """Writes the page and the pictures it needs.

  Args:
    path: of the page.
    runs: one, or several to compare.
    table: of `run_comparison.compare`, of several.
    num_shown: most prompts shown.

  Returns:
    The path.

  Raises:
    UserError: if a card is damaged.
  """
  page = pathlib.Path(path)
  title = "Evaluation by prompts"
  if len(runs) > 1:
    title = "Comparison of runs"
  sections = {
    "numbers": ("Numbers", evaluation_tables.numbers(runs, table)),
    "kinds": ("Kinds of prompts", evaluation_tables.kinds(runs)),
    "memorization": ("Memorization", _memorization(runs)),
    "clips": ("Clips", evaluation_clips.clips(page, runs, num_shown)),
    "cards": ("Metric cards", evaluation_tables.cards(runs)),
    "run": ("How it was made", evaluation_tables.provenance(runs)),
  }
  sections = {name: one for name, one in sections.items() if one[1]}
  links = "".join(
    f'<a href="#{name}">{html.escape(heading)}</a>'
    for name, (heading, _) in sections.items()
  )
  text = html.page(
    title,
    f"<style>{evaluation_clips.STYLE_SHEET}</style>",
    f'<header><h1>{title}</h1><p class="lead">{_LEAD}</p>',
    evaluation_tables.facts(runs),
    f'<nav aria-label="Sections">{links}</nav></header><main>',
    *(
      html.section(name, heading, *content)
      for name, (heading, content) in sections.items()
    ),
    "</main>",
  )
  atomic_files.write_text(page, text)
  return page


def _memorization(runs: Sequence[run_comparison.Run]) -> list[str]:
  """Curves over the length of the prompt, of runs that have them."""
  parts = []
  for run in runs:
    report = run.report.get("memorization")
    if report:
      svg = memorization_figures.matches(
        report["curve"], report["protocol"]["frame_rate_hz"]
      )
      parts.append(html.figure(svg, run.name, "wide"))
  return parts
