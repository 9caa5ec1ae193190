# SPDX-License-Identifier: Apache-2.0
"""The codec's page: a measured report and sounds in, a folder with HTML out.

`report.json`, `report.csv` and `index.html`, with the sounds it plays beside
it in `audio/`. The page opens from disk, needs no network and runs no script.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.audio import files
from musiclm_jax.core import atomic_files
from musiclm_jax.evaluation import codec_report
from musiclm_jax.evaluation import report_figures as figures
from musiclm_jax.evaluation import report_page as html

_HEADINGS = (
  ("bitrate_bps", "Bits per second", 0),
  ("si_snr_db", "SI-SNR (dB)", 2),
  ("si_snr_middle_db", "of the middle", 2),
  ("si_snr_side_db", "of the side", 2),
  ("log_mel_distance", "Log-mel (nats)", 3),
  ("multi_scale_mel", "Multi-scale mel (nats)", 3),
  ("spectral_convergence", "Spectral convergence", 3),
  ("log_stft", "Log STFT (nats)", 3),
  ("visqol", "ViSQOL (MOS)", 2),
)
_AIM = 0.8


def _plain(value: Any) -> Any:
  """JSON has no NaN: null in its place."""
  if isinstance(value, Mapping):
    return {name: _plain(one) for name, one in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(one) for one in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write(
  directory: str | os.PathLike,
  report: Mapping[str, Any],
  listening: Sequence[codec_report.Listening],
  title: str = "Codec report",
) -> pathlib.Path:
  """Writes the folder; sounds of an earlier report in its `audio/` are
  replaced.

  Args:
    directory: the folder, made when missing.
    report: of `codec_report.measure`.
    listening: of the same.
    title: of the page.

  Returns:
    Path of `index.html`.
  """
  directory = pathlib.Path(directory)
  audio = directory / "audio"
  audio.mkdir(parents=True, exist_ok=True)
  # Of an earlier report only: the folder is whatever the user named.
  for old in audio.glob("[0-9]*_[0-9][0-9]*_*.wav"):
    old.unlink()
  text = json.dumps(_plain(report), indent=2, allow_nan=False) + "\n"
  atomic_files.write_text(directory / "report.json", text)
  atomic_files.write_text(directory / "report.csv", codec_report.to_csv(report))
  rate_hz = report["codec"]["sample_rate_hz"]
  sections = []
  for index, (name, entry) in enumerate(report["sets"].items()):
    heard = [one for one in listening if one.set_name == name]
    sections.append(
      html.section(
        f"set_{index}",
        name[:1].upper() + name[1:],
        *_numbers(entry, report["codec"]["codebook_size"]),
        *_players(heard, audio, index, rate_hz),
      )
    )
  links = "".join(
    f'<a href="#set_{index}">{html.escape(name)}</a>'
    for index, name in enumerate(report["sets"])
  )
  text = html.page(
    title,
    f"<header><h1>{html.escape(title)}</h1>"
    '<p class="lead">Sounds encoded once and decoded from their first '
    "codebooks: what each codebook brings, in numbers and by ear.</p>",
    _facts(report["codec"]),
    f'<nav aria-label="Sets">{links}</nav></header>',
    f"<main>{''.join(sections)}{_definitions(report)}</main>",
  )
  path = directory / "index.html"
  atomic_files.write_text(path, text)
  return path


def _facts(codec: Mapping[str, Any]) -> str:
  size, levels = codec["codebook_size"], codec["num_codebooks"]
  bits = levels * math.log2(size) * codec["frame_rate_hz"]
  facts = (
    ("Sample rate", f"{codec['sample_rate_hz'] / 1000:g} kHz"),
    ("Frames per second", f"{codec['frame_rate_hz']:g}"),
    ("Codebooks", f"{levels} × {size}"),
    ("All codebooks", f"{bits / 1000:.2f} kbit/s"),
    ("Fingerprint", codec["fingerprint"][:12]),
  )
  cells = "".join(
    f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
    for name, value in facts
  )
  return f'<dl class="facts">{cells}</dl>'


def _numbers(entry: Mapping[str, Any], codebook_size: int) -> list[str]:
  """Tables of one set: distances by codebooks, and how codes are used."""
  rows = entry["rows"]
  columns = [one for one in _HEADINGS if one[0] in rows[0]]
  levels = entry["codebook_usage"]
  used = sum(share >= _AIM for share in levels)
  evenly = 1.0 - (1.0 - 1.0 / codebook_size) ** entry["num_frames"]
  table = html.table(
    "By codebooks decoded",
    ["Codebooks", *(heading for _, heading, _ in columns)],
    [
      [
        row["num_codebooks"],
        *(html.number(row[name], digits) for name, _, digits in columns),
      ]
      for row in rows
    ],
  )
  use = html.table(
    "Codebook use",
    ["Level", "Entries used", "", "Perplexity", "Entropy (bit/s)"],
    [
      [
        level + 1,
        html.percent(share),
        html.bar(share),
        html.number(entry["codebook_perplexity"][level], 1),
        html.number(entry["entropy_bps"][level], 0),
      ]
      for level, share in enumerate(levels)
    ],
  )
  return [
    f"<p>{entry['num_sounds']} sounds, {html.duration(entry['secs'])}, "
    f"{entry['num_frames']} frames. {used} of {len(levels)} codebooks have at "
    f"least {100 * _AIM:.0f} % of their entries used here; so many frames, "
    f"evenly spread, would use {html.percent(evenly)}.</p>",
    table,
    use,
  ]


def _players(
  heard: Sequence[codec_report.Listening],
  audio: pathlib.Path,
  set_index: int,
  rate_hz: int,
) -> list[str]:
  """A card per sound: the original beside what codebooks make of it."""
  cards = []
  for index, sound in enumerate(heard):
    versions = [("Original", "original", sound.original)]
    for count, waveform in sorted(sound.decoded.items()):
      label = f"{count} codebook{'' if count == 1 else 's'}"
      versions.append((label, f"{count:02d}", waveform))
    parts = []
    for label, suffix, waveform in versions:
      name = f"{set_index}_{index:02d}_{suffix}.wav"
      files.write_wav(audio / name, waveform, rate_hz)
      what = f"{sound.name}, {label.lower()}"
      mono = waveform if waveform.ndim == 1 else waveform.mean(-1)
      parts.append(
        f"<div><h3>{html.escape(label)}</h3>"
        + html.player(f"audio/{name}", what)
        + html.figure(figures.spectrogram(mono, rate_hz, what, 3.1, 2.0))
        + "</div>"
      )
    cards.append(
      f'<article class="card"><p class="caption">{html.escape(sound.name)}</p>'
      f'<div class="grid four">{"".join(parts)}</div></article>'
    )
  return [f'<div class="stack">{"".join(cards)}</div>'] if cards else []


def _definitions(report: Mapping[str, Any]) -> str:
  names = {name: heading for name, heading, _ in _HEADINGS}
  items = "".join(
    f"<li><b>{html.escape(names[name])}</b>: {html.escape(text)}.</li>"
    for name, text in report["definitions"].items()
  )
  visqol = str(report["visqol"])
  notes = [f"<p>{html.escape(visqol)}.</p>"] if " " in visqol else []
  if report.get("skipped"):
    notes.append(
      html.table(
        "Files left out",
        ["File", "Reason"],
        [[one["path"], one["reason"]] for one in report["skipped"]],
      )
    )
  return html.section(
    "definitions", "What was measured", f"<ul>{items}</ul>", *notes
  )
