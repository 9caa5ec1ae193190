# SPDX-License-Identifier: Apache-2.0
"""Figures of the memorization page: numbers in, inline SVG text out."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker

from musiclm_jax.evaluation import report_figures as base

_KINDS = (
  ("approximate", "approximate", base.SECOND, "D", 0.004),
  ("exact", "exact", base.FIRST, "o", -0.004),
)


def _errors(rows: Sequence[Mapping[str, Any] | None]) -> np.ndarray:
  """Mean, and how far down and up the interval reaches, `[3, rows]`."""
  nothing = {"mean": np.nan, "low": np.nan, "high": np.nan}
  found = [row or nothing for row in rows]
  mean = np.array([row["mean"] for row in found])
  low = np.array([row["low"] for row in found])
  high = np.array([row["high"] for row in found])
  return np.stack([mean, np.maximum(mean - low, 0), np.maximum(high - mean, 0)])


def matches(rows: Sequence[Mapping[str, Any]], frame_rate_hz: float) -> str:
  """Share of exact and approximate matches by length of the prompt.

  Args:
    rows: of `memorization.curve`.
    frame_rate_hz: of the semantic tokens.
  """
  with matplotlib.rc_context(base.STYLE):
    figure, axes = base.new_figure(7.6, 3.2)
    tokens = np.array([row["prompt_tokens"] for row in rows], float)
    span = max(tokens.max(), 1.0)
    for name, label, colour, marker, shift in _KINDS:
      mean, down, up = 100 * _errors([row[name] for row in rows])
      axes.errorbar(
        tokens + shift * span,
        mean,
        (down, up),
        color=colour,
        marker=marker,
        linewidth=2,
        elinewidth=1.2,
        capsize=3,
        label=f"{label} matches",
      )
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
    axes.grid(False, axis="x")
    axes.set(
      xlabel=f"Prompt (semantic tokens; {frame_rate_hz:g} are a second)",
      ylabel="Examples (%)",
    )
    axes.legend(loc="best", fontsize=9)
    ends = ", ".join(
      f"{label} {100 * rows[-1][name]['mean']:.2f} %"
      for name, label, *_ in _KINDS
    )
    return base.to_svg(
      figure, f"Matches by prompt length; with the longest: {ends}"
    )


def costs(
  own: np.ndarray, permuted: Sequence[float], tau: float, unit: float
) -> str:
  """What continuations cost to be moved to their own target and to others.

  Args:
    own: float `[examples, lengths]`, in centroid distances.
    permuted: of permuted pairs.
    tau: threshold of approximate matches.
    unit: mean distance of two centroids.
  """
  own = np.asarray(own).reshape(-1) / unit
  permuted = np.asarray(permuted, float) / unit
  most = max(own.max(initial=0.0), permuted.max(initial=0.0), tau / unit, 1e-3)
  edges = np.linspace(0.0, most, 61)
  with matplotlib.rc_context(base.STYLE):
    figure, axes = base.new_figure(7.6, 2.6)
    for values, label, colour in (
      (permuted, "target of another work", base.THIRD),
      (own, "own target", base.FIRST),
    ):
      if len(values):
        weights = np.full(len(values), 100 / len(values))
        axes.hist(
          values,
          edges,
          weights=weights,
          color=colour,
          alpha=0.65,
          label=label,
        )
    axes.axvline(tau / unit, color=base.SECOND, linewidth=2, label="threshold")
    axes.grid(False, axis="x")
    axes.set(xlabel="Cost (mean centroid distances)", ylabel="Pairs (%)")
    axes.legend(loc="best", fontsize=9)
    return base.to_svg(
      figure,
      f"Transport costs: own targets median {np.median(own):.3f}, threshold "
      f"{tau / unit:.3f} mean centroid distances",
    )


def entropies(rows: Sequence[Mapping[str, Any]]) -> str:
  """Entropy of continuations and of matches, by length of the prompt."""
  with matplotlib.rc_context(base.STYLE):
    figure, axes = base.new_figure(7.6, 2.6)
    tokens = [row["prompt_tokens"] for row in rows]
    for name, label, colour, marker in (
      ("entropy_bits", "all continuations", base.FIRST, "o"),
      ("match_entropy_bits", "matches", base.SECOND, "D"),
    ):
      mean, down, up = _errors([row[name] for row in rows])
      if np.isfinite(mean).any():
        axes.errorbar(
          tokens,
          mean,
          (down, up),
          color=colour,
          marker=marker,
          linewidth=2,
          elinewidth=1.2,
          capsize=3,
          label=label,
        )
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
    axes.grid(False, axis="x")
    axes.set(xlabel="Prompt (semantic tokens)", ylabel="Entropy (bits)")
    axes.legend(loc="best", fontsize=9)
    return base.to_svg(figure, "Entropy of continuations by prompt length")


def token_rows(
  generated: Sequence[int], target: Sequence[int], num_codes: int, what: str
) -> str:
  """Tokens of a continuation over those of its target, one colour for each.

  Args:
    generated: tokens.
    target: tokens.
    num_codes: of the codebook.
    what: names the example to those who cannot see it.
  """
  # Neighbouring codes have nothing in common: spread their colours.
  codes = np.array([generated, target], np.int64)
  colours = codes * 7919 % max(num_codes, 1)
  differ = (codes[0] != codes[1]).mean()
  with matplotlib.rc_context(base.STYLE | {"axes.grid": False}):
    figure, axes = base.new_figure(7.6, 0.95)
    axes.imshow(
      colours,
      aspect="auto",
      interpolation="nearest",
      cmap="twilight",
      vmin=0,
      vmax=max(num_codes - 1, 1),
    )
    axes.set_yticks([0, 1], ["made", "training"])
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    return base.to_svg(
      figure, f"Tokens of {what}; {100 * differ:.0f} % of them differ"
    )
