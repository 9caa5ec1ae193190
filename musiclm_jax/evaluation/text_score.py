# SPDX-License-Identifier: Apache-2.0
"""How well audio fits its text: embeddings of two towers in, cosines out.

CLAP score with CLAP's embeddings, MCC with MuLan's (there with 10 s windows);
any pair of towers with one space will do. In [-1, 1], higher is better, no
absolute scale: numbers of two embedders do not compare. So the score of the
same audio with OTHER texts stands beside it (`prompt_metrics.py`).
"""

from collections.abc import Sequence

import numpy as np

# Mean of the cosines of windows: MCC of 30 s in MusicRL (arXiv 2402.04229).
MEAN_OF_COSINES = "mean of the windows' cosines"
# Cosine of the mean window at unit length: MuLan's embedding of a clip.
COSINE_OF_MEAN = "cosine of the mean of windows"
POOLINGS = (MEAN_OF_COSINES, COSINE_OF_MEAN)


def text_scores(
  text_embeddings: np.ndarray,
  audio_embeddings: np.ndarray | Sequence[np.ndarray],
  pooling: str = MEAN_OF_COSINES,
) -> np.ndarray:
  """Cosine of each clip with its text.

  Args:
    text_embeddings: float `[clips, dim]`.
    audio_embeddings: float `[clips, dim]`, `[clips, windows, dim]`, or for
      each clip `[windows, dim]`, whose numbers of windows may differ.
    pooling: of windows, one of `POOLINGS`.

  Returns:
    float64 `[clips]` in [-1, 1]; an embedding of zeros scores 0.

  Raises:
    ValueError: if numbers of clips or dimensions differ, a clip has no window
      or NaN, or `pooling` is none of `POOLINGS`.
  """
  text = np.asarray(text_embeddings, np.float64)
  pooled = pooled_audio(audio_embeddings, pooling)
  if text.shape != pooled.shape:
    raise ValueError(
      f"text_embeddings of shape {text.shape}: expected {pooled.shape}, as "
      "the audio"
    )
  if not np.isfinite(text).all():
    raise ValueError("text_embeddings: expected finite numbers")
  return np.einsum("id,id->i", unit(text), pooled)


def pooled_audio(
  audio_embeddings: np.ndarray | Sequence[np.ndarray],
  pooling: str = MEAN_OF_COSINES,
) -> np.ndarray:
  """One vector per clip whose product with a unit text vector is its score.

  Args:
    audio_embeddings: as in `text_scores`.
    pooling: as in `text_scores`.

  Returns:
    float64 `[clips, dim]`; of unit length with `COSINE_OF_MEAN`, at most that
    with `MEAN_OF_COSINES`.

  Raises:
    ValueError: as `text_scores`.
  """
  if pooling not in POOLINGS:
    raise ValueError(f"pooling={pooling!r}: expected one of {POOLINGS}")
  rows = []
  for index, clip in enumerate(audio_embeddings):
    clip = np.atleast_2d(np.asarray(clip, np.float64))
    if clip.ndim != 2 or not clip.size or not np.isfinite(clip).all():
      raise ValueError(
        f"audio_embeddings of clip {index} of shape {clip.shape}: expected "
        "finite [windows >= 1, dim]"
      )
    mean = unit(clip).mean(0)
    rows.append(unit(mean) if pooling == COSINE_OF_MEAN else mean)
  if not rows or len({len(row) for row in rows}) > 1:
    raise ValueError(
      f"audio_embeddings of {len(rows)} clips of "
      f"{sorted({len(row) for row in rows})} dimensions: expected at least 1 "
      "clip and one dimension"
    )
  return np.stack(rows)


def unit(vectors: np.ndarray) -> np.ndarray:
  """Vectors at unit length along the last axis; zeros stay zeros."""
  norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / np.maximum(norm, 1e-12)
