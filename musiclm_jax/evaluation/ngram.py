# SPDX-License-Identifier: Apache-2.0
"""Unigram and bigram baselines: training codes in, nats per token out.

What a stage's cross-entropy is judged against: a language model that has
learnt anything must beat counting. Each level has its own model. The bigram's
context is the token before in the flattened, time-major target sequence: the
level below in the same frame or, at the first level, the last level of the
frame before; the first token of a clip has a context of its own. Smoothing
kind and weight are chosen per level on validation codes, so that the baseline
is as strong as counting gets.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Codes = np.ndarray | Sequence[np.ndarray]

_ADDITIVE = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
# Weight grids by smoothing kind; the best pair on validation codes is kept.
_BIGRAM_GRID = {
  "jelinek_mercer": tuple(np.linspace(0.05, 0.95, 19)),
  "dirichlet": (0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
  "witten_bell": (0.1, 0.2, 0.4, 0.7, 1, 1.5, 2, 3, 5, 8, 13, 20),
  "absolute_discount": tuple(np.linspace(0.05, 1.0, 20)),
}
# Share of the training clips that chooses weights if no validation is given.
_HELD_OUT_SHARE = 0.1


class _Tokens(NamedTuple):
  """Real tokens of one level and what stands before each, int64 `[tokens]`."""

  code: np.ndarray
  context: np.ndarray


@dataclasses.dataclass(frozen=True)
class LevelModel:
  """Counts and smoothing of one level.

  Attributes:
    unigram: smoothed probabilities, float64 `[codebook_size]`.
    additive: pseudo-count per code inside `unigram`.
    context_totals: tokens seen after each context (`codebook_size` codes,
      then begin), int64 `[codebook_size + 1]`.
    context_types: different codes seen after each context, same shape.
    pair_keys: sorted `context * codebook_size + code` of the pairs seen.
    pair_counts: how often each was seen, int64.
    smoothing: how pair counts and `unigram` are interpolated; 'unigram'
      ignores the context.
    weight: parameter of the smoothing.
  """

  unigram: np.ndarray
  additive: float
  context_totals: np.ndarray
  context_types: np.ndarray
  pair_keys: np.ndarray
  pair_counts: np.ndarray
  smoothing: str = "unigram"
  weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class NgramModel:
  """A unigram (`order` 1) or bigram (`order` 2) model, one part per level."""

  order: int
  codebook_size: int
  levels: tuple[LevelModel, ...]

  def describe(self) -> list[str]:
    """Smoothing kind and weight of each level."""
    return [
      f"additive {level.additive:g}"
      if self.order == 1
      else f"{level.smoothing} {level.weight:g}"
      for level in self.levels
    ]


def fit_unigram(
  train: Codes, codebook_size: int, validation: Codes | None = None
) -> NgramModel:
  """Fits code frequencies per level with additive smoothing.

  Args:
    train: int32 `[clips][frames, levels]`, negative codes are padding.
    codebook_size: codes per level.
    validation: codes the pseudo-count is chosen on; by default the last
      tenth of the training clips, which are then counted too.

  Raises:
    ValueError: if there is no token, levels differ or a code is too high.
  """
  return _fit(1, train, codebook_size, validation)


def fit_bigram(
  train: Codes, codebook_size: int, validation: Codes | None = None
) -> NgramModel:
  """Fits interpolated bigrams per level; arguments as `fit_unigram`.

  Four ways to interpolate with the unigram compete on the validation codes:
  Jelinek-Mercer, Dirichlet, Witten-Bell and absolute discounting, each over a
  grid of weights, and so does the unigram alone.
  """
  return _fit(2, train, codebook_size, validation)


def cross_entropy(model: NgramModel, codes: Codes) -> float:
  """Mean over all real tokens of -log probability, in nats per token."""
  nats = token_nats(model, codes)
  return float(np.concatenate(nats).mean())


def cross_entropy_per_level(model: NgramModel, codes: Codes) -> list[float]:
  """Nats per token of each level."""
  return [float(level.mean()) for level in token_nats(model, codes)]


def token_nats(model: NgramModel, codes: Codes) -> list[np.ndarray]:
  """Nats of every real token, by level, float64 `[tokens]` in clip order.

  Args:
    model: a fitted model.
    codes: int32 `[clips][frames, levels]`, negative codes are padding.

  Raises:
    ValueError: if the number of levels differs, there is no token or a code
      is too high.
  """
  tokens = _flatten(codes, model.codebook_size)
  if len(tokens) != len(model.levels):
    raise ValueError(
      f"codes have {len(tokens)} levels: the model has {len(model.levels)}"
    )
  return [
    _level_nats(level, level_tokens, model.codebook_size)
    for level, level_tokens in zip(model.levels, tokens)
  ]


def _fit(
  order: int, train: Codes, codebook_size: int, validation: Codes | None
) -> NgramModel:
  counted = train
  if validation is None:
    held_out = max(1, int(len(train) * _HELD_OUT_SHARE))
    if len(train) < 2:
      raise ValueError(
        f"{len(train)} training clips and no validation codes: expected at "
        "least 2 clips, to choose the smoothing on one"
      )
    counted, validation = train[:-held_out], train[-held_out:]
  chosen = [
    _choose(order, tokens, check, codebook_size)
    for tokens, check in zip(
      _flatten(counted, codebook_size), _flatten(validation, codebook_size)
    )
  ]
  if counted is not train:
    # Weights are chosen; the held-out clips may now be counted as well.
    chosen = [
      dataclasses.replace(
        _count(tokens, codebook_size, level.additive),
        smoothing=level.smoothing,
        weight=level.weight,
      )
      for tokens, level in zip(_flatten(train, codebook_size), chosen)
    ]
  return NgramModel(order, codebook_size, tuple(chosen))


def _flatten(codes: Codes, codebook_size: int) -> list[_Tokens]:
  """Codes and contexts by level; padding neither counts nor is a context."""
  clips = [np.asarray(clip) for clip in codes]
  if not clips or any(
    clip.ndim != 2 or clip.shape[1] != clips[0].shape[1] for clip in clips
  ):
    raise ValueError(
      "codes: expected [clips][frames, levels], at least 1 clip and equally "
      f"many levels, found {sorted({clip.shape for clip in clips})[:4]}"
    )
  code = np.concatenate(clips).astype(np.int64)
  if not (code >= 0).any(0).all():
    raise ValueError("codes: expected at least 1 token per level, found none")
  if code.max() >= codebook_size:
    raise ValueError(
      f"codes up to {code.max()}: expected less than "
      f"codebook_size={codebook_size}"
    )
  before = np.full(code.shape, -1, np.int64)
  before[:, 1:] = code[:, :-1]
  before[1:, 0] = code[:-1, -1]
  lengths = [len(clip) for clip in clips if len(clip)]
  starts = np.cumsum([0, *lengths[:-1]])
  before[starts, 0] = -1
  before = np.where(before < 0, codebook_size, before)
  levels = []
  for level in range(code.shape[1]):
    real = code[:, level] >= 0
    levels.append(_Tokens(code[real, level], before[real, level]))
  return levels


def _count(tokens: _Tokens, codebook_size: int, additive: float) -> LevelModel:
  counts = np.bincount(tokens.code, minlength=codebook_size)
  keys, pair_counts = np.unique(
    tokens.context * codebook_size + tokens.code, return_counts=True
  )
  num_contexts = codebook_size + 1
  return LevelModel(
    unigram=(counts + additive) / (counts.sum() + additive * codebook_size),
    additive=additive,
    context_totals=np.bincount(tokens.context, minlength=num_contexts),
    context_types=np.bincount(keys // codebook_size, minlength=num_contexts),
    pair_keys=keys,
    pair_counts=pair_counts,
  )


def _choose(
  order: int, tokens: _Tokens, check: _Tokens, codebook_size: int
) -> LevelModel:
  """Counts `tokens` with the smoothing that is best on `check`."""
  level = _count(tokens, codebook_size, 1.0)
  counts = np.bincount(tokens.code, minlength=codebook_size)
  checked = np.bincount(check.code, minlength=codebook_size)

  def unigram_nats(additive: float) -> float:
    total = counts.sum() + additive * codebook_size
    return float(-(checked * np.log((counts + additive) / total)).sum())

  level = _count(tokens, codebook_size, min(_ADDITIVE, key=unigram_nats))
  best, best_nats = level, _level_nats(level, check, codebook_size).mean()
  if order == 1:
    return best
  seen = _look_up(level, check, codebook_size)
  for smoothing, weights in _BIGRAM_GRID.items():
    for weight in weights:
      nats = -np.log(_interpolate(smoothing, float(weight), *seen)).mean()
      if nats < best_nats:
        best_nats = nats
        best = dataclasses.replace(
          level, smoothing=smoothing, weight=float(weight)
        )
  return best


def _look_up(
  level: LevelModel, tokens: _Tokens, codebook_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Per token: pair count, context total, context types, unigram."""
  keys = tokens.context * codebook_size + tokens.code
  index = np.searchsorted(level.pair_keys, keys)
  index = np.minimum(index, len(level.pair_keys) - 1)
  pairs = np.where(level.pair_keys[index] == keys, level.pair_counts[index], 0)
  return (
    pairs,
    level.context_totals[tokens.context],
    level.context_types[tokens.context],
    level.unigram[tokens.code],
  )


def _interpolate(
  smoothing: str,
  weight: float,
  pairs: np.ndarray,
  totals: np.ndarray,
  types: np.ndarray,
  unigram: np.ndarray,
) -> np.ndarray:
  """Probabilities; sums to 1 over codes; an unseen context gives `unigram`."""
  if smoothing == "unigram":
    return unigram
  some = np.maximum(totals, 1)
  if smoothing == "absolute_discount":
    kept = np.maximum(pairs - weight, 0.0) / some
    back_off = weight * types / some
  else:
    if smoothing == "jelinek_mercer":
      back_off = np.full(len(pairs), weight)
    elif smoothing == "dirichlet":
      back_off = weight / (totals + weight)
    else:
      back_off = weight * types / (some + weight * types)
    kept = (1.0 - back_off) * pairs / some
  return np.where(totals > 0, kept + back_off * unigram, unigram)


def _level_nats(
  level: LevelModel, tokens: _Tokens, codebook_size: int
) -> np.ndarray:
  seen = _look_up(level, tokens, codebook_size)
  return -np.log(_interpolate(level.smoothing, level.weight, *seen))
