# SPDX-License-Identifier: Apache-2.0
"""The melody page: scores and sounds in, one HTML file out.

Each card has the given melody, the result with it and the result of the same
prompt and seed without it side by side, to hear and as chromagrams. Sounds are
inside the file, which needs nothing beside it.
"""

import base64
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.core import atomic_files
from musiclm_jax.evaluation import chroma_similarity
from musiclm_jax.evaluation import report_figures as figures
from musiclm_jax.evaluation import report_page as html

_ROWS = (
  ("Chroma, result with its melody", "chroma", "given"),
  ("Chroma, result with other melodies", "chroma", "shuffled"),
  ("Chroma, plain result with the melody", "chroma", "plain"),
  ("Own minus other melodies", "chroma", "given_minus_shuffled"),
  ("With minus without a melody", "chroma", "given_minus_plain"),
  (
    "Own minus other melodies, best transposition",
    "chroma",
    "transposed_given_minus_shuffled",
  ),
  ("Text score with a melody", "text", "melody"),
  ("Text score without", "text", "plain"),
  ("Text, with minus without", "text", "melody_minus_plain"),
)
_VERDICTS = {
  "takes_melody": (
    "The result takes its melody",
    "Chroma cosine with the given melody is above that with other melodies, "
    "the interval clear of zero.",
  ),
  "keeps_text": (
    "The text is kept",
    "The text score is not lower than without a melody by more than the "
    "interval.",
  ),
}


@dataclasses.dataclass(frozen=True)
class Sound:
  """What is heard and seen of one sound.

  Attributes:
    waveform: float32 `[samples]`.
    sample_rate_hz: its rate.
    chroma: of `chroma_similarity.chromagram`.
  """

  waveform: np.ndarray
  sample_rate_hz: int
  chroma: np.ndarray


@dataclasses.dataclass(frozen=True)
class Trio:
  """One card.

  Attributes:
    prompt: the text.
    melody_name: what the melody is called.
    melody: what was given.
    result: what was made of both.
    plain: what was made of the text alone.
    scores: the item's entry in `chroma_similarity.melody_scores`.
  """

  prompt: str
  melody_name: str
  melody: Sound
  result: Sound
  plain: Sound
  scores: Mapping[str, float]


def write(
  path: str | os.PathLike, report: Mapping[str, Any], trios: Sequence[Trio]
) -> pathlib.Path:
  """Writes the page, whole or not at all.

  Args:
    path: of the HTML file.
    report: of `chroma_similarity.melody_scores`, perhaps with more.
    trios: what is shown.

  Returns:
    The path.
  """
  path = pathlib.Path(path)
  verdicts = "".join(
    f'<li><strong>{html.escape(title)}</strong><b class="verdict '
    f'{"pass" if report["verdicts"][name] else "fail"}">'
    f"{'yes' if report['verdicts'][name] else 'no'}</b>"
    f'<span class="note">{html.escape(text)}</span></li>'
    for name, (title, text) in _VERDICTS.items()
  )
  rows = [
    [title, *(html.number(report[part][name][key]) for key in _INTERVAL)]
    for title, part, name in _ROWS
  ]
  counts = (
    f"{report['num_items']} results of {report['num_melodies']} melodies and "
    f"{report['num_prompts']} prompts. Intervals are 95 % bootstraps over "
    "melodies (chroma) or prompts (text)."
  )
  text = html.page(
    "Melody report",
    "<header><h1>Melody report</h1>"
    '<p class="lead">Music made from a text and a melody: does it take the '
    "melody, and does it still keep to the text?</p></header>",
    "<main>",
    f'<ul class="criteria">{verdicts}</ul>',
    html.section(
      "scores",
      "Scores",
      f"<p>{html.escape(counts)}</p>",
      html.table("Mean and interval", ["", *_INTERVAL], rows),
    ),
    html.section(
      "sounds",
      "Melody, prompt and result",
      f'<div class="stack">{"".join(map(_card, trios))}</div>',
    ),
    "</main>",
  )
  atomic_files.write_text(path, text)
  return path


_INTERVAL = ("mean", "low", "high")


def _card(trio: Trio) -> str:
  scores = trio.scores
  versions = (
    ("Melody", trio.melody, trio.melody_name),
    (
      "Text and melody",
      trio.result,
      f"chroma {html.number(scores['chroma_given'], 2)}, with other melodies "
      f"{html.number(scores['chroma_shuffled'], 2)}; text "
      f"{html.number(scores['text_melody'], 2)}",
    ),
    (
      "Text alone",
      trio.plain,
      f"chroma {html.number(scores['chroma_plain'], 2)}; text "
      f"{html.number(scores['text_plain'], 2)}",
    ),
  )
  parts = []
  for label, sound, caption in versions:
    flac = files.encode_flac(sound.waveform, sound.sample_rate_hz)
    source = "data:audio/flac;base64," + base64.b64encode(flac).decode()
    what = f"{label.lower()}, {trio.melody_name}, {trio.prompt}"
    parts.append(
      f"<div><h3>{html.escape(label)}</h3>"
      + html.player(source, what)
      + html.figure(
        figures.chromagram(sound.chroma, chroma_similarity.FRAME_RATE_HZ, what),
        caption,
      )
      + "</div>"
    )
  return (
    f'<article class="card"><p class="caption">{html.escape(trio.prompt)}</p>'
    f'<div class="grid">{"".join(parts)}</div></article>'
  )
