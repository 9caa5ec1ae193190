# SPDX-License-Identifier: Apache-2.0
"""All long-form figures of pieces: what was heard of each in, means out.

`long_form.py` and `repetition.py` say what the figures are. Pieces that were
made and real ones of the same length go the same way, to be read side by side.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.evaluation import bootstrap, long_form, repetition


@dataclasses.dataclass(frozen=True)
class Heard:
  """One piece.

  Attributes:
    waveform: float32 `[samples]` in [-1, 1].
    sample_rate_hz: its rate.
    windows: float `[windows, dim]`, embeddings along the piece.
    window_secs: length of a window.
    hop_secs: between the begins of two.
    codes: by stream, int `[frames]` and their frames per second.
  """

  waveform: np.ndarray
  sample_rate_hz: float
  windows: np.ndarray
  window_secs: float
  hop_secs: float
  codes: Mapping[str, tuple[np.ndarray, float]]


@dataclasses.dataclass(frozen=True)
class Told:
  """The story a piece was to follow.

  Attributes:
    embeddings: float `[prompts, dim]`, in the space of the windows.
    starts_secs: where each prompt sets in, the first at 0.
    ends_secs: until where the transition into each lasts.
  """

  embeddings: np.ndarray
  starts_secs: Sequence[float]
  ends_secs: Sequence[float]


def of_piece(
  heard: Heard, told: Told | None = None
) -> tuple[dict[str, float], dict[str, str]]:
  """The figures of one piece.

  Args:
    heard: the piece.
    told: its story; None for a piece of one prompt, or a real one.

  Returns:
    Finite figures by name; and why others could not be computed, a sentence
    by the name of their group.
  """
  groups: dict[str, Callable[[], Mapping[str, float]]] = {}
  if told is not None:
    groups["story"] = lambda: _story(heard, told)
  groups["drift"] = lambda: dataclasses.asdict(
    long_form.drift(heard.windows, heard.window_secs, heard.hop_secs)
  )
  groups["level"] = lambda: {
    "drift_db_per_minute": long_form.level_drift_db(
      heard.waveform, heard.sample_rate_hz
    )
  }
  groups["embedding"] = lambda: {
    "repetition": repetition.embedding_repetition(
      heard.windows, heard.window_secs, heard.hop_secs
    )
  }
  for name, (codes, rate_hz) in heard.codes.items():
    groups[name] = lambda codes=codes, rate_hz=rate_hz: _codes(codes, rate_hz)
  figures, missing = {}, {}
  for group, compute in groups.items():
    try:
      found = compute()
    except ValueError as error:
      missing[group] = str(error)
      continue
    figures |= {
      f"{group}_{name}": float(value)
      for name, value in found.items()
      if math.isfinite(value)
    }
  return figures, missing


def _story(heard: Heard, told: Told) -> dict[str, float]:
  active = long_form.active_prompts(
    len(heard.windows),
    heard.window_secs,
    heard.hop_secs,
    told.starts_secs,
    told.ends_secs,
  )
  if (active < 0).all():
    raise ValueError(
      f"no window of {heard.window_secs:g} s lies inside one prompt"
    )
  found = long_form.story_score(heard.windows, told.embeddings, active)
  score = {"score": found.active}
  if len(told.embeddings) > 1:
    score |= {
      "score_of_other_prompts": found.others,
      "margin": found.margin,
      "share_won": found.share_won,
    }
  return score


def _codes(codes: np.ndarray, rate_hz: float) -> dict[str, float]:
  found = repetition.token_repetition(codes, rate_hz)
  return {
    "repeated_share": found.repeated_share,
    "longest_repeat_secs": found.longest_secs,
    # Its mean is the share of pieces that go round at their end.
    "loops_at_end": float(math.isfinite(found.loop_period_secs)),
  }


def over_pieces(
  rows: Sequence[Mapping[str, float]], seed: int = 0
) -> dict[str, dict[str, Any]]:
  """Means over pieces.

  Args:
    rows: of `of_piece`.
    seed: of the bootstrap.

  Returns:
    By name of the figure 'mean', 'low' and 'high' (95 %, over pieces; NaN for
    fewer than two) and 'num_items', the pieces that have it.
  """
  found = {}
  for name in dict.fromkeys(name for row in rows for name in row):
    values = np.array([row[name] for row in rows if name in row])
    interval = bootstrap.mean_interval(values, seed=seed)
    if len(values) < 2:
      # Draws of one piece are all alike, which says nothing of others.
      interval = interval._replace(low=math.nan, high=math.nan)
    found[name] = {**interval.to_dict(), "num_items": len(values)}
  return found


def table(columns: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
  """Figures of `over_pieces` as Markdown, a column for each set of pieces."""
  names = dict.fromkeys(name for column in columns.values() for name in column)
  lines = [
    "| long form | " + " | ".join(columns) + " |",
    "|---" * (len(columns) + 1) + "|",
  ]
  for name in names:
    cells = [_cell(column.get(name)) for column in columns.values()]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def _cell(figure: Mapping[str, Any] | None) -> str:
  if figure is None:
    return "-"
  text = f"{figure['mean']:.3f}"
  if math.isfinite(figure["low"]):
    text += f" ({figure['low']:.3f} to {figure['high']:.3f})"
  return f"{text}, n = {figure['num_items']}"
