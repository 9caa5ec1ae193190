# SPDX-License-Identifier: Apache-2.0
"""The page of a search: a query and the nearest files in, HTML out.

It opens from disk, needs no network and runs no script. Players name the files
relative to the page, or carry an excerpt in the page itself.
"""

import base64
import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from musiclm_jax.audio import blocks, files
from musiclm_jax.core import atomic_files, errors
from musiclm_jax.evaluation import report_page as html
from musiclm_jax.systems import audio_index

_EXCERPT_SECS = 10.0


class Query(NamedTuple):
  """What was asked: one of a text and a path of audio."""

  text: str | None
  audio: str | None


def _excerpt(path: str, start_secs: float) -> str:
  """A part of a file as a data URI."""
  reader = blocks.BlockReader(path)
  rate_hz = reader.sample_rate_hz
  first = round(start_secs * rate_hz)
  end = first + round(_EXCERPT_SECS * rate_hz)
  parts, place = [], 0
  for block in reader:
    parts.append(block[max(first - place, 0) : max(end - place, 0), 0])
    place += len(block)
    if place >= end:
      break
  sound = files.encode_flac(np.concatenate(parts), rate_hz)
  return "data:audio/flac;base64," + base64.b64encode(sound).decode()


def _source(
  path: str, page: pathlib.Path, start_secs: float, end_secs: float | None
) -> str:
  """A relative address; a browser plays from start to end."""
  relative = os.path.relpath(
    pathlib.Path(path).resolve(), page.parent.resolve()
  )
  address = urllib.parse.quote(pathlib.PurePath(relative).as_posix())
  if end_secs is not None:
    address += f"#t={start_secs:g},{end_secs:g}"
  return address


def _player(
  path: str,
  page: pathlib.Path,
  start_secs: float,
  end_secs: float | None,
  embed_audio: bool,
) -> str:
  """A player, or a note where the file cannot be read any more."""
  if not pathlib.Path(path).is_file():
    return '<p class="note">The file is not there any more.</p>'
  source = _source(path, page, start_secs, end_secs)
  if embed_audio:
    try:
      source = _excerpt(path, start_secs)
    except errors.UserError as error:
      return f'<p class="note">{html.escape(error)}</p>'
  return html.player(source, pathlib.PurePath(path).name)


def write(
  path: str | os.PathLike,
  query: Query,
  hits: Sequence[audio_index.Hit],
  facts: Mapping[str, Any],
  window_secs: float,
  embed_audio: bool = False,
) -> pathlib.Path:
  """Writes the page.

  Args:
    path: of the page; its folder is made when missing.
    query: what was asked.
    hits: nearest first.
    facts: of the index, from `audio_index.describe`.
    window_secs: audio of a window, where the index has one vector for each.
    embed_audio: carry 10 s of each file in the page; otherwise it plays the
      files where they lie.

  Returns:
    The path.
  """
  page = pathlib.Path(path)
  page.parent.mkdir(parents=True, exist_ok=True)
  by_window = facts["by_window"]
  cards = []
  for rank, hit in enumerate(hits, 1):
    end_secs = hit.start_secs + window_secs if by_window else None
    place = ""
    if by_window:
      place = (
        f"<p class='note'>{html.number(hit.start_secs, 0)} to "
        f"{html.number(end_secs, 0)} s</p>"
      )
    file = pathlib.PurePath(hit.path)
    cards.append(
      '<article class="card">'
      f'<h3 class="caption">{rank}. {html.escape(file.name)}</h3>'
      f'<p class="note">cosine {html.number(hit.score)}'
      f"{html.bar(hit.score)}</p>{place}"
      + _player(hit.path, page, hit.start_secs, end_secs, embed_audio)
      + f'<p class="note"><code>{html.escape(file.parent)}</code></p></article>'
    )
  asked = query.text
  heard = ""
  if query.audio is not None:
    asked = pathlib.PurePath(query.audio).name
    heard = _player(query.audio, page, 0.0, None, embed_audio)
  numbers = (
    ("Files searched", f"{facts['num_files']:,}"),
    ("Vectors", f"{facts['num_vectors']:,}"),
    ("Highest cosine", html.number(hits[0].score)),
    ("MuLan", facts["fingerprint"][:12]),
  )
  cells = "".join(
    f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
    for name, value in numbers
  )
  text = html.page(
    f"Nearest to {asked}",
    f'<header><h1 style="overflow-wrap: anywhere">{html.escape(asked)}</h1>'
    f'<p class="lead">The nearest audio in MuLan\'s joint space.</p>{heard}'
    f'<dl class="facts">{cells}</dl></header>',
    f'<main><div class="grid">{"".join(cards)}</div></main>',
  )
  atomic_files.write_text(page, text)
  return page
