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
from musiclm_jax.core import errors
from musiclm_jax.evaluation import curves as curves_lib
from musiclm_jax.evaluation import report_figures as figures
from musiclm_jax.evaluation import report_page as html
from musiclm_jax.evaluation import summary as summary_lib

_DESCRIPTION = (
  "Text-to-music generation in the manner of MusicLM (arXiv 2301.11325): a "
  "neural codec, semantic tokens and a joint text-audio embedding are trained "
  "first; three language models then write music from a caption, stage by "
  "stage. Everything on this page was trained and generated in one run."
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
  curves: Mapping[str, Any],
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
    "codec": _codec(summary.get("codec", {}))
    + _reconstructions(reconstructions, audio),
    "curves": _curves(curves, dict(curve_units or {})),
    "stages": _stages(summary.get("stages", {})),
    "mulan": _mulan(summary.get("mulan", {}), summary.get("mcc", {})),
    "run": _run(summary),
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
  scratch = path.with_suffix(".writing")
  scratch.write_text(text, encoding="utf-8")
  scratch.replace(path)
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
    facts.append(("Time of all steps", html.duration(total)))
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
    "<p>Each clip was generated from its caption alone. Captions and seeds "
    "were fixed beforehand; no clip was picked or left out.</p>",
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
          figures.spectrogram(waveform, clip.sample_rate_hz, what, 3.6, 2.1)
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


def _codec(codec: Mapping[str, Any]) -> list[str]:
  distances = codec.get("log_mel_distance", {})
  if not distances:
    return []
  ratios = codec.get("si_snr_db", {})
  counts = sorted(distances, key=int)
  out = [
    "<p>Held-out audio encoded and decoded with the first codebooks only: "
    "each added codebook should bring the copy nearer.</p>",
    html.figure(
      figures.codec(codec),
      f"Distance: {codec['definition']}." if codec.get("definition") else "",
      "wide",
    ),
    html.table(
      "Reconstruction of held-out audio",
      ["Codebooks", *counts],
      [
        [
          "Log-mel distance (nats)",
          *(html.number(distances[count]) for count in counts),
        ],
        [
          "SI-SNR (dB)",
          *(html.number(ratios.get(count), 2) for count in counts),
        ],
      ],
    ),
  ]
  if codec.get("codebook_usage"):
    levels = codec["codebook_usage"]
    rows = [["Entries used", *map(html.percent, levels)]]
    if codec.get("codebook_perplexity"):
      rows.append(
        [
          "Perplexity",
          *(html.number(value, 1) for value in codec["codebook_perplexity"]),
        ]
      )
    out += [
      html.figure(figures.usage(levels), "", "wide"),
      html.table("Codebook use", ["Level", *range(1, len(levels) + 1)], rows),
    ]
  return out


def _curves(curves: Mapping[str, Any], units: dict[str, str]) -> list[str]:
  cards = []
  for name, splits in curves.items():
    splits = splits if isinstance(splits, Mapping) else {"train": splits}
    unit = units.get(name, "Loss")
    if name in summary_lib.STAGES and name not in units:
      unit = "Loss (nats per token)"
    cards.append(
      f'<article class="card"><h3>{html.escape(name)}</h3>'
      + html.figure(figures.curve(name, splits, unit))
      + "</article>"
    )
  return [f'<div class="grid">{"".join(cards)}</div>'] if cards else []


def _stages(stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
  if not stages:
    return []
  models = ("heldout", "bigram", "unigram")
  rows = []
  for name, scores in stages.items():
    values = [scores.get(f"{model}_cross_entropy") for model in models]
    gain = None
    if values[0] is not None and values[1] is not None:
      gain = values[1] - values[0]
    rows.append(
      [name, *map(html.number, (*values, gain)), scores.get("num_tokens", "–")]
    )
  out = [
    "<p>How well each stage predicts held-out tokens, beside counting: the "
    "unigram knows how frequent each code is, the bigram also the token "
    "before. Both are fitted per level, with smoothing tuned in their favour "
    "on the held-out tokens.</p>",
    html.figure(figures.stages(stages), "", "wide"),
    html.table(
      "Cross-entropy (nats per token)",
      ["Stage", "Stage", "Bigram", "Unigram", "Gain on bigram", "Tokens"],
      rows,
    ),
  ]
  for name, scores in stages.items():
    levels = scores.get("heldout_per_level", ())
    if len(levels) > 1:
      out.append(
        html.table(
          f"By codebook level of the {name} stage (nats per token)",
          ["Level", *range(1, len(levels) + 1)],
          [
            [
              "stage" if model == "heldout" else model,
              *map(html.number, scores.get(f"{model}_per_level", ())),
            ]
            for model in models
          ],
        )
      )
  return out


def _mulan(mulan: Mapping[str, Any], mcc: Mapping[str, Any]) -> list[str]:
  out = []
  rows = [
    [
      name.replace("_", " "),
      *(
        html.percent(mulan[name].get(key))
        for key in ("recall_at_1", "recall_at_10", "chance_at_10")
      ),
      html.number(mulan[name].get("median_rank"), 1),
      mulan[name].get("num_items", "–"),
    ]
    for name in summary_lib.DIRECTIONS
    if name in mulan
  ]
  if rows:
    header = ["Direction", "R@1", "R@10", "Chance at 10", "Median rank"]
    out += [
      "<p>Held-out captions and clips matched by the joint embedding. Clips "
      "that share a caption word for word count as equally right.</p>",
      html.table("Retrieval", [*header, "Candidates"], rows),
    ]
  if isinstance(mcc.get("matched"), Mapping):
    out += [
      "<p>MuLan cycle consistency (MCC): the cosine between a prompt and the "
      "music generated from it, beside the same music and other prompts. It "
      "favours a system that was trained on this embedding.</p>",
      html.figure(figures.consistency(mcc), "", "wide"),
      html.table(
        "MCC with 95 % bootstrap intervals",
        ["Prompts", "Mean", "Low", "High"],
        [
          [name, *(html.number(mcc[name].get(key)) for key in _INTERVAL)]
          for name in ("matched", "shuffled", "difference")
          if isinstance(mcc.get(name), Mapping)
        ],
      ),
    ]
  return out


_INTERVAL = ("mean", "low", "high")


def _run(summary: Mapping[str, Any]) -> list[str]:
  out = []
  steps = summary.get("steps", ())
  if steps:
    longest = max(step["seconds"] for step in steps) or 1.0
    out.append(
      html.table(
        "Time by step",
        ["Step", "Time", ""],
        [
          [
            step["name"],
            html.duration(step["seconds"]),
            html.bar(step["seconds"] / longest),
          ]
          for step in steps
        ],
      )
    )
  for caption, key in (
    ("Frozen artefacts", "fingerprints"),
    ("Versions", "versions"),
  ):
    if summary.get(key):
      rows = [
        [name, html.Raw(f"<code>{html.escape(value)}</code>")]
        for name, value in summary[key].items()
      ]
      heading = "Fingerprint" if key == "fingerprints" else "Version"
      out.append(html.table(caption, ["Name", heading], rows))
  if summary.get("peak_memory_bytes"):
    out.append(
      f'<p class="note">Peak memory of any process of the run: '
      f"{html.size(summary['peak_memory_bytes'])}.</p>"
    )
  return out


# What a caller passes as `curves`, for annotations elsewhere.
CurvesByTrainable = Mapping[str, Mapping[str, curves_lib.Points]]
