# SPDX-License-Identifier: Apache-2.0
"""MuLan cycle consistency (MCC, MusicLM sec. 4): embeddings in, means out.

MCC is the cosine of a prompt's text embedding with the audio embedding of what
was generated from it. It has no absolute scale, so it is reported beside the
same audio against OTHER prompts; the paired difference is what counts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from musiclm_jax.evaluation import bootstrap


def derangement(texts: Sequence[str], seed: int = 0) -> np.ndarray:
  """A permutation that gives every item another item's text.

  Items of equal text are laid side by side in random order and the row is
  turned by the size of the largest group, so no item meets its own text.

  Args:
    texts: by item; may repeat.
    seed: of the order.

  Returns:
    int64 `[items]`: item i gets the text of item `result[i]`.

  Raises:
    ValueError: if more than half of the items share a text.
  """
  _, group, counts = np.unique(
    list(texts), return_inverse=True, return_counts=True
  )
  if 2 * counts.max() > len(group):
    raise ValueError(
      f"{counts.max()} of {len(group)} items share one text: expected at most "
      "half, so that every item can get another text"
    )
  generator = np.random.default_rng(seed)
  group = generator.permutation(len(counts))[group]
  order = np.lexsort((generator.random(len(group)), group))
  # Any turn from the largest group's size to its complement is valid.
  turn = generator.integers(counts.max(), len(group) - counts.max() + 1)
  other = np.empty(len(group), np.int64)
  other[order] = np.roll(order, turn)
  return other


def cosines(
  text_embeddings: np.ndarray, audio_embeddings: np.ndarray
) -> np.ndarray:
  """Cosine per pair, mean over audio crops where there are several.

  Args:
    text_embeddings: float `[items, embed]`.
    audio_embeddings: float `[items, embed]` or `[items, crops, embed]` (30 s
      are scored as three crops of 10 s).

  Returns:
    float64 `[items]` in [-1, 1].
  """
  text = _unit(text_embeddings)
  audio = _unit(audio_embeddings)
  if audio.ndim == 2:
    audio = audio[:, None]
  return np.einsum("id,icd->ic", text, audio).mean(-1)


def mulan_consistency(
  text_embeddings: np.ndarray,
  audio_embeddings: np.ndarray,
  texts: Sequence[str] | None = None,
  num_shuffles: int = 16,
  num_resamples: int = 2000,
  seed: int = 0,
) -> dict[str, Any]:
  """MCC of matched prompts, of shuffled prompts, and the difference.

  Args:
    text_embeddings: float `[items, embed]`, of the prompts.
    audio_embeddings: float `[items, embed]` or `[items, crops, embed]`, of
      the generated audio.
    texts: prompts, where some repeat: a shuffled prompt differs in text.
    num_shuffles: derangements; an item's shuffled score is the mean over
      them, which takes out the luck of one draw.
    num_resamples: bootstrap draws over items.
    seed: of derangements and draws.

  Returns:
    The `mcc` entry of `summary.json`: 'matched', 'shuffled' and 'difference'
    (matched - shuffled, paired), each {'mean', 'low', 'high'} at 95 %, and
    'num_items'.

  Raises:
    ValueError: if the lengths differ or the prompts cannot be deranged.
  """
  num_items = len(text_embeddings)
  if len(audio_embeddings) != num_items or num_items < 2:
    raise ValueError(
      f"{num_items} text and {len(audio_embeddings)} audio embeddings: "
      "expected equally many, at least 2"
    )
  text_embeddings = np.asarray(text_embeddings)
  return matched_and_shuffled(
    lambda order: cosines(text_embeddings[order], audio_embeddings),
    list(map(str, range(num_items) if texts is None else texts)),
    num_shuffles,
    num_resamples,
    seed,
  )


def matched_and_shuffled(
  score: Callable[[np.ndarray], np.ndarray],
  texts: Sequence[str],
  num_shuffles: int = 16,
  num_resamples: int = 2000,
  seed: int = 0,
) -> dict[str, Any]:
  """Scores of items with their own and with other texts.

  Args:
    score: from the item whose text each item gets, int64 `[items]`, to
      scores, float `[items]`.
    texts: of the items.
    num_shuffles: as in `mulan_consistency`.
    num_resamples: as in `mulan_consistency`.
    seed: as in `mulan_consistency`.

  Returns:
    As `mulan_consistency`.

  Raises:
    ValueError: if the texts cannot be deranged.
  """
  num_items = len(texts)
  matched = score(np.arange(num_items))
  shuffled = np.mean(
    [score(derangement(texts, seed + index)) for index in range(num_shuffles)],
    axis=0,
  )
  interval = {"num_resamples": num_resamples, "seed": seed}
  return {
    "matched": bootstrap.mean_interval(matched, **interval).to_dict(),
    "shuffled": bootstrap.mean_interval(shuffled, **interval).to_dict(),
    "difference": bootstrap.paired_difference(
      matched, shuffled, **interval
    ).to_dict(),
    "num_items": num_items,
  }


def _unit(vectors: np.ndarray) -> np.ndarray:
  vectors = np.asarray(vectors, np.float64)
  norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / np.maximum(norm, 1e-12)
