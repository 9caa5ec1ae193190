# SPDX-License-Identifier: Apache-2.0
"""Melody adherence: chromagrams of melodies and of results in, scores out.

The chroma cosine of a result with the melody it was given has no absolute
scale: two pieces in one key are alike already. So it stands beside the same
result against OTHER melodies, and beside what the same prompt and seed give
without a melody; the paired differences are what counts, at an equal text
score.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.evaluation import bootstrap

_RATE_HZ = 22050
_HOP_LENGTH = 2048
_NUM_OCTAVES = 6
_SILENCE_DB = 60.0  # A frame so far below the loudest one has no pitch.
FRAME_RATE_HZ = _RATE_HZ / _HOP_LENGTH


def chromagram(waveform: np.ndarray, sample_rate_hz: float) -> np.ndarray:
  """Energy by pitch class and time, by librosa's constant-Q transform.

  Args:
    waveform: float32 `[samples]`.
    sample_rate_hz: its rate.

  Returns:
    float32 `[frames, 12]` in [0, 1] at `FRAME_RATE_HZ`, class 0 = C, the
    largest class of a frame at 1; 0 in frames that are silent.
  """
  import librosa  # here: it loads numba

  waveform = files.resample(waveform, sample_rate_hz, _RATE_HZ)
  chroma = librosa.feature.chroma_cqt(
    y=waveform,
    sr=_RATE_HZ,
    hop_length=_HOP_LENGTH,
    fmin=librosa.note_to_hz("C2"),
    n_octaves=_NUM_OCTAVES,
    tuning=0.0,
  ).T
  level = librosa.feature.rms(
    y=waveform, frame_length=2 * _HOP_LENGTH, hop_length=_HOP_LENGTH
  )[0]
  count = min(len(chroma), len(level))
  chroma, level = chroma[:count], level[:count]
  audible = level > max(level.max() * 10 ** (-_SILENCE_DB / 20), 1e-6)
  return np.where(audible[:, None], chroma, 0.0).astype(np.float32)


def similarity(first: np.ndarray, second: np.ndarray) -> float:
  """Mean cosine of two chromagrams, frame by frame from their start.

  Args:
    first: float `[frames, 12]`.
    second: float `[frames, 12]`; of the longer one the end is left out.

  Returns:
    In [0, 1], over frames in which neither is silent; 0 where there are none.
  """
  count = min(len(first), len(second))
  first, second = (
    np.asarray(one[:count], np.float64) for one in (first, second)
  )
  norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
  heard = norms > 1e-9
  if not heard.any():
    return 0.0
  return float(((first * second).sum(-1)[heard] / norms[heard]).mean())


def transposed_similarity(first: np.ndarray, second: np.ndarray) -> float:
  """The best `similarity` over the 12 transpositions of `second`."""
  return max(
    similarity(first, np.roll(second, shift, axis=-1)) for shift in range(12)
  )


def _groups(values: np.ndarray, groups: Sequence[int]) -> np.ndarray:
  """Means by group: what shares a melody or a prompt is no two samples."""
  groups = np.asarray(groups)
  return np.array([values[groups == one].mean() for one in np.unique(groups)])


def given_and_shuffled(
  scores: np.ndarray, melody_of: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Scores of own melodies beside those of pairs that do not belong together.

  Some melodies are near to all music and some music is near to all melodies.
  Both say nothing of who was given what, and most of the spread comes of them:
  so an item's difference is `own - others`, less the same of its melody:
  what the results of other melodies score with it, less the mean of all pairs.
  The mean is that of `own - others` where all melodies have as many items.

  Args:
    scores: float `[items, melodies]`.
    melody_of: index of the melody of each item.

  Returns:
    float64 `[items]` each: `own`, `others` (the mean over other melodies) and
    the difference.
  """
  scores = np.asarray(scores, np.float64)
  index = np.asarray(melody_of)
  # Only melodies that some item was given have results of their own.
  used = np.isin(np.arange(scores.shape[1]), index)
  apart = (index[:, None] != np.arange(scores.shape[1])) & used
  own = scores[np.arange(len(index)), index]
  others = np.where(apart, scores, 0).sum(1) / apart.sum(1)
  of_melody = np.where(apart, scores, 0).sum(0) / np.maximum(apart.sum(0), 1)
  return own, others, own - others - of_melody[index] + scores[apart].mean()


def melody_scores(
  melodies: Sequence[np.ndarray],
  results: Sequence[np.ndarray],
  plain_results: Sequence[np.ndarray],
  melody_of: Sequence[int],
  text_scores: np.ndarray,
  plain_text_scores: np.ndarray,
  prompt_of: Sequence[int],
  num_resamples: int = 2000,
  seed: int = 0,
) -> dict[str, Any]:
  """How far results take the melody they were given, and keep to the text.

  Args:
    melodies: chromagrams `[frames, 12]` of at least 2 melodies.
    results: of what was made, one per item.
    plain_results: of what prompt and seed of each item give without a melody.
    melody_of: index of the melody of each item.
    text_scores: float `[items]`, cosine of prompt and result.
    plain_text_scores: float `[items]`, of the plain results.
    prompt_of: a number for each item's prompt, equal where prompts are.
    num_resamples: bootstrap draws, over melodies or over prompts.
    seed: of the draws.

  Returns:
    'chroma' with 'given', 'shuffled' (mean over the other melodies), 'plain'
    (the plain result with the given melody), 'given_minus_shuffled' and
    'given_minus_plain', and 'transposed_given_minus_shuffled' (best of 12
    transpositions on both sides); 'text' with 'melody', 'plain' and
    'melody_minus_plain': each {'mean', 'low', 'high'} at 95 %. 'verdicts' by
    name bool: 'takes_melody' (given - shuffled above 0 with its interval) and
    'keeps_text' (not lower by more than its interval). 'items' has the scores
    of each item.

  Raises:
    ValueError: if lengths differ or there are fewer than 2 melodies.
  """
  counts = {
    len(one)
    for one in (
      results,
      plain_results,
      melody_of,
      text_scores,
      plain_text_scores,
      prompt_of,
    )
  }
  if len(counts) != 1 or len(set(melody_of)) < 2:
    raise ValueError(
      f"lists of {sorted(counts)} items with {len(set(melody_of))} melodies: "
      "expected equal lengths and at least 2 melodies in use"
    )
  rows, best_rows, plain = [], [], []
  for result, plain_result, index in zip(results, plain_results, melody_of):
    rows.append([similarity(one, result) for one in melodies])
    best_rows.append([transposed_similarity(one, result) for one in melodies])
    plain.append(similarity(melodies[index], plain_result))
  plain = np.array(plain)
  own, others, difference = given_and_shuffled(np.array(rows), melody_of)
  *_, transposed = given_and_shuffled(np.array(best_rows), melody_of)
  text_scores = np.asarray(text_scores, np.float64)
  plain_text_scores = np.asarray(plain_text_scores, np.float64)

  def interval(values, groups):
    return bootstrap.mean_interval(
      _groups(values, groups), num_resamples, seed=seed
    ).to_dict()

  chroma = {
    "given": interval(own, melody_of),
    "shuffled": interval(others, melody_of),
    "plain": interval(plain, melody_of),
    "given_minus_shuffled": interval(difference, melody_of),
    "given_minus_plain": interval(own - plain, melody_of),
    "transposed_given_minus_shuffled": interval(transposed, melody_of),
  }
  text = {
    "melody": interval(text_scores, prompt_of),
    "plain": interval(plain_text_scores, prompt_of),
    "melody_minus_plain": interval(text_scores - plain_text_scores, prompt_of),
  }
  return {
    "num_items": len(own),
    "num_melodies": len(set(melody_of)),
    "num_prompts": len(set(prompt_of)),
    "chroma": chroma,
    "text": text,
    "verdicts": {
      "takes_melody": chroma["given_minus_shuffled"]["low"] > 0,
      "keeps_text": text["melody_minus_plain"]["high"] >= 0,
    },
    "items": [
      {
        "melody": int(melody_of[index]),
        "prompt": int(prompt_of[index]),
        "chroma_given": float(own[index]),
        "chroma_shuffled": float(others[index]),
        "chroma_plain": float(plain[index]),
        "text_melody": float(text_scores[index]),
        "text_plain": float(plain_text_scores[index]),
      }
      for index in range(len(own))
    ],
  }
