# SPDX-License-Identifier: Apache-2.0
"""What an exported MuLan gets beside its towers, and the report about it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from musiclm_jax.cli import corpus_passes
from musiclm_jax.core import rng
from musiclm_jax.data import clips
from musiclm_jax.evaluation import modality_gap
from musiclm_jax.layers import mesh_kmeans
from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.systems import embedders, mulan_rvq, text_mapper

_DIGITS = 5
# A window's id is its clip's number and its place in it.
_WINDOW_BITS = 24


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Every caption of some clips, with the clip's audio.

  Attributes:
    audio: float32 `[clips, dim]`, the mean of each clip's windows.
    text: float32 `[pairs, dim]`.
    clip: int64 `[pairs]`, the row of `audio` of each text.
    works: `[pairs]`, the work of each pair.
    captions: the texts.
  """

  audio: np.ndarray
  text: np.ndarray
  clip: np.ndarray
  works: Sequence[str]
  captions: Sequence[str]


def read_pairs(
  embedder: embedders.MuLanEmbedder,
  corpus_dir: str,
  split: str,
  max_clips: int,
) -> Pairs:
  """Embeds clips of a split, evenly spread over it, and their captions."""
  audio, works, clip, captions = [], [], [], []
  reader = clips.ClipReader(corpus_dir, split)
  for group in corpus_passes.spread(reader, max_clips, f"{split} pairs"):
    for one in group:
      clip += [len(audio)] * len(one.captions)
      works += [one.work_id or one.clip_id] * len(one.captions)
      captions += one.captions
      audio.append(one)
    waveform = np.stack([one.waveform for one in group])
    audio[-len(group) :] = embedder.embed_audio(
      waveform, group[0].sample_rate_hz
    )
  text = np.zeros((0, embedder.config.output_dim), np.float32)
  if captions:
    text = embedder.embed_text(captions)
  return Pairs(
    np.stack(audio), text, np.asarray(clip, np.int64), works, captions
  )


def fit_rvq(
  embedder: embedders.MuLanEmbedder,
  corpus_dir: str,
  split: str,
  num_codebooks: int,
  config: mesh_kmeans.MeshKMeansConfig,
  seed: int,
  on_mesh: bool,
) -> tuple[np.ndarray, np.ndarray]:
  """Embeds the windows of a split and fits the RVQ to them.

  Args:
    embedder: both towers.
    corpus_dir: prepared corpus.
    split: of the corpus.
    num_codebooks: levels.
    config: of k-means; on one device its sizes and iterations are used.
    seed: of the seeding.
    on_mesh: on all devices of all processes, a collective.

  Returns:
    This process's embeddings, float32 `[n, dim]`, and the codebooks, float32
    `[codebooks, codebook_size, dim]`.
  """
  if on_mesh:
    found, ids = _embed_blocks(
      embedder, corpus_passes.Blocks(corpus_dir, split, "embeddings")
    )
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig())
    return found, mulan_rvq.fit_on_mesh(
      found, ids, num_codebooks, config, mesh, seed
    )
  embeddings = np.concatenate(
    [
      embedder.embed_windows(waveform, rate_hz).reshape(
        -1, embedder.config.output_dim
      )
      for waveform, rate_hz in corpus_passes.batches(
        corpus_dir, split, "embeddings"
      )
    ]
  )
  return embeddings, mulan_rvq.fit(
    embeddings,
    num_codebooks,
    config.num_clusters,
    rng.root_key(seed),
    config.num_iterations,
  )


def _embed_blocks(
  embedder: embedders.MuLanEmbedder, blocks: corpus_passes.Blocks
) -> tuple[np.ndarray, np.ndarray]:
  """Embeds the windows of this process's blocks; a collective.

  Returns:
    float32 `[n, dim]` and int64 `[n]`, which no other process has.
  """
  dim = embedder.config.output_dim
  vectors = [np.zeros((0, dim), np.float32)]
  ids = [np.zeros(0, np.int64)]
  for _, first, waveform, rate_hz in blocks:
    windows = embedder.embed_windows(waveform, rate_hz)
    numbers = np.arange(first, first + len(windows), dtype=np.int64)
    ids.append(
      ((numbers[:, None] << _WINDOW_BITS) + np.arange(windows.shape[1])).ravel()
    )
    vectors.append(windows.reshape(-1, dim))
  return np.concatenate(vectors), np.concatenate(ids)


def read_heldout(
  embedder: embedders.MuLanEmbedder,
  corpus_dir: str,
  split: str,
  max_clips: int,
) -> Pairs | None:
  """As `read_pairs`; None where the corpus has no such split."""
  if split in clips.split_names(corpus_dir):
    return read_pairs(embedder, corpus_dir, split, max_clips)
  logging.info("%s has no split %r: no held-out report", corpus_dir, split)
  return None


def fit_text_mapper(
  kind: str, pairs: Pairs, strength: float
) -> tuple[text_mapper.TextMapper, dict[str, Any]]:
  """See `text_mapper.fit`."""
  return text_mapper.fit(
    kind, pairs.text, pairs.audio[pairs.clip], pairs.works, strength
  )


def _rounded(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _rounded(one) for name, one in value.items()}
  if isinstance(value, list):
    return [_rounded(one) for one in value]
  return round(value, _DIGITS) if isinstance(value, float) else value


def report(
  embeddings: np.ndarray,
  codebooks: np.ndarray,
  mapper: text_mapper.TextMapper | None,
  heldout: Pairs | None,
) -> dict[str, Any]:
  """What the RVQ loses and how far text is from audio.

  Args:
    embeddings: float32 `[n, dim]`, those the RVQ was fitted on.
    codebooks: float32 `[codebooks, codebook_size, dim]`.
    mapper: of text, if any.
    heldout: clips that no part has seen; None where the corpus has none.

  Returns:
    JSON-compatible; see `modality_gap.describe`.
  """
  found: dict[str, Any] = {
    "rvq": {"training": modality_gap.quantization(embeddings, codebooks)}
  }
  if heldout is None:
    return _rounded(found)
  found["rvq"]["held-out"] = modality_gap.quantization(heldout.audio, codebooks)
  if not len(heldout.text):
    return _rounded(found)
  audio = heldout.audio[heldout.clip]
  plain = modality_gap.Pairs(heldout.text, audio, heldout.works, codebooks)
  found["modality_gap"] = plain.report()
  if mapper is not None:
    mapped = modality_gap.Pairs(
      mapper(heldout.text), audio, heldout.works, codebooks
    )
    found["mapped_gap"] = mapped.report()
    found["effect"] = plain.effect(mapped)
    # One text per clip, as `musiclm evaluate` asks.
    _, first = np.unique(heldout.clip, return_index=True)
    found["retrieval"] = modality_gap.retrieval_effect(
      plain.text[first],
      mapped.text[first],
      audio[first],
      [heldout.captions[index] for index in first],
    )
  return _rounded(found)
