# SPDX-License-Identifier: Apache-2.0
"""Exporters: a trained state in, a frozen artefact out, per kind of part."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from musiclm_jax.audio import files
from musiclm_jax.cli import corpus_passes, mulan_export
from musiclm_jax.core import rng, vocabularies
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.data import token_cache
from musiclm_jax.evaluation import modality_gap
from musiclm_jax.layers import codebook_refit, mesh_kmeans
from musiclm_jax.models import (
  codec_gan,
  contrastive,
  masked_prediction,
  token_lm,
)
from musiclm_jax.networks import semantic_encoders
from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.systems import (
  acoustic_backends,
  acoustic_stage,
  embedders,
  semantic_clusters,
  stage_lm,
  text_mapper,
  tokenizers,
)
from musiclm_jax.training import distributed

# Names of the artefacts behind the streams of a token cache.
ARTIFACT_OF_STREAM = {
  "acoustic": "soundstream",
  "semantic": "semantic",
  "mulan": "mulan",
  "melody": "melody",
}
_CLUSTERS = ("host", "mesh")


def _check_clusters(clusters: str) -> None:
  if clusters not in _CLUSTERS:
    raise ValueError(f"clusters={clusters!r}: expected one of {_CLUSTERS}")


def cache_streams(
  cache_dir: str | None,
) -> tuple[streams_lib.TokenStream, ...]:
  """Streams of a token cache, so that a stage cannot disagree with it.

  Without a cache (`musiclm check`) they are the published ones.
  """
  if cache_dir is None:
    return streams_lib.published()
  return token_cache.read_config(cache_dir).streams


@dataclasses.dataclass(frozen=True)
class SoundStreamExporter:
  """Freezes encoder, decoder and codebooks; the critics stay behind.

  Attributes:
    corpus_dir: prepared corpus, read if the codebooks are refitted.
    num_refit_clips: clips whose frames the codebooks are refitted on; 0 keeps
      the trained ones.
    num_refit_iterations: of k-means, per codebook.
    refit_min_share: entries chosen less than this share of the mean are moved
      to where many vectors are; 0 moves none.
    split: of the corpus.
  """

  corpus_dir: str = ""
  num_refit_clips: int = 0
  num_refit_iterations: int = 10
  refit_min_share: float = 0.2
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
    for waveform, rate_hz in corpus_passes.batches(
      self.corpus_dir,
      self.split,
      "latents",
      self.num_refit_clips,
      codec.config.num_channels,
    ):
      waveform = np.stack(
        [
          files.resample(row, rate_hz, codec.config.sample_rate_hz)
          for row in waveform
        ]
      )
      latents = embedders.in_chunks(lambda part: encode(params, part), waveform)
      vectors.append(latents.reshape(-1, latents.shape[-1]))
    trained = codebooks["quantizer"]
    embed, error = codebook_refit.refit(
      trained["embed"],
      np.concatenate(vectors),
      self.num_refit_iterations,
      self.refit_min_share,
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
    _check_clusters(self.clusters)

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
        for waveform, rate_hz in corpus_passes.batches(
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
    blocks = corpus_passes.Blocks(self.corpus_dir, self.split, "features")
    return semantic_clusters.fit_on_mesh(
      (
        (block, first, extract(waveform, rate_hz))
        for block, first, waveform, rate_hz in blocks
      ),
      blocks.num_blocks,
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

  The report on the RVQ and on the gap between text and audio is printed and
  joins the metadata of the artefact as `mulan`.

  Attributes:
    corpus_dir: prepared corpus the codebooks are fitted on.
    text_model: path of the vocabulary of the text tower.
    num_codebooks: RVQ levels (MusicLM: 12).
    codebook_size: entries per level (MusicLM: 1024).
    split: of the corpus.
    seed: of the seeding.
    clusters: 'host' or 'mesh', as in `SemanticExporter`.
    seeding: of 'mesh': 'parallel' (k-means||) or 'plusplus'.
    num_iterations: most Lloyd iterations per level.
    text_mapper: what moves text embeddings before they are quantized: 'none',
      'shift' or 'ridge' (`systems/text_mapper.py`); part of the fingerprint.
    mapper_split: the pairs it is fitted on.
    mapper_strength: penalty of 'ridge'; 0 chooses it by cross-validation.
    heldout_split: the pairs of the report; '' for none.
    max_pair_clips: most clips of either split, spread over it.
  """

  corpus_dir: str
  text_model: str
  num_codebooks: int = 12
  codebook_size: int = 1024
  split: str = "train"
  seed: int = 0
  clusters: str = "host"
  seeding: str = "parallel"
  num_iterations: int = 50
  text_mapper: str = "none"
  mapper_split: str = "train"
  mapper_strength: float = 0.0
  heldout_split: str = "test"
  max_pair_clips: int = 2000

  def __post_init__(self):
    _check_clusters(self.clusters)
    text_mapper.check_kind(self.text_mapper)
    if self.max_pair_clips < 1:
      raise ValueError(
        f"max_pair_clips={self.max_pair_clips}: expected a positive number"
      )

  @property
  def is_collective(self) -> bool:
    """Whether all processes take part in `export`."""
    return self.clusters == "mesh"

  def export(
    self,
    trainable: contrastive.Contrastive,
    variables: Mapping[str, Any],
    directory: str,
    metadata: Mapping[str, Any],
  ) -> str:
    """Writes the artefact; returns its fingerprint.

    Raises:
      UserError: if there is too little audio for the RVQ, or too few pairs
        for the mapper.
    """
    config = trainable.network.config
    params = trainable.network_params(variables["params"])
    text_files = vocabularies.load(self.text_model).files
    embedder = embedders.MuLanEmbedder(config, params, text_files)
    embeddings, codebooks = mulan_export.fit_rvq(
      embedder,
      self.corpus_dir,
      self.split,
      self.num_codebooks,
      mesh_kmeans.MeshKMeansConfig(
        self.codebook_size,
        seeding=self.seeding,
        num_iterations=self.num_iterations,
      ),
      self.seed,
      self.is_collective,
    )
    if not distributed.is_main():
      return ""
    mapper, fitted = None, {"kind": self.text_mapper}
    if self.text_mapper != "none":
      mapper, fitted = mulan_export.fit_text_mapper(
        self.text_mapper,
        mulan_export.read_pairs(
          embedder, self.corpus_dir, self.mapper_split, self.max_pair_clips
        ),
        self.mapper_strength,
      )
    heldout = mulan_export.read_heldout(
      embedder, self.corpus_dir, self.heldout_split, self.max_pair_clips
    )
    report = mulan_export.report(embeddings, codebooks, mapper, heldout)
    print(modality_gap.describe(report))
    return tokenizers.export_mulan(
      directory,
      config,
      params,
      codebooks,
      text_files,
      {**metadata, "mulan": {**report, "text_mapper": fitted}},
      mapper,
    )


@dataclasses.dataclass(frozen=True)
class StageExporter:
  """Freezes a stage or back end, with the fingerprints of its tokenizers.

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
    trainable: Any,
    variables: Mapping[str, Any],
    directory: str,
    metadata: Mapping[str, Any],
  ) -> str:
    """Writes the artefact; returns its fingerprint.

    Args:
      trainable: a `TokenLM`, or an acoustic back end.
      variables: as trained.
      directory: of the artefact.
      metadata: provenance.
    """
    config = trainable.config
    cache = token_cache.read_config(self.cache_dir)
    used = {segment.stream for segment in config.spec.segments}
    streams = [stream for stream in config.streams if stream.name in used]
    parents = {
      ARTIFACT_OF_STREAM[name]: cache.fingerprints[name] for name in used
    }
    params = jax.device_get(variables["params"])
    if not isinstance(trainable, token_lm.TokenLM):
      return acoustic_stage.export(
        directory,
        acoustic_backends.kind_of(config.network),
        config.spec,
        streams,
        config.network,
        params,
        parents,
        config.precision,
        metadata,
      )
    return stage_lm.export_stage(
      directory,
      config.spec,
      streams,
      config.transformer,
      params,
      parents,
      config.precision,
      config.aligned_conditioning,
      {**metadata, "condition_dropout_rate": config.condition_dropout_rate},
    )
