# SPDX-License-Identifier: Apache-2.0
"""Sections of the report page: entries of the summary in, HTML parts out."""

from collections.abc import Mapping
from typing import Any

from musiclm_jax.evaluation import curves as curves_lib
from musiclm_jax.evaluation import report_figures as figures
from musiclm_jax.evaluation import report_page as html
from musiclm_jax.evaluation import summary as summary_lib

# Points of one trainable: by split, or of the training split alone.
Curves = Mapping[str, curves_lib.Points] | curves_lib.Points
_INTERVAL = ("mean", "low", "high")


def codec(table: Mapping[str, Any]) -> list[str]:
  """Distances by codebooks decoded and how codebooks are used."""
  distances = table.get("log_mel_distance", {})
  if not distances:
    return []
  ratios = table.get("si_snr_db", {})
  counts = sorted(distances, key=int)
  out = [
    "<p>Held-out audio encoded and decoded with the first codebooks only: "
    "each added codebook should bring the copy nearer.</p>",
    html.figure(
      figures.codec(table),
      f"Distance: {table['definition']}." if table.get("definition") else "",
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
  if table.get("codebook_usage"):
    levels = table["codebook_usage"]
    rows = [["Entries used", *map(html.percent, levels)]]
    if table.get("codebook_perplexity"):
      rows.append(
        [
          "Perplexity",
          *(html.number(value, 1) for value in table["codebook_perplexity"]),
        ]
      )
    out += [
      html.figure(figures.usage(levels), "", "wide"),
      html.table("Codebook use", ["Level", *range(1, len(levels) + 1)], rows),
    ]
  return out


def curves(by_trainable: Mapping[str, Any], units: dict[str, str]) -> list[str]:
  """One small chart per trainable, train and held-out."""
  cards = []
  for name, splits in by_trainable.items():
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


def stages(by_stage: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Cross-entropy of the stages beside both baselines."""
  if not by_stage:
    return []
  models = ("heldout", "bigram", "unigram")
  rows = []
  for name, scores in by_stage.items():
    values = [scores.get(f"{model}_cross_entropy") for model in models]
    gain = None
    if values[0] is not None and values[1] is not None:
      gain = values[1] - values[0]
    rows.append(
      [
        name,
        *map(html.number, (*values, gain)),
        f"{scores['num_tokens']:,}" if "num_tokens" in scores else "–",
      ]
    )
  out = [
    "<p>How well each stage predicts held-out tokens, beside counting: the "
    "unigram knows how frequent each code is, the bigram also the token "
    "before. Both are fitted per level, with smoothing tuned in their favour "
    "on the held-out tokens.</p>",
    html.figure(figures.stages(by_stage), "", "wide"),
    html.table(
      "Cross-entropy (nats per token)",
      ["Stage", "Model", "Bigram", "Unigram", "Gain on bigram", "Tokens"],
      rows,
    ),
  ]
  for name, scores in by_stage.items():
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


def embeddings(mulan: Mapping[str, Any], mcc: Mapping[str, Any]) -> list[str]:
  """Retrieval both ways, and MCC with intervals."""
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


def run(summary: Mapping[str, Any]) -> list[str]:
  """Times, fingerprints, versions and memory."""
  times, origins = [], []
  steps = summary.get("steps", ())
  if steps:
    longest = max(step["seconds"] for step in steps) or 1.0
    times.append(
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
      origins.append(html.table(caption, ["Name", heading], rows))
  if summary.get("peak_memory_bytes"):
    times.append(
      f'<p class="note">Peak memory of all processes of the run together: '
      f"{html.size(summary['peak_memory_bytes'])}.</p>"
    )
  if not times and not origins:
    return []
  return [html.columns("".join(times), "".join(origins))]
