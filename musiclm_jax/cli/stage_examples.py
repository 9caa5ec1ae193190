# SPDX-License-Identifier: Apache-2.0
"""Training examples of a stage out of a token cache, as prompts to go on from.

Which clips, and where in each the crop begins, is a function of the seed and
of the number of the example alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from musiclm_jax.core import artifacts, errors
from musiclm_jax.data import token_cache
from musiclm_jax.systems import bundle as bundle_lib
from musiclm_jax.systems import stage_windows

# Part of a bundle by stream of a cache.
_PARTS = {"semantic": "semantic", token_cache.MULAN: bundle_lib.MULAN}


class Batch(NamedTuple):
  """Some examples.

  Attributes:
    clip_ids: str `[rows]`.
    work_ids: str `[rows]`, '' where unknown.
    starts: frame of the clip at which each begins, int64 `[rows]`.
    codes: target codes, int32 `[rows, frames]`.
    conditioning: by stream int32 `[rows, frames, codebooks]`.
    too_short: ids of clips that were left out.
  """

  clip_ids: np.ndarray
  work_ids: np.ndarray
  starts: np.ndarray
  codes: np.ndarray
  conditioning: dict[str, np.ndarray]
  too_short: list[str]


def check_cache(
  bundle: bundle_lib.Bundle,
  streams: Sequence[str],
  config: token_cache.TokenCacheConfig,
  where: str,
) -> None:
  """Raises UserError unless streams of a cache are of a bundle's tokenizers."""
  for name in streams:
    if name not in _PARTS:
      raise errors.UserError(
        f"the semantic stage is told {name!r}: expected one that is told "
        "nothing, or MuLan codes"
      )
    config.stream(name)
    artifacts.check_fingerprint(
      f"{name} behind the token cache {where}",
      config.fingerprints[name],
      bundle.fingerprints[_PARTS[name]],
    )


class StageExamples:
  """Examples of a semantic stage by number.

  Attributes:
    num_clips: of the split.
  """

  def __init__(
    self,
    reader: token_cache.TokenCacheReader,
    split: str,
    stage: stage_windows.StageWindows,
    num_examples: int,
    seed: int,
    num_frames: int,
  ):
    """Chooses clips; at most one example is of a clip.

    Args:
      reader: of the cache.
      split: that was trained on.
      stage: gives the streams and the length of a crop.
      num_examples: most of them; 0 for a whole split.
      seed: of the choice.
      num_frames: target frames of an example, at most those of a crop.
    """
    self._reader, self._stage = reader, stage
    self._clips = reader[split]
    self._num_frames = num_frames
    self.num_clips = len(self._clips)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(self.num_clips)
    chosen = np.sort(chosen[: num_examples or None])
    self._indices = chosen
    self._places = rng.random(self.num_clips)[chosen]

  def __len__(self) -> int:
    return len(self._indices)

  def read(self, start: int, end: int) -> Batch:
    """Examples `[start, end)`, without those of clips that are too short."""
    crop = self._stage.window_frames
    target = self._stage.target_stream.name
    told = self._stage.spec.conditioning_streams
    ids, works, starts, codes, too_short = [], [], [], [], []
    conditioning: dict[str, list[np.ndarray]] = {name: [] for name in told}
    for row in range(start, min(end, len(self))):
      clip = self._clips[int(self._indices[row])]
      frames = clip.arrays[target][:, 0]
      if len(frames) < self._num_frames:
        too_short.append(clip.clip_id)
        continue
      # As in training: a crop of the clip, or all of it where it is shorter.
      first = int(self._places[row] * (max(len(frames) - crop, 0) + 1))
      ids.append(clip.clip_id)
      works.append(clip.work_id)
      starts.append(first)
      codes.append(frames[first : first + self._num_frames])
      for name in told:
        conditioning[name].append(self._mulan_codes(clip, first))
    rows = len(ids)
    return Batch(
      np.array(ids, np.str_),
      np.array(works, np.str_),
      np.array(starts, np.int64),
      np.array(codes, np.int32).reshape(rows, self._num_frames),
      {name: np.stack(found) for name, found in conditioning.items() if found},
      too_short,
    )

  def _mulan_codes(
    self, clip: token_cache.CachedClip, first: int
  ) -> np.ndarray:
    """Codes of the audio of the whole crop, as in training."""
    start_secs = first / self._stage.target_stream.frame_rate_hz
    return token_cache.mulan_codes(
      clip.arrays[token_cache.EMBEDDINGS],
      self._reader.mulan_codebooks,
      start_secs,
      start_secs + self._stage.spec.crop_secs,
      self._reader.config,
    )
