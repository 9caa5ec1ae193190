# SPDX-License-Identifier: Apache-2.0
"""Figures of the report page: numbers in, inline SVG text out.

Each figure is drawn by matplotlib in marker colours that are then replaced by
the page's CSS variables, so that one file follows a light or a dark screen,
and its labels are text that can be searched and read aloud.
"""

import html
import io
import itertools
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import figure as figure_lib
from matplotlib import ticker

from musiclm_jax.evaluation import log_mel

# Colours no figure needs for itself, by the CSS variable they stand for.
_INK, _MUTED, _LINE = "#0a0b01", "#0a0b02", "#0a0b03"
FIRST, SECOND, THIRD = "#0a0b04", "#0a0b05", "#0a0b06"
_VARIABLES = {
  _INK: "var(--ink)",
  _MUTED: "var(--muted)",
  _LINE: "var(--line)",
  FIRST: "var(--first)",
  SECOND: "var(--second)",
  THIRD: "var(--third)",
}
_STYLE = {
  "svg.fonttype": "none",
  "svg.hashsalt": "musiclm_jax",
  "font.size": 10,
  "text.color": _INK,
  "axes.labelcolor": _MUTED,
  "axes.edgecolor": _LINE,
  "axes.facecolor": "none",
  "figure.facecolor": "none",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": _LINE,
  "grid.linewidth": 0.7,
  "xtick.color": _LINE,
  "ytick.color": _LINE,
  "xtick.labelcolor": _MUTED,
  "ytick.labelcolor": _MUTED,
  "legend.frameon": False,
  "lines.solid_capstyle": "round",
}
# A curve is averaged down to about as many points as a figure has pixels.
_MAX_POINTS = 300
# Above this ratio of largest to smallest loss the axis is logarithmic.
_LOG_RATIO = 30.0
_counter = itertools.count()


def _new(width: float, height: float, columns: int = 1):
  figure = figure_lib.Figure((width, height), layout="constrained")
  return figure, figure.subplots(1, columns)


def _to_svg(figure: figure_lib.Figure, alt: str) -> str:
  """SVG for inlining in HTML: no prologue, no addresses, unique ids."""
  buffer = io.StringIO()
  figure.savefig(buffer, format="svg", transparent=True)
  text = buffer.getvalue()
  text = text[text.index("<svg") :]
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
  text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
  text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
  text = text.replace("xlink:href=", "href=")
  prefix = f"f{next(_counter)}-"
  text = re.sub(r'\bid="', f'id="{prefix}', text)
  text = re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}", text)
  for marker, variable in _VARIABLES.items():
    text = text.replace(marker, variable)
  view_box = re.search(r'viewBox="[^"]*"', text).group(0)
  head = f'<svg {view_box} role="img" aria-label="{html.escape(alt)}">'
  text = re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
  return re.sub(r"\n\s*", "\n", text).strip()


# For figures of other modules.
STYLE, INK, MUTED, LINE = _STYLE, _INK, _MUTED, _LINE
new_figure, to_svg = _new, _to_svg


def _thin(points: Sequence[tuple[float, float]]) -> np.ndarray:
  """Points, averaged by neighbours where there are very many."""
  array = np.asarray(points, np.float64).reshape(-1, 2)
  array = array[np.isfinite(array).all(-1)]
  if len(array) <= _MAX_POINTS:
    return array
  parts = np.array_split(array, _MAX_POINTS)
  return np.stack([part.mean(0) for part in parts])


def curve(
  name: str,
  splits: Mapping[str, Sequence[tuple[float, float]]],
  unit: str = "Loss",
  x_label: str = "Optimizer step",
) -> str:
  """Loss of one trainable by optimizer step, train and held-out.

  Args:
    name: of the trainable.
    splits: (step, value) points by split.
    unit: label of the vertical axis.
    x_label: of the other axis.

  Returns:
    SVG text.
  """
  with matplotlib.rc_context(_STYLE):
    figure, axes = _new(4.1, 2.8)
    arrays = {split: _thin(points) for split, points in splits.items()}
    arrays = {split: array for split, array in arrays.items() if len(array)}
    colours = itertools.cycle((SECOND, THIRD))
    for split, array in arrays.items():
      train = split == "train"
      axes.plot(
        *array.T,
        color=FIRST if train else next(colours),
        linewidth=1.6 if train else 2.0,
        marker="" if train else "o",
        markersize=3.5,
        zorder=2 if train else 3,
        label=split.replace("heldout", "held-out"),
      )
    values = np.concatenate([array[:, 1] for array in arrays.values()] or [[]])
    positive = len(values) > 0 and values.min() > 0
    if positive and values.max() > _LOG_RATIO * values.min():
      axes.set_yscale("log")
      axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
      axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.grid(False, axis="x")
    axes.set(xlabel=x_label, ylabel=unit)
    if arrays:
      axes.legend(loc="best", fontsize=9)
    ends = ", ".join(
      f"{split} ends at {array[-1, 1]:.3g}" for split, array in arrays.items()
    )
    return _to_svg(
      figure, f"{name}: {unit} by {x_label.lower()}; {ends or 'no points'}"
    )


def spectrogram(
  waveform: np.ndarray,
  sample_rate_hz: int,
  what: str,
  width: float = 4.0,
  height: float = 1.9,
) -> str:
  """Log-mel spectrogram with time and frequency axes.

  Args:
    waveform: float `[samples]` in [-1, 1].
    sample_rate_hz: its rate.
    what: said in the alt text.
    width: inches; with `height` it sets how large labels are in the picture.
    height: inches.

  Returns:
    SVG text with an embedded picture.
  """
  secs = len(waveform) / sample_rate_hz
  config = log_mel.LogMelConfig(
    sample_rate_hz, hop_secs=max(0.008, secs / 600), num_mels=80
  )
  spectrum = log_mel.log_mel(waveform, config).T
  ticks = [hz for hz in (250, 1000, 4000) if hz < sample_rate_hz / 2]
  centres = log_mel.mel_centres_hz(config)[1:-1]
  with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
    figure, axes = _new(width, height)
    axes.imshow(
      spectrum,
      origin="lower",
      aspect="auto",
      interpolation="none",
      cmap="magma",
      vmin=np.log(config.floor),
      vmax=0.0,
      extent=(0.0, secs, -0.5, config.num_mels - 0.5),
    )
    axes.set_yticks(
      np.interp(ticks, centres, np.arange(config.num_mels)),
      [f"{hz:g}" for hz in ticks],
    )
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=secs >= 4))
    axes.set(xlabel="Time (s)", ylabel="Frequency (Hz)")
    return _to_svg(figure, f"Log-mel spectrogram of {what}, {secs:.1f} s")


def chromagram(
  values: np.ndarray,
  frame_rate_hz: float,
  what: str,
  width: float = 3.1,
  height: float = 2.0,
) -> str:
  """Pitch classes over time, for the eye beside a player.

  Args:
    values: float `[frames, 12]` in [0, 1], class 0 = C.
    frame_rate_hz: its frames per second.
    what: names the sound to those who cannot see it.
    width: in inches.
    height: in inches.

  Returns:
    SVG text.
  """
  names = ["C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B"]
  secs = len(values) / frame_rate_hz
  with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
    figure, axes = _new(width, height)
    axes.imshow(
      values.T,
      origin="lower",
      aspect="auto",
      interpolation="nearest",
      cmap="magma",
      vmin=0.0,
      vmax=1.0,
      extent=(0.0, secs, -0.5, 11.5),
    )
    axes.set_yticks(range(0, 12, 2), names[::2])
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=secs >= 4))
    axes.set(xlabel="Time (s)", ylabel="Pitch class")
    return _to_svg(figure, f"Chromagram of {what}, {secs:.1f} s")


def codec(table: Mapping[str, Mapping[str, float | None]]) -> str:
  """Log-mel distance and SI-SNR by number of codebooks decoded."""
  with matplotlib.rc_context(_STYLE):
    figure, pair = _new(7.6, 2.7, columns=2)
    for axes, key, label, colour in (
      (pair[0], "log_mel_distance", "Log-mel distance (nats)", FIRST),
      (pair[1], "si_snr_db", "SI-SNR (dB)", SECOND),
    ):
      row = sorted(
        (int(count), np.nan if value is None else value)
        for count, value in table.get(key, {}).items()
      )
      counts = [count for count, _ in row]
      values = [value for _, value in row]
      axes.plot(counts, values, color=colour, marker="o", linewidth=2)
      axes.set_xscale("log", base=2)
      axes.set_xticks(counts, [str(count) for count in counts])
      axes.xaxis.set_minor_locator(ticker.NullLocator())
      axes.grid(False, axis="x")
      axes.margins(y=0.15)
      axes.set(xlabel="Codebooks decoded", ylabel=label)
    return _to_svg(figure, "Codec distance and SI-SNR by codebooks decoded")


def usage(fractions: Sequence[float]) -> str:
  """Share of codebook entries in use, by level."""
  with matplotlib.rc_context(_STYLE):
    figure, axes = _new(7.6, 2.3)
    levels = np.arange(1, len(fractions) + 1)
    percent = 100 * np.asarray(fractions, float)
    axes.bar(levels, percent, width=0.72, color=FIRST)
    axes.set_xticks(levels)
    axes.set_ylim(0, 105)
    axes.grid(False, axis="x")
    axes.set(xlabel="Codebook (RVQ level)", ylabel="Entries used (%)")
    return _to_svg(
      figure,
      "Codebook entries used by level: "
      + ", ".join(f"{value:.0f} %" for value in percent),
    )


def stages(scores: Mapping[str, Mapping[str, float | None]]) -> str:
  """Cross-entropy of each stage beside both baselines, one row per stage."""
  models = (
    ("unigram", "unigram", THIRD, "s"),
    ("bigram", "bigram", SECOND, "D"),
    ("heldout", "stage", FIRST, "o"),
  )
  with matplotlib.rc_context(_STYLE):
    figure, axes = _new(7.6, 0.95 + 0.5 * len(scores))
    names = list(scores)
    for key, label, colour, marker in models:
      values = [scores[name].get(f"{key}_cross_entropy") for name in names]
      values = [np.nan if value is None else value for value in values]
      axes.plot(
        values,
        np.arange(len(names)),
        marker,
        color=colour,
        markersize=9 if key == "heldout" else 7,
        label=label,
        zorder=3,
      )
    for row, name in enumerate(names):
      ends = [scores[name].get(f"{key}_cross_entropy") for key, *_ in models]
      ends = [value for value in ends if _is_number(value)]
      if ends:
        axes.plot([min(ends), max(ends)], [row, row], color=_LINE, zorder=1)
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.margins(x=0.06)
    axes.set(xlabel="Held-out cross-entropy (nats per token); lower is better")
    axes.tick_params(axis="y", labelcolor=_INK)
    figure.legend(loc="outside upper right", ncols=3, fontsize=9)
    return _to_svg(figure, "Cross-entropy of stages, bigrams and unigrams")


def _is_number(value: object) -> bool:
  return isinstance(value, int | float) and bool(np.isfinite(value))


def consistency(mcc: Mapping[str, Mapping[str, float]]) -> str:
  """MCC of matched and shuffled prompts and their difference, 95 % bars."""
  rows = [
    (key, colour)
    for key, colour in (
      ("matched", FIRST),
      ("shuffled", SECOND),
      ("difference", THIRD),
    )
    if all(map(_is_number, (mcc.get(key) or {"": None}).values()))
  ]
  with matplotlib.rc_context(_STYLE):
    figure, axes = _new(7.6, 0.8 + 0.42 * len(rows))
    for row, (key, colour) in enumerate(rows):
      interval = mcc[key]
      axes.plot(
        [interval["low"], interval["high"]],
        [row, row],
        color=colour,
        linewidth=3,
      )
      axes.plot(interval["mean"], row, "o", color=colour, markersize=9)
    axes.axvline(0.0, color=_MUTED, linewidth=1)
    axes.set_yticks(np.arange(len(rows)), [key for key, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.set(xlabel="Cosine of prompt and audio embedding (95 % interval)")
    return _to_svg(
      figure,
      "MuLan consistency: "
      + ", ".join(f"{key} {mcc[key]['mean']:.3f}" for key, _ in rows),
    )
