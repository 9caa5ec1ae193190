# SPDX-License-Identifier: Apache-2.0
"""Exporters: a trained state in, a frozen artefact out, per kind of part."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from musiclm_jax.core import progress, rng, vocabularies
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.data import clips, token_cache
from musiclm_jax.layers import mesh_kmeans, quantize
from musiclm_jax.models import (
  codec_gan,
  contrastive,
  masked_prediction,
  token_lm,
)
from musiclm_jax.networks import semantic_encoders
from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.systems import (
  embedders,
  semantic_clusters,
  stage_lm,
  tokenizers,
)
from musiclm_jax.training import agreement, distributed

# Names of the artefacts behind the streams of a token cache.
ARTIFACT_OF_STREAM = {
  "acoustic": "soundstream",
  "semantic": "semantic",
  "mulan": "mulan",
  "melody": "melody",
}
_BATCH_SIZE = 16
_CLUSTERS = ("host", "mesh")
_MAX_BLOCKS = 1024


def cache_streams(
  cache_dir: str | None,
) -> tuple[streams_lib.TokenStream, ...]:
  """Streams of a token cache, so that a stage cannot disagree with it.

  Without a cache (`musiclm check`) they are the published ones.
  """
  if cache_dir is None:
    return streams_lib.published()
  return token_cache.read_config(cache_dir).streams


def _clip_batches(
  corpus_dir: str, split: str, name: str, num_clips: int | None = None
) -> Iterator[tuple[np.ndarray, int]]:
  """Waveforms `[batch, samples]` of (the start of) a split, with their rate."""
  reader = clips.ClipReader(corpus_dir, split)
  num_clips = min(num_clips or len(reader), len(reader))
  with progress.Progress(name, num_clips, unit="clip") as bar:
    for group in reader.batches(0, num_clips, _BATCH_SIZE):
      yield np.stack([c.waveform for c in group]), group[0].sample_rate_hz
      bar.update(len(group))


@dataclasses.dataclass(frozen=True)
class SoundStreamExporter:
  """Freezes encoder, decoder and codebooks; the critics stay behind.

  Attributes:
    corpus_dir: prepared corpus, read if the codebooks are refitted.
    num_refit_clips: clips whose frames the codebooks are refitted on; 0 keeps
      the trained ones.
    num_refit_iterations: of k-means, per codebook.
    split: of the corpus.
  """

  corpus_dir: str = ""
  num_refit_clips: int = 0
  num_refit_iterations: int = 10
  split: str = "train"

  def export(
    self,
    trainable: codec_gan.CodecGAN,
    variables: Mapping[str, Any],
    directory: str,
    metadata: Mapping[str, Any],
  ) -> str:
    """Writes the artefact; returns its fingerprint."""
    params = variables["params"]["generator"]
    codebooks = variables["codebooks"]
    # An FSQ has no codebooks to fit.
    if self.num_refit_clips and trainable.config.codec.quantizer_kind == "rvq":
      codebooks = self._refit(trainable, params, codebooks)
    return tokenizers.export_soundstream(
      directory, trainable.config.codec, params, codebooks, metadata
    )

  def _refit(
    self, trainable: codec_gan.CodecGAN, params: Any, codebooks: Any
  ) -> dict[str, Any]:
    codec = trainable.codec
    encode = jax.jit(
      lambda params, waveform: codec.apply(
        {"params": params}, waveform, method=codec.latents
      )
    )
    vectors = []
    for waveform, rate_hz in _clip_batches(
      self.corpus_dir, self.split, "latents", self.num_refit_clips
    ):
      waveform = embedders.resample(
        waveform, rate_hz, codec.config.sample_rate_hz
      )
      latents = embedders.in_chunks(lambda part: encode(params, part), waveform)
      vectors.append(latents.reshape(-1, latents.shape[-1]))
    trained = codebooks["quantizer"]
    embed, error = quantize.refit(
      trained["embed"],
      np.concatenate(vectors),
      self.num_refit_iterations,
    )
    logging.info(
      "codebooks refitted; mean squared error by level %s", np.round(error, 3)
    )
    return {"quantizer": {**trained, "embed": embed}}


@dataclasses.dataclass(frozen=True)
class SemanticExporter:
  """Fits statistics and k-means on w2v-BERT features, then freezes both.

  Attributes:
    corpus_dir: prepared corpus the clusters are fitted on.
    num_clusters: semantic codebook size (MusicLM: 1024).
    split: of the corpus.
    max_points: most frames that k-means sees.
    seed: of the seeding.
    clusters: 'host' fits on one device of process 0; 'mesh' on all devices of
      all processes, which share the clips, with the same result for any
      number of them.
    seeding: of 'mesh': 'parallel' (k-means||) or 'plusplus'.
    batch_size: of 'mesh': points of a mini-batch; 0 takes all points each time.
    num_iterations: most Lloyd iterations, or mini-batches.
  """

  corpus_dir: str
  num_clusters: int = 1024
  split: str = "train"
  max_points: int = 500_000
  seed: int = 0
  clusters: str = "host"
  seeding: str = "parallel"
  batch_size: int = 0
  num_iterations: int = 50

  def __post_init__(self):
    if self.clusters not in _CLUSTERS:
      raise ValueError(
        f"clusters={self.clusters!r}: expected one of {_CLUSTERS}"
      )

  @property
  def is_collective(self) -> bool:
    """Whether all processes take part in `export`."""
    return self.clusters == "mesh"

  def export(
    self,
    trainable: masked_prediction.MaskedPrediction,
    variables: Mapping[str, Any],
    directory: str,
    metadata: Mapping[str, Any],
  ) -> str:
    """Writes the artefact; returns its fingerprint."""
    config = trainable.network.config
    return self.freeze(config, variables["params"], directory, metadata)

  def freeze(
    self,
    config: semantic_encoders.Config,
    params: Mapping[str, Any],
    directory: str,
    metadata: Mapping[str, Any],
  ) -> str:
    """Fits the clusters to features of a network and writes both.

    Args:
      config: of the network.
      params: of the network (unboxed).
      directory: of the artefact; process 0 writes it.
      metadata: provenance; the usage report joins it as `kmeans`.

    Returns:
      The fingerprint; '' on processes that write nothing.
    """
    extract = embedders.SemanticFeatures(config, params)
    fit = self._fit_on_mesh if self.is_collective else self._fit
    found = fit(extract)
    logging.info("%s", semantic_clusters.describe(found.report))
    if not distributed.is_main():
      return ""
    print(semantic_clusters.describe(found.report))
    return tokenizers.export_semantic(
      directory,
      config,
      params,
      found.mean,
      found.std,
      found.centroids,
      {**metadata, "kmeans": found.report},
    )

  def _fit(
    self, extract: embedders.SemanticFeatures
  ) -> semantic_clusters.SemanticClusters:
    return semantic_clusters.fit(
      (
        extract(waveform, rate_hz)
        for waveform, rate_hz in _clip_batches(
          self.corpus_dir, self.split, "features"
        )
      ),
      self.num_clusters,
      rng.root_key(self.seed),
      max_points=self.max_points,
      num_iterations=self.num_iterations,
    )

  def _fit_on_mesh(
    self, extract: embedders.SemanticFeatures
  ) -> semantic_clusters.SemanticClusters:
    reader = clips.ClipReader(self.corpus_dir, self.split)
    # Few enough that their sums are nothing to send.
    size = max(_BATCH_SIZE, -(-len(reader) // _MAX_BLOCKS))
    num_blocks = -(-len(reader) // size)
    mine = range(jax.process_index(), num_blocks, jax.process_count())

    def blocks():
      with progress.Progress("features", len(mine), unit="block") as bar:
        for block in mine:
          first = block * size
          end = min(first + size, len(reader))
          for group in reader.batches(first, end, _BATCH_SIZE):
            waveform = np.stack([clip.waveform for clip in group])
            yield block, first, extract(waveform, group[0].sample_rate_hz)
            first += len(group)
          bar.update()
      # Whoever is first would wait in a collective, which has a time limit.
      agreement.barrier("features")

    return semantic_clusters.fit_on_mesh(
      blocks(),
      num_blocks,
      mesh_kmeans.MeshKMeansConfig(
        self.num_clusters,
        seeding=self.seeding,
        batch_size=self.batch_size,
        num_iterations=self.num_iterations,
      ),
      extract.config.feature_dim,
      mesh_lib.make_mesh(mesh_lib.MeshConfig()),
      self.seed,
      self.max_points,
    )


@dataclasses.dataclass(frozen=True)
class MuLanExporter:
  """Fits the RVQ of audio embeddings, then freezes towers and codebooks.

  Attributes:
    corpus_dir: prepared corpus the codebooks are fitted on.
    text_model: path of the vocabulary of the text tower.
    num_codebooks: RVQ levels (MusicLM: 12).
    codebook_size: entries per level (MusicLM: 1024).
    split: of the corpus.
    seed: of the seeding.
  """

  corpus_dir: str
  text_model: str
  num_codebooks: int = 12
  codebook_size: int = 1024
  split: str = "train"
  seed: int = 0

  def export(
    self,
    trainable: contrastive.Contrastive,
    variables: Mapping[str, Any],
    directory: str,
    metadata: Mapping[str, Any],
  ) -> str:
    """Writes the artefact; returns its fingerprint."""
    config, params = trainable.network.config, variables["params"]
    text_files = vocabularies.load(self.text_model).files
    embedder = embedders.MuLanEmbedder(config, params, text_files)
    embeddings = np.concatenate(
      [
        embedder.embed_windows(waveform, rate_hz).reshape(-1, config.output_dim)
        for waveform, rate_hz in _clip_batches(
          self.corpus_dir, self.split, "embeddings"
        )
      ]
    )
    codebooks = tokenizers.fit_mulan_rvq(
      embeddings,
      self.num_codebooks,
      self.codebook_size,
      rng.root_key(self.seed),
    )
    return tokenizers.export_mulan(
      directory, config, params, codebooks, text_files, metadata
    )


@dataclasses.dataclass(frozen=True)
class StageExporter:
  """Freezes a stage with the fingerprints of the tokenizers behind it.

  Attributes:
    cache_dir: the token cache it was trained on.
  """

  cache_dir: str

  def parent_fingerprints(self) -> dict[str, str]:
    """Fingerprints of the tokenizers, by name of the artefact."""
    cache = token_cache.read_config(self.cache_dir)
    return {
      ARTIFACT_OF_STREAM[name]: mark
      for name, mark in cache.fingerprints.items()
    }

  def export(
    self,
    trainable: token_lm.TokenLM,
    variables: Mapping[str, Any],
    directory: str,
    metadata: Mapping[str, Any],
  ) -> str:
    """Writes the artefact; returns its fingerprint."""
    config = trainable.config
    cache = token_cache.read_config(self.cache_dir)
    used = {segment.stream for segment in config.spec.segments}
    return stage_lm.export_stage(
      directory,
      config.spec,
      [stream for stream in config.streams if stream.name in used],
      config.transformer,
      jax.device_get(variables["params"]),
      {ARTIFACT_OF_STREAM[name]: cache.fingerprints[name] for name in used},
      config.precision,
      config.aligned_conditioning,
      metadata,
    )
