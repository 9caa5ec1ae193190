# SPDX-License-Identifier: Apache-2.0
"""Several candidates per prompt, of which the best by MuLan score are kept.

The score is the cosine of the prompt's embedding with that of the audio made,
as in MuLan cycle consistency (MusicLM sec. 4). It is the judgement of the same
MuLan that told the stages what to make, and no other.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from musiclm_jax.core import errors
from musiclm_jax.systems import cascade, musiclm
from musiclm_jax.systems import prompts as prompts_lib

AnyPrompts = prompts_lib.AnyPrompt | Sequence[prompts_lib.AnyPrompt]


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One of the items made from a prompt.

  Attributes:
    waveform: float32 `[samples]`, or `[samples, channels]`.
    codes: int32 `[frames, codebooks]` by stream.
    seed: that makes this item alone.
    index: which of the candidates, from 0.
    score: MuLan score in [-1, 1]; None where none was asked for.
  """

  waveform: np.ndarray
  codes: dict[str, np.ndarray]
  seed: int
  index: int
  score: float | None


def candidate_seed(seed: int, index: int) -> int:
  """Seed of candidate `index` of an item; candidate 0 has the item's own.

  The others are hashes: the seeds of neighbouring items count up.
  """
  if index == 0:
    return seed
  return zlib.crc32(f"{seed}/{index}".encode()) & 0x7FFFFFFF


def sample_seed(seed: int, index: int) -> int:
  """Seed of sample `index` of a prompt; sample 0 has the prompt's own.

  Unlike candidates all samples are kept; their seeds are hashes too.
  """
  if index == 0:
    return seed
  return zlib.crc32(f"{seed}/sample/{index}".encode()) & 0x7FFFFFFF


def score(
  mulan,
  prompts: Sequence[prompts_lib.Prompt],
  waveforms: np.ndarray,
  sample_rate_hz: int,
) -> np.ndarray:
  """MuLan scores of audio against the prompts it was made from.

  Args:
    mulan: a `tokenizers.MuLanTokenizer`.
    prompts: one per waveform.
    waveforms: float32 `[batch, samples]`, or with channels.
    sample_rate_hz: their rate.

  Returns:
    float32 `[batch]` in [-1, 1].
  """
  wanted = prompts_lib.embed(mulan, prompts, is_mapped=False)
  found = mulan.embed_audio(waveforms, sample_rate_hz)
  return np.einsum("bd,bd->b", wanted, found)


def choose(
  make: Callable[[Sequence[int], Sequence[int]], cascade.Generation],
  prompts: Sequence[prompts_lib.Prompt | None],
  seeds: Sequence[int],
  mulan: Any,
  num_candidates: int,
  keep: int = 1,
  batch_size: int = 8,
) -> list[list[Candidate]]:
  """Makes candidates of items and keeps the best.

  Args:
    make: `(items, seeds) -> generation`, a row for each pair of an item's
      index and a seed.
    prompts: of the items; read only where there is a choice.
    seeds: of the items; see `candidate_seed`.
    mulan: a `tokenizers.MuLanTokenizer`; read only where there is a choice.
    num_candidates: of each item.
    keep: of each item, the best first.
    batch_size: candidates made at once, of whichever items.

  Returns:
    For each item `keep` candidates.

  Raises:
    UserError: if a number is out of range.
  """
  for name, value in (("keep", keep), ("batch_size", batch_size)):
    if value < 1:
      raise errors.UserError(f"{name}={value}: expected >= 1")
  if num_candidates < keep:
    raise errors.UserError(
      f"num_candidates={num_candidates}: expected at least keep={keep}"
    )
  rows = [(i, j) for i in range(len(seeds)) for j in range(num_candidates)]
  kept: list[list[Candidate]] = [[] for _ in seeds]
  for start in range(0, len(rows), batch_size):
    part = rows[start : start + batch_size]
    items = [item for item, _ in part]
    made = make(items, [candidate_seed(seeds[i], j) for i, j in part])
    scores = [None] * len(part)
    if num_candidates > 1:
      told = [prompts[item] for item in items]
      rate_hz = made.sample_rate_hz
      scores = score(mulan, told, made.waveform, rate_hz).tolist()
    for row, (item, index) in enumerate(part):
      codes = {name: array[row] for name, array in made.codes.items()}
      found = Candidate(
        made.waveform[row], codes, made.seeds[row], index, scores[row]
      )
      # Sorted as they come: what is not kept takes no memory.
      kept[item] = best([*kept[item], found], keep)
  return kept


def generate(
  system: musiclm.MusicLM,
  prompts: AnyPrompts,
  seconds: float,
  seed: int | Sequence[int] = 0,
  num_candidates: int = 4,
  keep: int = 1,
  batch_size: int = 8,
  melody: Any = None,
  **options: Any,
) -> list[list[Candidate]]:
  """Makes candidates for each prompt and keeps the best.

  Args:
    system: what makes them.
    prompts: one, or one per item.
    seconds: duration.
    seed: of the items, as in `MusicLM.generate`; see `candidate_seed`.
    num_candidates: of each item; 1 is `MusicLM.generate`, without a score.
    keep: see `choose`.
    batch_size: see `choose`.
    melody: as in `MusicLM.generate`.
    **options: further arguments of `MusicLM.generate` that hold for all items.

  Returns:
    For each item `keep` candidates, the best first.

  Raises:
    UserError: if a number is out of range, or as `MusicLM.generate`.
  """
  prompts = prompts_lib.as_prompts(prompts)

  def make(items, seeds):
    told = [prompts[item] for item in items]
    melodies = _of_rows(melody, items)
    return system.generate(told, seconds, seeds, melody=melodies, **options)

  seeds = cascade.item_seeds(seed, len(prompts))
  return choose(
    make, prompts, seeds, system.mulan, num_candidates, keep, batch_size
  )


def best(found: Sequence[Candidate], keep: int) -> list[Candidate]:
  """The first `keep` by score, of equals the one with the least index."""
  return sorted(found, key=_order)[:keep]


def _order(candidate: Candidate) -> tuple[float, int]:
  return -(candidate.score or 0.0), candidate.index


def _of_rows(value: Any, items: Sequence[int]) -> Any:
  """One per row, of what is one for all items (as it is) or one per item."""
  if isinstance(value, (list, tuple)):
    return [value[item] for item in items]
  return value
