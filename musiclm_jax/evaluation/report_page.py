# SPDX-License-Identifier: Apache-2.0
"""HTML pieces of the report page: values in, escaped HTML text out."""

import html
from collections.abc import Sequence
from typing import Any

_STYLE_SHEET = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f6f8fa; --ink: #1b1f24; --muted: #57606a;
  --line: #d5dbe1; --first: #0b62c4; --second: #c2570c; --third: #6b7280;
  --good: #13703a; --bad: #b42318;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0e1116; --panel: #171b22; --ink: #e6e9ed; --muted: #9aa4af;
    --line: #343b44; --first: #5aa9ff; --second: #f0934a; --third: #98a2ad;
    --good: #4cc26a; --bad: #ff8078;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1120px; padding: 2.5rem 1.25rem 4rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 {
  font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: 1.25rem;
  border-top: 1px solid var(--line); scroll-margin-top: 1rem;
}
h3 { font-size: 1rem; margin: 0 0 .35rem; }
p { margin: 0 0 .8rem; max-width: 46rem; }
a { color: var(--first); }
.lead { color: var(--muted); font-size: 1.08rem; }
.note, figcaption { color: var(--muted); font-size: .875rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: 1rem 0; }
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0; }
.facts div {
  flex: 1 1 9rem; background: var(--panel); border: 1px solid var(--line);
  border-radius: 10px; padding: .7rem .9rem;
}
.facts dt { color: var(--muted); font-size: .8rem; }
.facts dd {
  margin: 0; font-size: 1.35rem; font-weight: 600;
  font-variant-numeric: tabular-nums;
}
.criteria { list-style: none; padding: 0; margin: 0; }
.criteria li {
  display: grid; grid-template-columns: 3.6rem 1fr; gap: .1rem .75rem;
  padding: .6rem 0; border-bottom: 1px solid var(--line);
}
.criteria span { grid-column: 2; }
.verdict {
  grid-column: 1; grid-row: 1; font-weight: 700; font-size: .85rem;
  text-align: center; border: 1.5px solid; border-radius: 6px;
  align-self: start; padding: .05rem 0;
}
.criteria strong { grid-column: 2; font-weight: 600; }
.pass { color: var(--good); }
.fail { color: var(--bad); }
.grid {
  display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr));
}
.grid.four {
  gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 180px), 1fr));
}
.card {
  margin: 0; background: var(--panel); border: 1px solid var(--line);
  border-radius: 12px; padding: 1rem; min-width: 0;
  display: flex; flex-direction: column; gap: .6rem;
}
.card > :last-child { margin-bottom: 0; }
.grid > .card > :last-child { margin-top: auto; }
.columns { display: flex; flex-wrap: wrap; gap: 0 4rem; }
.columns > div { min-width: 0; }
.stack > .card { margin-bottom: 1.25rem; }
.caption { margin: 0; font-size: .98rem; overflow-wrap: anywhere; }
figure { margin: 0; min-width: 0; }
figcaption { margin-top: .4rem; }
.wide { max-width: 46rem; margin: 1rem 0; overflow-x: auto; }
.wide svg { min-width: 30rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-family: inherit !important; }
audio { display: block; width: 100%; height: 40px; }
.scroll { overflow-x: auto; margin: .75rem 0 1.25rem; }
table {
  border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .93rem; min-width: min(100%, 24rem);
}
caption {
  text-align: left; white-space: nowrap; font-weight: 600;
  padding-bottom: .35rem;
}
th, td {
  text-align: right; padding: .35rem .8rem; white-space: nowrap;
  border-bottom: 1px solid var(--line);
}
th { color: var(--muted); font-weight: 600; font-size: .85rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { color: var(--ink); font-weight: 500; }
.bar { display: block; width: 12rem; height: .6rem; text-align: left; }
.bar i {
  display: block; height: 100%; background: var(--first);
  border-radius: 3px; min-width: 2px;
}
code {
  font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere;
}
footer { margin-top: 3rem; color: var(--muted); font-size: .875rem; }
@media print { audio { display: none; } .card { break-inside: avoid; } }
"""


class Raw(str):
  """Text that is HTML already and must not be escaped again."""


def escape(value: Any) -> Raw:
  """HTML of any value; `Raw` is left as it is."""
  return value if isinstance(value, Raw) else Raw(html.escape(str(value)))


def number(value: float | None, digits: int = 3) -> str:
  """A number with fixed decimals, or a dash where there is none."""
  if value is None or value != value:
    return "–"
  return f"{value:.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
  """A fraction in percent, or a dash where there is none."""
  return "–" if value is None or value != value else f"{100 * value:.1f} %"


def duration(secs: float) -> str:
  """Seconds as a person says them."""
  if secs < 60:
    return f"{secs:.1f} s"
  minutes, rest = divmod(round(secs), 60)
  if minutes < 60:
    return f"{minutes} min {rest:02d} s"
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes:02d} min"


def size(num_bytes: float) -> str:
  """Bytes in MiB or GiB."""
  if num_bytes >= 2**30:
    return f"{num_bytes / 2**30:.2f} GiB"
  return f"{num_bytes / 2**20:.0f} MiB"


def table(
  caption: str, header: Sequence[Any], rows: Sequence[Sequence[Any]]
) -> Raw:
  """A table; the first column names the row, the others are right-aligned."""
  head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
  body = "\n".join(
    "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    for row in rows
  )
  return Raw(
    f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
    f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
  )


def figure(svg: str, caption: str = "", css_class: str = "") -> Raw:
  """A figure with an optional caption below."""
  below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
  opening = f'<figure class="{css_class}">' if css_class else "<figure>"
  return Raw(f"{opening}{svg}{below}</figure>")


def player(path: str, label: str, preload: str = "metadata") -> Raw:
  """An audio player that shows the length before it is played.

  Args:
    path: of the sound, as the page names it.
    label: for those who do not see what stands around it.
    preload: 'none' on pages of very many, which then show no length.
  """
  return Raw(
    f'<audio controls preload="{preload}" src="{escape(path)}" '
    f'aria-label="{escape(label)}"></audio>'
  )


def bar(fraction: float) -> Raw:
  """A horizontal bar inside a table cell."""
  width = 100 * min(max(fraction, 0.0), 1.0)
  return Raw(
    f'<span class="bar" aria-hidden="true"><i style="width:{width:.1f}%"></i>'
    "</span>"
  )


def columns(*parts: str) -> Raw:
  """Parts beside each other where the screen is wide enough."""
  return Raw(
    '<div class="columns">'
    + "".join(f"<div>{part}</div>" for part in parts if part)
    + "</div>"
  )


def section(name: str, title: str, *content: str) -> Raw:
  """A section with an anchor."""
  return Raw(
    f'<section id="{escape(name)}">\n<h2>{escape(title)}</h2>\n'
    + "\n".join(content)
    + "\n</section>"
  )


def page(title: str, *content: str) -> str:
  """A whole document that loads nothing from a network."""
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
    f"<style>{_STYLE_SHEET}</style>\n</head>\n<body>\n"
    + "\n".join(content)
    + "\n</body>\n</html>\n"
  )
