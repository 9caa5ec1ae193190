# SPDX-License-Identifier: Apache-2.0
"""How much a piece repeats itself: codes or embeddings in, shares out.

A model that is stuck plays one figure for ever; one that forgets never comes
back to anything. Real music lies between, so the figures are read beside those
of real pieces of the same length: neither more nor less is better.
"""

import dataclasses
from typing import Any

import numpy as np

from musiclm_jax.evaluation import text_score


@dataclasses.dataclass(frozen=True)
class TokenRepetition:
  """What a row of codes repeats of itself.

  Attributes:
    repeated_share: n-grams that occurred before in the piece, of all after the
      first; 0 if nothing comes twice.
    longest_secs: length of the longest passage that comes again later,
      without overlap.
    loop_period_secs: the shortest period in which the end of the piece (its
      last `loop_secs`) goes round exactly; NaN if it does not.
  """

  repeated_share: float
  longest_secs: float
  loop_period_secs: float

  def to_dict(self) -> dict[str, Any]:
    """JSON-compatible; NaN becomes null."""
    content = dataclasses.asdict(self)
    if np.isnan(self.loop_period_secs):
      content["loop_period_secs"] = None
    return content


def token_repetition(
  codes: np.ndarray,
  frame_rate_hz: float,
  ngram_secs: float = 1.0,
  loop_secs: float = 4.0,
) -> TokenRepetition:
  """Exact repetition of codes.

  Args:
    codes: int `[frames]`, or `[frames, codebooks]` where a frame repeats if
      all of its codes do.
    frame_rate_hz: of the codes.
    ngram_secs: length of what counts as a repeated passage.
    loop_secs: length of the end that is looked at for a loop.

  Raises:
    ValueError: if the shape is another, or the piece is not longer than an
      n-gram.
  """
  codes = np.asarray(codes)
  if codes.ndim not in (1, 2) or not np.issubdtype(codes.dtype, np.integer):
    raise ValueError(
      f"codes {codes.dtype} of shape {codes.shape}: expected integers "
      "[frames] or [frames, codebooks]"
    )
  size = max(1, round(ngram_secs * frame_rate_hz))
  if len(codes) <= size:
    raise ValueError(
      f"{len(codes)} frames: expected more than {size} ({ngram_secs} s)"
    )
  if codes.ndim == 2:
    _, codes = np.unique(codes, axis=0, return_inverse=True)
  codes = codes.reshape(-1)
  grams = np.lib.stride_tricks.sliding_window_view(codes, size)
  _, first = np.unique(grams, axis=0, return_index=True)
  repeated = 1.0 - (len(first) - 1) / (len(grams) - 1)
  end = codes[-max(2, round(loop_secs * frame_rate_hz)) :]
  period = float("nan")
  for shift in range(1, len(end) // 2 + 1):
    if (end[shift:] == end[:-shift]).all():
      period = shift / frame_rate_hz
      break
  return TokenRepetition(
    float(repeated), _longest_repeat(codes) / frame_rate_hz, period
  )


def _longest_repeat(codes: np.ndarray) -> int:
  """Length of the longest passage that comes twice without overlap.

  If one of a length does, so does a shorter one: the length is searched by
  halves.
  """
  low, high = 0, len(codes) // 2
  while low < high:
    size = (low + high + 1) // 2
    grams = np.lib.stride_tricks.sliding_window_view(codes, size)
    _, place = np.unique(grams, axis=0, return_inverse=True)
    place = place.reshape(-1)
    at = np.arange(len(place))
    first = np.full(place.max() + 1, len(place))
    last = np.zeros(place.max() + 1, int)
    np.minimum.at(first, place, at)
    np.maximum.at(last, place, at)
    if (last - first >= size).any():
      low = size
    else:
      high = size - 1
  return low


def embedding_repetition(
  windows: np.ndarray, window_secs: float, hop_secs: float
) -> float:
  """Mean over windows of the largest cosine with a window they do not overlap.

  Args:
    windows: float `[windows, dim]`, embeddings along a piece.
    window_secs: length of a window.
    hop_secs: between the begins of two.

  Returns:
    In [-1, 1]; 1 if each window sounds exactly like another one.

  Raises:
    ValueError: if no two windows lie apart.
  """
  windows = np.asarray(windows, np.float64)
  if windows.ndim != 2 or not (window_secs > 0 and hop_secs > 0):
    raise ValueError(
      f"windows of shape {windows.shape}, window_secs={window_secs}, "
      f"hop_secs={hop_secs}: expected [windows, dim] and secs > 0"
    )
  places = np.arange(len(windows))
  apart = np.abs(places[:, None] - places) * hop_secs >= window_secs - 1e-9
  has_other = apart.any(1)
  if not has_other.any():
    raise ValueError(
      f"{len(windows)} windows of {window_secs} s each {hop_secs} s: expected "
      "two that do not overlap"
    )
  unit = text_score.unit(windows)
  cosines = np.where(apart, unit @ unit.T, -np.inf)
  return float(cosines.max(1)[has_other].mean())
