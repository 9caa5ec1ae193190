# SPDX-License-Identifier: Apache-2.0
"""Held-out cross-entropy of a stage, beside counting on the same sequences.

Codes of held-out crops and of the training corpus flow in; nats per token of
the stage, the unigram and the bigram flow out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from musiclm_jax.core import stages
from musiclm_jax.evaluation import ngram


class ScoredStage(Protocol):
  """A frozen stage, as this metric sees it."""

  def score(self, codes: Mapping[str, np.ndarray]) -> Any:
    """Codes by stream, int32 `[batch, frames, codebooks]`, to nats.

    Returns:
      -log p of each target token given all before, float32
      `[batch, frames, levels]` of the target segment.
    """


def score_in_batches(
  stage: ScoredStage, codes: Mapping[str, np.ndarray], batch_size: int = 8
) -> np.ndarray:
  """Nats of all crops, float32 `[crops, frames, levels]`.

  The last batch is filled up by repeating a crop, so that a jitted stage
  compiles once.
  """
  num_crops = _num_crops(codes)
  size = min(batch_size, num_crops)
  parts = []
  for start in range(0, num_crops, size):
    rows = np.minimum(np.arange(start, start + size), num_crops - 1)
    batch = {name: np.asarray(array)[rows] for name, array in codes.items()}
    parts.append(np.asarray(stage.score(batch))[: num_crops - start])
  return np.concatenate(parts)


def stage_scores(
  stage: ScoredStage,
  heldout: Mapping[str, np.ndarray],
  train_target: ngram.Codes,
  target: stages.Segment,
  codebook_size: int,
  batch_size: int = 8,
) -> dict[str, Any]:
  """Scores a stage and both baselines on the same held-out target tokens.

  The baselines' smoothing is chosen on the held-out codes themselves, which
  favours the baselines: a stage that wins, wins in spite of it.

  Args:
    stage: the frozen stage.
    heldout: codes by stream, int32 `[crops, frames, codebooks]` with all
      codebooks of each stream, of the length the stage was trained on;
      negative target codes are padding.
    train_target: codes of the target stream of the training corpus, int32
      `[clips][frames, codebooks]` with all its codebooks.
    target: the stage's target segment (`StageSpec.target`).
    codebook_size: of the target stream.
    batch_size: crops per call.

  Returns:
    An entry of `stages` in `summary.json`: 'heldout_cross_entropy',
    'unigram_cross_entropy', 'bigram_cross_entropy' (nats per token),
    'heldout_per_level', 'unigram_per_level', 'bigram_per_level',
    'num_tokens', 'num_train_tokens', 'bigram_smoothing'.

  Raises:
    ValueError: if the stage returns another shape or a number not finite.
  """
  select = slice(target.first_level, target.end_level)
  codes = np.asarray(heldout[target.stream])[..., select]
  train = [np.asarray(clip)[:, select] for clip in train_target]
  nats = score_in_batches(stage, heldout, batch_size).astype(np.float64)
  if nats.shape != codes.shape:
    raise ValueError(
      f"the stage scored shape {nats.shape}: expected {codes.shape}, as the "
      f"target codes of stream {target.stream!r}"
    )
  real = codes >= 0
  if not np.isfinite(nats[real]).all():
    raise ValueError("the stage scored NaN or Inf on a real token")
  unigram = ngram.fit_unigram(train, codebook_size, codes)
  bigram = ngram.fit_bigram(train, codebook_size, codes)
  return {
    "heldout_cross_entropy": float(nats[real].mean()),
    "unigram_cross_entropy": ngram.cross_entropy(unigram, codes),
    "bigram_cross_entropy": ngram.cross_entropy(bigram, codes),
    "heldout_per_level": [
      float(nats[..., level][real[..., level]].mean())
      for level in range(codes.shape[-1])
    ],
    "unigram_per_level": ngram.cross_entropy_per_level(unigram, codes),
    "bigram_per_level": ngram.cross_entropy_per_level(bigram, codes),
    "num_tokens": int(real.sum()),
    "num_train_tokens": int(sum((clip >= 0).sum() for clip in train)),
    "bigram_smoothing": bigram.describe(),
  }


def targets_as_modelled(
  layout: stages.StageLayout,
  heldout: Mapping[str, np.ndarray],
  train_target: Sequence[np.ndarray],
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
  """Target codes on which a stage is scored, and those that are counted.

  Args:
    layout: of a crop of the stage.
    heldout: as in `stage_scores`.
    train_target: as in `stage_scores`.

  Returns:
    Both as they are. Of a stage without repeats both without repeats and crop
    by crop, as it is trained, with the end of each crop as a code of its own.
  """
  heldout, train = dict(heldout), list(train_target)
  if layout.end_code is None:
    return heldout, train
  name, frames = layout.target_stream.name, layout.num_target_frames
  heldout[name] = layout.target_codes(heldout[name])
  crops = []
  for clip in train:
    for start in range(0, len(clip), frames):
      piece = clip[start : start + frames]
      codes = layout.target_codes(piece)
      # The rest of a clip does not end where a crop does.
      is_kept = (codes != layout.end_code) | (len(piece) == frames)
      crops.append(np.where(is_kept, codes, -1))
  return heldout, crops


def _num_crops(codes: Mapping[str, np.ndarray]) -> int:
  sizes = {name: len(array) for name, array in codes.items()}
  if len(set(sizes.values())) != 1 or not next(iter(sizes.values())):
    raise ValueError(
      f"crops by stream {sizes}: expected equally many, at least 1"
    )
  return next(iter(sizes.values()))
