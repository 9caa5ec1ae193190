# SPDX-License-Identifier: Apache-2.0
"""Exporter of the melody embedder: fits the RVQ and freezes both."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from musiclm_jax.cli import corpus_passes
from musiclm_jax.core import rng, rvq
from musiclm_jax.models import triplet
from musiclm_jax.systems import melody_tokenizer, mulan_rvq


@dataclasses.dataclass(frozen=True)
class MelodyExporter:
  """Fits the RVQ of windows of a corpus, then freezes embedder and codebooks.

  Attributes:
    corpus_dir: prepared corpus the codebooks are fitted on.
    num_codebooks: RVQ levels (MusicLM: 24).
    codebook_size: entries per level (MusicLM: 512).
    split: of the corpus.
    max_clips: clips that are embedded, from the first on; 0 for all.
    seed: of the seeding.
  """

  corpus_dir: str
  num_codebooks: int = 24
  codebook_size: int = 512
  split: str = "train"
  max_clips: int = 0
  seed: int = 0

  def export(
    self,
    trainable: triplet.Triplet,
    variables: Mapping[str, Any],
    directory: str,
    metadata: Mapping[str, Any],
  ) -> str:
    """Writes the artefact; returns its fingerprint."""
    config, params = trainable.network.config, variables["params"]
    embedder = melody_tokenizer.MelodyEmbeddings(config, params)
    embeddings = np.concatenate(
      [
        embedder.embed_windows(waveform, rate_hz).reshape(-1, config.output_dim)
        for waveform, rate_hz in corpus_passes.batches(
          self.corpus_dir, self.split, "embeddings", self.max_clips
        )
      ]
    )
    codebooks = mulan_rvq.fit(
      embeddings,
      self.num_codebooks,
      self.codebook_size,
      rng.root_key(self.seed),
    )
    report = quantization_report(embeddings, codebooks)
    logging.info("melody RVQ: %s", report)
    return melody_tokenizer.export_melody(
      directory, config, params, codebooks, {**metadata, "rvq": report}
    )


def quantization_report(
  embeddings: np.ndarray, codebooks: np.ndarray
) -> dict[str, Any]:
  """What the codes keep of the embeddings they were fitted on.

  Args:
    embeddings: float32 `[n, dim]` of unit length.
    codebooks: float32 `[codebooks, codebook_size, dim]`.

  Returns:
    'num_embeddings', and lists by level: 'squared_error' (mean, after so many
    levels) and 'used' (share of the entries that some embedding got).
  """
  codes = rvq.encode(embeddings, codebooks)
  squared_error, used = [], []
  for level, codebook in enumerate(codebooks):
    decoded = rvq.decode(codes[:, : level + 1], codebooks)
    error = float(((embeddings - decoded) ** 2).sum(-1).mean())
    squared_error.append(round(error, 6))
    share = len(np.unique(codes[:, level])) / len(codebook)
    used.append(round(share, 4))
  return {
    "num_embeddings": len(embeddings),
    "squared_error": squared_error,
    "used": used,
  }
