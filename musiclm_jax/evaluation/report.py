# SPDX-License-Identifier: Apache-2.0
"""The report page: summary, samples and curves in, `index.html` out.

The folder stands alone: the page with its figures inline, and beside it an
`audio/` folder with a copy of every file it plays. It opens from disk, needs
no network and runs no script.
"""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.core import atomic_files, errors
from musiclm_jax.evaluation import report_figures as figures
from musiclm_jax.evaluation import report_page as html
from musiclm_jax.evaluation import report_sections
from musiclm_jax.evaluation import summary as summary_lib

_DESCRIPTION = (
  "Text-to-music generation in the manner of MusicLM (arXiv 2301.11325): a "
  "neural codec, semantic tokens and a joint text-audio embedding are trained "
  "first; three language models then write music from a caption, stage by "
  "stage."
)
_SECTIONS = (
  ("criteria", "Acceptance criteria"),
  ("samples", "Generated music"),
  ("codec", "Codec"),
  ("curves", "Training curves"),
  ("stages", "Language model stages"),
  ("mulan", "Text and audio embeddings"),
  ("run", "The run"),
)


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """A held-out clip and what the codec makes of it.

  Attributes:
    name: caption or id of the clip.
    original: float `[samples]` in [-1, 1].
    decoded: waveforms `[samples]` by number of codebooks decoded.
    sample_rate_hz: of all of them.
  """

  name: str
  original: np.ndarray
  decoded: Mapping[int, np.ndarray]
  sample_rate_hz: int


def write_report(
  directory: str | os.PathLike,
  summary: Mapping[str, Any],
  samples: Sequence[Mapping[str, Any]],
  curves: Mapping[str, report_sections.Curves],
  reconstructions: Sequence[Reconstruction] = (),
  run_directory: str | os.PathLike | None = None,
  title: str = "MusicLM run report",
  description: str = _DESCRIPTION,
  curve_units: Mapping[str, str] | None = None,
) -> pathlib.Path:
  """Writes `index.html` and its audio files.

  Args:
    directory: the report's folder; its `audio/` is replaced.
    summary: of `summary.build_summary`; parts may be missing.
    samples: `{'file', 'prompt', 'seconds', 'seed'}` of each generated file.
    curves: points (step, loss) by split, by trainable, as
      `curves.loss_curves` gives; a bare list of points counts as 'train'.
    reconstructions: held-out clips through the codec.
    run_directory: what `file` of a sample is relative to; by default the
      folder that holds `directory`.
    title: of the page.
    description: what this is, one paragraph.
    curve_units: axis label by trainable ('Loss', or 'Loss (nats per token)'
      for the stages, by default).

  Returns:
    Path of the page.

  Raises:
    UserError: if a sample's file is missing or not audio.
  """
  directory = pathlib.Path(directory)
  root = pathlib.Path(run_directory or directory.parent)
  audio = directory / "audio"
  shutil.rmtree(audio, ignore_errors=True)
  audio.mkdir(parents=True)
  criteria = summary_lib.check_criteria(summary)
  content = {
    "criteria": _criteria(criteria),
    "samples": _samples(samples, root, audio),
    "codec": report_sections.codec(summary.get("codec", {}))
    + _reconstructions(reconstructions, audio),
    "curves": report_sections.curves(curves, dict(curve_units or {})),
    "stages": report_sections.stages(summary.get("stages", {})),
    "mulan": report_sections.embeddings(
      summary.get("mulan", {}), summary.get("mcc", {})
    ),
    "run": report_sections.run(summary),
  }
  sections = [
    html.section(name, heading, *content[name])
    for name, heading in _SECTIONS
    if content[name]
  ]
  links = "".join(
    f'<a href="#{name}">{heading}</a>'
    for name, heading in _SECTIONS
    if content[name]
  )
  text = html.page(
    title,
    f"<header><h1>{html.escape(title)}</h1>"
    f'<p class="lead">{html.escape(description)}</p>',
    _facts(summary, criteria, len(samples)),
    f'<nav aria-label="Sections">{links}</nav></header>',
    f"<main>{''.join(sections)}</main>",
  )
  path = directory / "index.html"
  atomic_files.write_text(path, text)
  return path


def _facts(
  summary: Mapping[str, Any],
  criteria: Sequence[summary_lib.Criterion],
  num_samples: int,
) -> str:
  passed = sum(criterion.passed for criterion in criteria)
  facts = [
    ("Criteria that hold", f"{passed} of {len(criteria)}"),
    ("Generated samples", str(num_samples)),
  ]
  if summary.get("steps"):
    total = sum(step["seconds"] for step in summary["steps"])
    facts.append(("Sum of step times", html.duration(total)))
  if summary.get("peak_memory_bytes"):
    facts.append(("Peak memory", html.size(summary["peak_memory_bytes"])))
  cells = "".join(
    f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
    for name, value in facts
  )
  return f'<dl class="facts">{cells}</dl>'


def _criteria(criteria: Sequence[summary_lib.Criterion]) -> list[str]:
  items = []
  for criterion in criteria:
    verdict = "pass" if criterion.passed else "fail"
    items.append(
      f'<li><b class="verdict {verdict}">{verdict}</b>'
      f"<strong>{html.escape(criterion.name)}</strong>"
      f'<span class="note">{html.escape(criterion.text)}</span></li>'
    )
  return [f'<ul class="criteria">{"".join(items)}</ul>']


def _samples(
  samples: Sequence[Mapping[str, Any]],
  root: pathlib.Path,
  audio: pathlib.Path,
) -> list[str]:
  cards = []
  for index, sample in enumerate(samples):
    source = root / sample["file"]
    waveform, rate = files.read_audio(source)
    name = f"sample_{index:02d}{source.suffix}"
    try:
      shutil.copyfile(source, audio / name)
    except OSError as error:
      raise errors.UserError(f"cannot copy {source}: {error}") from error
    prompt = str(sample["prompt"])
    secs = sample.get("seconds", len(waveform) / rate)
    cards.append(
      f'<article class="card"><p class="caption">{html.escape(prompt)}</p>'
      + html.player(f"audio/{name}", f"Generated: {prompt}")
      + html.figure(figures.spectrogram(waveform, rate, f"“{prompt}”"))
      + f'<p class="note">{float(secs):.1f} s, seed '
      f"{html.escape(sample.get('seed', '–'))}, "
      f"<code>{html.escape(sample['file'])}</code></p></article>"
    )
  if not cards:
    return []
  return [
    "<p>Each clip was generated from the caption above it and nothing else. "
    "Every sample of the run is shown.</p>",
    f'<div class="grid">{"".join(cards)}</div>',
  ]


def _reconstructions(
  reconstructions: Sequence[Reconstruction], audio: pathlib.Path
) -> list[str]:
  cards = []
  for index, clip in enumerate(reconstructions):
    versions = [("Original", "original", clip.original)]
    for count, waveform in sorted(clip.decoded.items()):
      label = f"{count} codebook{'' if count == 1 else 's'}"
      versions.append((label, f"{count:02d}", waveform))
    figures_html = []
    for label, suffix, waveform in versions:
      name = f"heldout_{index:02d}_{suffix}.wav"
      files.write_wav(audio / name, waveform, clip.sample_rate_hz)
      what = f"{clip.name}, {label.lower()}"
      figures_html.append(
        f"<div><h3>{html.escape(label)}</h3>"
        + html.player(f"audio/{name}", what)
        + html.figure(
          figures.spectrogram(waveform, clip.sample_rate_hz, what, 3.1, 2.0)
        )
        + "</div>"
      )
    cards.append(
      f'<article class="card"><p class="caption">{html.escape(clip.name)}</p>'
      f'<div class="grid four">{"".join(figures_html)}</div></article>'
    )
  if not cards:
    return []
  return [
    "<h3>Held-out clips through the codec</h3>",
    '<p class="note">Audio no part of the system was trained on, decoded '
    "from its first codebooks. This bounds how good generated music can "
    "sound.</p>",
    f'<div class="stack">{"".join(cards)}</div>',
  ]
