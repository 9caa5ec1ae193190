# SPDX-License-Identifier: Apache-2.0
"""Clips with MuLan embeddings: from a corpus, or from its token cache."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from musiclm_jax.core import artifacts, progress
from musiclm_jax.data import clips, token_cache
from musiclm_jax.systems import tokenizers

_BATCH_SIZE = 16


class Embedded(NamedTuple):
  """Clips with their audio embeddings, in the order of the corpus.

  Attributes:
    clip_ids: of each clip.
    work_ids: of each clip.
    captions: the first of each clip, or ''.
    embeddings: float32 `[clips, embed]` of unit length.
  """

  clip_ids: list[str]
  work_ids: list[str]
  captions: list[str]
  embeddings: np.ndarray

  def where(self, kept: Sequence[int]) -> "Embedded":
    """Some of the clips."""
    lists = ([values[i] for i in kept] for values in self[:3])
    return Embedded(*lists, self.embeddings[np.asarray(kept, int)])


class Source(Protocol):
  """Where embedded clips come from.

  Attributes:
    splits: names of what is there.
  """

  splits: Collection[str]

  def embed(
    self,
    split: str,
    clip_ids: Collection[str] | None = None,
    max_clips: int | None = None,
  ) -> Embedded:
    """Clips of a split, perhaps none.

    Args:
      split: of the corpus.
      clip_ids: only these; None for all.
      max_clips: at most so many, spread over them.

    Raises:
      UserError: if there is no such split.
    """


def _chosen(
  names: Sequence[str],
  clip_ids: Collection[str] | None,
  max_clips: int | None,
) -> list[int]:
  """Places of the clips that are wanted."""
  kept = [
    place
    for place, name in enumerate(names)
    if clip_ids is None or name in clip_ids
  ]
  count = len(kept) if max_clips is None else min(len(kept), max_clips)
  return [kept[i * len(kept) // count] for i in range(count)]


class CorpusClips:
  """Audio of a prepared corpus, embedded here."""

  def __init__(self, mulan: tokenizers.MuLanTokenizer, corpus_dir: str):
    """Opens a corpus.

    Raises:
      UserError: if there is none.
    """
    self.splits = clips.split_names(corpus_dir)
    self._mulan, self._corpus_dir = mulan, corpus_dir

  def embed(
    self,
    split: str,
    clip_ids: Collection[str] | None = None,
    max_clips: int | None = None,
  ) -> Embedded:
    """See `Source`."""
    reader = clips.ClipReader(self._corpus_dir, split)
    names = [reader.clip_id(i) for i in range(len(reader))]
    kept = _chosen(names, clip_ids, max_clips)
    found, vectors = [], []
    with progress.Progress(f"embed {split}", len(kept), unit="clip") as bar:
      for group in reader.groups(kept, _BATCH_SIZE):
        waveforms = np.stack([clip.waveform for clip in group])
        rate_hz = group[0].sample_rate_hz
        vectors.append(self._mulan.embed_audio(waveforms, rate_hz))
        found += group
        bar.update(len(group))
    return _embedded(found, vectors, self._mulan)


class CachedClips:
  """Window embeddings of a token cache, as the tokenize job stored them."""

  def __init__(self, mulan: tokenizers.MuLanTokenizer, cache_dir: str):
    """Opens a cache.

    Raises:
      UserError: if there is none, or another MuLan made it.
    """
    self._reader = token_cache.TokenCacheReader(cache_dir)
    self.splits = sorted(self._reader.sizes)
    self._mulan = mulan
    mark = self._reader.config.fingerprints.get("mulan", "none")
    artifacts.check_fingerprint(
      f"mulan behind the token cache {cache_dir}", mark, mulan.fingerprint
    )

  def embed(
    self,
    split: str,
    clip_ids: Collection[str] | None = None,
    max_clips: int | None = None,
  ) -> Embedded:
    """See `Source`."""
    found = list(self._reader[split])
    kept = _chosen([clip.clip_id for clip in found], clip_ids, max_clips)
    found = [found[place] for place in kept]
    means = [clip.arrays[token_cache.EMBEDDINGS].mean(0) for clip in found]
    vectors = [mean / max(np.linalg.norm(mean), 1e-12) for mean in means]
    return _embedded(found, [vector[None] for vector in vectors], self._mulan)


def _embedded(found, vectors, mulan) -> Embedded:
  nothing = np.zeros((0, mulan.config.output_dim), np.float32)
  return Embedded(
    [clip.clip_id for clip in found],
    [clip.work_id for clip in found],
    [clip.captions[0] if clip.captions else "" for clip in found],
    np.concatenate([nothing, *vectors]),
  )
