# SPDX-License-Identifier: Apache-2.0
"""How far generated clips are from each other: vectors or codes in, means out.

Mean pairwise distance among clips, in all or among those of one prompt. A
system that answers one prompt with one piece scores 0 there. Higher is more
diverse, which is not better by itself: noise is diverse. Compare with real
clips.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.evaluation import bootstrap

# Positions compared at once; bounds memory for long rows of codes.
_BLOCK_VALUES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Diversity:
  """Distances among clips.

  Attributes:
    distance: mean over pairs, with an interval over clips, or over prompts
      where there are groups.
    nearest: mean distance of a clip to the one nearest to it.
    smallest: the least distance of a pair; 0 means that two are the same.
    num_items: clips that are in a pair.
    num_pairs: pairs whose distance counts.
  """

  distance: bootstrap.Interval
  nearest: float
  smallest: float
  num_items: int
  num_pairs: int

  def to_dict(self) -> dict[str, Any]:
    """JSON-compatible."""
    return {
      **dataclasses.asdict(self),
      "distance": self.distance.to_dict(),
    }


def cosine_distances(embeddings: np.ndarray) -> np.ndarray:
  """1 - cosine of each pair.

  Args:
    embeddings: float `[clips, dim]`, finite; a vector of zeros is at 1 from
      all.

  Returns:
    float64 `[clips, clips]` in [0, 2], 0 on the diagonal.

  Raises:
    ValueError: if the shape is another or a number is not finite.
  """
  vectors = np.asarray(embeddings, np.float64)
  if vectors.ndim != 2 or not np.isfinite(vectors).all():
    raise ValueError(
      f"embeddings of shape {vectors.shape}: expected finite [clips, dim]"
    )
  norm = np.linalg.norm(vectors, axis=1, keepdims=True)
  vectors = vectors / np.maximum(norm, 1e-12)
  found = np.clip(1.0 - vectors @ vectors.T, 0.0, 2.0)
  np.fill_diagonal(found, 0.0)
  return found


def token_distances(codes: np.ndarray) -> np.ndarray:
  """Share of the places at which the codes of two clips differ.

  Two clips that play the same a little later are far apart; see
  `unigram_distances` for a distance that does not see time.

  Args:
    codes: int `[clips, frames]` or `[clips, frames, codebooks]`.

  Returns:
    float64 `[clips, clips]` in [0, 1].

  Raises:
    ValueError: if the shape is another or the codes are no integers.
  """
  codes = _codes(codes)
  codes = codes.reshape(len(codes), -1)
  found = np.empty((len(codes), len(codes)))
  rows = max(1, _BLOCK_VALUES // max(codes.size, 1))
  for start in range(0, len(codes), rows):
    part = codes[start : start + rows]
    found[start : start + rows] = (part[:, None] != codes).mean(-1)
  return found


def unigram_distances(codes: np.ndarray) -> np.ndarray:
  """Total variation distance between how often clips use each code.

  Args:
    codes: as in `token_distances`; codebooks are counted apart and averaged.

  Returns:
    float64 `[clips, clips]` in [0, 1]: the share of frames of one that would
    have to change for both to use each code as often.

  Raises:
    ValueError: as `token_distances`.
  """
  codes = _codes(codes)
  codes = codes.reshape(*codes.shape[:2], -1)
  found = np.zeros((len(codes), len(codes)))
  for level in range(codes.shape[2]):
    _, places = np.unique(codes[:, :, level], return_inverse=True)
    places = places.reshape(codes.shape[:2])
    size = places.max() + 1
    shares = np.stack([np.bincount(row, minlength=size) for row in places])
    shares = shares / codes.shape[1]
    for row, share in enumerate(shares):
      found[row] += 0.5 * np.abs(shares - share).sum(1)
  return found / codes.shape[2]


def diversity(
  distances: np.ndarray,
  groups: Sequence[Any] | None = None,
  num_resamples: int = 1000,
  seed: int = 0,
) -> Diversity:
  """Mean distance of pairs.

  Args:
    distances: float `[clips, clips]`, symmetric, of one of the functions here.
    groups: of each clip, its prompt: only pairs within one count, and the mean
      is over prompts with at least 2 clips, each counting as much.
    num_resamples: bootstrap draws.
    seed: of the draws.

  Raises:
    ValueError: if there is no pair, or shapes do not fit.
  """
  distances = np.asarray(distances, np.float64)
  count = len(distances)
  if distances.shape != (count, count):
    raise ValueError(
      f"distances of shape {distances.shape}: expected [clips, clips]"
    )
  parts = [distances[np.ix_(rows, rows)] for rows in _members(groups, count)]
  return _of_parts(parts, groups is not None, num_resamples, seed)


def _members(groups: Sequence[Any] | None, count: int) -> list[np.ndarray]:
  """Indices of each group with at least 2 members."""
  if groups is None:
    return [np.arange(count)] if count > 1 else []
  if len(groups) != count:
    raise ValueError(f"{len(groups)} groups: expected {count}, one per clip")
  _, places = np.unique(np.asarray(groups), return_inverse=True)
  order = np.argsort(places, kind="stable")
  rows = np.split(order, np.cumsum(np.bincount(places))[:-1])
  return [one for one in rows if len(one) > 1]


def _of_parts(
  parts: Sequence[np.ndarray], is_grouped: bool, num_resamples: int, seed: int
) -> Diversity:
  """Of the distances within each group, `[members, members]`."""
  if not parts:
    raise ValueError("no pair of clips: expected at least 2 in a group")
  sizes = np.array([len(part) for part in parts])
  if is_grouped:
    means = [part.sum() / (len(part) * (len(part) - 1)) for part in parts]
    interval = bootstrap.mean_interval(means, num_resamples, seed=seed)
  else:
    interval = _interval_over_clips(parts[0], num_resamples, seed)
  nearest = np.concatenate(
    [np.where(np.eye(len(part)) > 0, np.inf, part).min(1) for part in parts]
  )
  return Diversity(
    interval,
    float(nearest.mean()),
    float(nearest.min()),
    int(sizes.sum()),
    int((sizes * (sizes - 1) // 2).sum()),
  )


def _interval_over_clips(
  distances: np.ndarray, num_resamples: int, seed: int
) -> bootstrap.Interval:
  """Draws of clips; a clip drawn twice is no pair with itself."""
  count = len(distances)
  weights = bootstrap.resample_groups(
    [str(index) for index in range(count)], num_resamples, seed
  ).astype(np.float64)
  sums = np.einsum("ri,ij,rj->r", weights, distances, weights, optimize=True)
  pairs = weights.sum(1) ** 2 - (weights**2).sum(1)
  draws = np.divide(
    sums, pairs, out=np.full_like(sums, np.nan), where=pairs > 0
  )
  mean = distances.sum() / (count * (count - 1))
  return bootstrap.percentile_interval(mean, draws)


def _codes(codes: np.ndarray) -> np.ndarray:
  codes = np.asarray(codes)
  if codes.ndim not in (2, 3) or not np.issubdtype(codes.dtype, np.integer):
    raise ValueError(
      f"codes {codes.dtype} of shape {codes.shape}: expected integers "
      "[clips, frames] or [clips, frames, codebooks]"
    )
  if not codes.size:
    raise ValueError(f"codes of shape {codes.shape}: expected at least 1")
  return codes
