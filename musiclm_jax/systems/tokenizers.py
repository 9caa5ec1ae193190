# SPDX-License-Identifier: Apache-2.0
"""Frozen tokenizers: artefacts in; numpy waveforms and texts to codes.

Each tokenizer is exported once (`export_*`), loaded by its class, and never
changed. `semantic_clusters.py`, `mulan_rvq.py` and `text_mapper.py` fit what
two of them add to a network. Codes are int32 `[batch, frames, codebooks]`
(`core/streams.py`).
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from musiclm_jax.core import artifacts, errors, rvq, streams
from musiclm_jax.layers import kmeans
from musiclm_jax.networks import mulan, semantic_encoders, soundstream
from musiclm_jax.systems import codec_streams, embedders
from musiclm_jax.systems import text_mapper as text_mapper_lib

# Longer audio goes through the codec piece by piece, in constant memory.
LONG_SECS = 60.0
_MAX_STREAMS = 8

# Of the fingerprint of a codec whose codes are those of denoised sound.
DENOISE_SUFFIX = "+denoise"


def _host(tree: Any) -> Any:
  return jax.tree.map(np.asarray, jax.device_get(tree))


def _as_codebooks(codebooks: np.ndarray, code_dim: int) -> np.ndarray:
  codebooks = np.asarray(codebooks, np.float32)
  if codebooks.ndim != 3 or codebooks.shape[-1] != code_dim:
    raise ValueError(
      f"codebooks have shape {codebooks.shape}: expected [codebooks, "
      f"codebook_size, {code_dim}]"
    )
  return codebooks


def export_soundstream(
  directory: str | os.PathLike,
  config: soundstream.SoundStreamConfig,
  params: Mapping[str, Any],
  codebooks: Mapping[str, Any],
  metadata: Mapping[str, Any] | None = None,
) -> str:
  """Writes a codec.

  Args:
    directory: target.
    config: of the network.
    params: encoder and decoder (unboxed); what else is in it (the
      discriminators) is left out.
    codebooks: the 'codebooks' collection.
    metadata: provenance.

  Returns:
    The fingerprint.

  Raises:
    ValueError: if encoder, decoder or another part is missing.
  """
  parts = ("encoder", "decoder") + (() if config.film == "none" else ("film",))
  if config.quantizer_kind == "fsq":
    parts += ("quantizer",)
  missing = [name for name in parts if name not in params]
  if missing:
    raise ValueError(
      f"params have {sorted(params)}: {missing} expected beside them"
    )
  return artifacts.save(
    directory,
    "soundstream",
    artifacts.config_to_dict(config),
    {
      "params": _host({name: params[name] for name in parts}),
      "codebooks": _host(codebooks),
    },
    metadata,
  )


def _denoising(
  config: soundstream.SoundStreamConfig, arrays: Mapping[str, Any]
) -> dict[str, Any]:
  """Arrays of a codec whose switch is on for good.

  Both settings of the flag get the parameters of the denoising one, so that
  no call, nor a stream, has to pass it.

  Raises:
    UserError: if the codec has no switch.
  """
  if config.film == "none":
    raise errors.UserError(
      "denoise=True: this codec was trained without film, it has no switch"
    )
  params = dict(arrays["params"])
  kernel = np.asarray(params["film"]["kernel"])
  params["film"] = {"kernel": np.stack([kernel[1], kernel[1]])}
  return {**arrays, "params": params}


class SoundStreamTokenizer:
  """A frozen codec.

  Attributes:
    config: of the network.
    stream: 'acoustic'.
    sample_rate_hz: of the waveforms.
    fingerprint: of the artefact.
  """

  def __init__(self, artifact: artifacts.Artifact, denoise: bool = False):
    """Rebuilds the network of a loaded artefact.

    Args:
      artifact: of kind 'soundstream'.
      denoise: sets the codec's switch (SoundStream sec. III-F). Where it is
        before the quantizer, codes depend on it, and so does `fingerprint`.

    Raises:
      UserError: if `denoise` is set for a codec without the switch.
    """
    config = artifacts.config_from_dict(
      soundstream.SoundStreamConfig, artifact.config
    )
    self.config = config
    self.sample_rate_hz = config.sample_rate_hz
    self.fingerprint = artifact.fingerprint
    arrays = _denoising(config, artifact.arrays) if denoise else artifact.arrays
    if denoise and config.film == "encoder":
      self.fingerprint += DENOISE_SUFFIX
    self.stream = streams.TokenStream(
      "acoustic",
      config.codebook_size,
      config.num_codebooks,
      config.frame_rate_hz,
    )
    network = soundstream.SoundStream(config)
    self._variables = jax.device_put(arrays)
    self._streaming = codec_streams.StreamingCodec(config, self._variables)
    self._encode = jax.jit(
      lambda variables, x: network.apply(variables, x, method=network.encode)
    )
    self._decode = jax.jit(
      lambda variables, x: network.apply(variables, x, method=network.decode)
    )

  @classmethod
  def load(
    cls, directory: str | os.PathLike, denoise: bool = False
  ) -> "SoundStreamTokenizer":
    """Opens an artefact of kind 'soundstream', verified.

    Raises:
      UserError: if it is missing, damaged or of another kind.
    """
    return cls(artifacts.load(directory, "soundstream"), denoise)

  def encode(self, waveform: np.ndarray) -> np.ndarray:
    """Waveforms to codes.

    The network is causal, so the zeros that fill a bucket change no code of
    a frame before them. Memory for the network does not grow beyond what
    `LONG_SECS` of audio need.

    Args:
      waveform: float32 `[batch, samples]` in [-1, 1] at `sample_rate_hz`;
        `[batch, samples, 2]` where `config.num_channels` is 2.

    Returns:
      int32 `[batch, ceil(samples / hop_length), codebooks]`.
    """
    channels = self.config.num_channels
    waveform = codec_streams.check_waveform(waveform, channels)
    if 0 in waveform.shape:
      raise ValueError(f"waveform has shape {waveform.shape}: it is empty")
    frames = self.config.num_frames(waveform.shape[1])
    if self._is_long(frames):
      return self._in_pieces(self.stream_encoder, waveform)
    padded = self._bucket(frames) * self.config.hop_length
    codes = embedders.in_chunks(
      lambda part: self._encode(self._variables, part),
      embedders.pad_axis(waveform, padded),
    )
    return codes[:, :frames].astype(np.int32)

  def decode(self, codes: np.ndarray) -> np.ndarray:
    """Codes to waveforms.

    Args:
      codes: int32 `[batch, frames, levels]`, the first `levels` codebooks.

    Returns:
      float32 `[batch, frames * hop_length]` (and channels).

    Raises:
      ValueError: if the shape or a code is out of range.
    """
    most = self.stream.num_codebooks
    codes = np.asarray(codes, np.int32)
    if 0 in codes.shape:
      raise ValueError(
        f"codes have shape {codes.shape}: expected [batch, frames, 1 to {most}]"
      )
    codes = codec_streams.check_codes(codes, self.stream.codebook_size, most)
    frames = codes.shape[1]
    if self._is_long(frames):
      return self._in_pieces(self.stream_decoder, codes)
    waveform = embedders.in_chunks(
      lambda part: self._decode(self._variables, part),
      embedders.pad_axis(codes, self._bucket(frames)),
    )
    return waveform[:, : frames * self.config.hop_length].astype(np.float32)

  def stream_encoder(
    self, batch_size: int = 1, chunk_frames: int = 1, num_codebooks: int = 0
  ) -> codec_streams.StreamEncoder:
    """Audio in pieces of any length to codes; what `encode` gives in all."""
    return codec_streams.StreamEncoder(
      self._streaming, batch_size, chunk_frames, num_codebooks
    )

  def stream_decoder(
    self, batch_size: int = 1, chunk_frames: int = 1
  ) -> codec_streams.StreamDecoder:
    """Codes in pieces to audio; what `decode` gives in all."""
    return codec_streams.StreamDecoder(
      self._streaming, batch_size, chunk_frames
    )

  def _is_long(self, frames: int) -> bool:
    return frames > LONG_SECS * self.config.frame_rate_hz

  def _in_pieces(self, make: Any, array: np.ndarray) -> np.ndarray:
    """`array` through a stream, a few rows at a time."""
    results = []
    for start in range(0, len(array), _MAX_STREAMS):
      rows = array[start : start + _MAX_STREAMS]
      stream = make(len(rows), codec_streams.MAX_CALL_FRAMES)
      results.append(np.concatenate([stream.push(rows), stream.flush()], 1))
    return np.concatenate(results)

  def _bucket(self, frames: int) -> int:
    return embedders.bucket(frames, max(1, round(self.config.frame_rate_hz)))


def export_semantic(
  directory: str | os.PathLike,
  config: semantic_encoders.Config,
  params: Mapping[str, Any],
  mean: np.ndarray,
  std: np.ndarray,
  centroids: np.ndarray,
  metadata: Mapping[str, Any] | None = None,
) -> str:
  """Writes a semantic tokenizer.

  Args:
    directory: target.
    config: of the network.
    params: of the network (unboxed).
    mean: float32 `[dim]`, see `systems/semantic_clusters.py`.
    std: float32 `[dim]`.
    centroids: float32 `[clusters, dim]`.
    metadata: provenance.

  Returns:
    The fingerprint.
  """
  dim = config.feature_dim
  centroids = _as_codebooks(np.asarray(centroids)[None], dim)[0]
  quantizer = {
    "mean": np.asarray(mean, np.float32).reshape(dim),
    "std": np.asarray(std, np.float32).reshape(dim),
    "centroids": centroids,
  }
  return artifacts.save(
    directory,
    "semantic",
    semantic_encoders.to_settings(config),
    {"params": _host(params), "quantizer": quantizer},
    metadata,
  )


class SemanticTokenizer:
  """A frozen w2v-BERT, or an imported encoder, with clusters.

  Attributes:
    stream: 'semantic', one codebook.
    sample_rate_hz: rate the network listens at; others are resampled.
    fingerprint: of the artefact.
    features: waveforms to features, before the clusters.
  """

  def __init__(self, artifact: artifacts.Artifact):
    """Rebuilds the network of a loaded artefact."""
    config = semantic_encoders.from_settings(artifact.config)
    self.features = embedders.SemanticFeatures(
      config, artifact.arrays["params"]
    )
    quantizer = artifact.arrays["quantizer"]
    self._mean, self._std = quantizer["mean"], quantizer["std"]
    self._centroids = quantizer["centroids"]
    self.sample_rate_hz = config.sample_rate_hz
    self.fingerprint = artifact.fingerprint
    self.stream = streams.TokenStream(
      "semantic", len(self._centroids), 1, config.frame_rate_hz
    )

  @classmethod
  def load(cls, directory: str | os.PathLike) -> "SemanticTokenizer":
    """Opens an artefact of kind 'semantic', verified.

    Raises:
      UserError: if it is missing, damaged or of another kind.
    """
    return cls(artifacts.load(directory, "semantic"))

  def encode(self, waveform: np.ndarray, sample_rate_hz: float) -> np.ndarray:
    """Waveforms to codes.

    Args:
      waveform: float32 `[batch, samples]` in [-1, 1].
      sample_rate_hz: its rate.

    Returns:
      int32 `[batch, frames, 1]`; 10 s give 250 frames.
    """
    features = self.features(waveform, sample_rate_hz)
    points = ((features - self._mean) / self._std).reshape(
      -1, features.shape[-1]
    )
    # Few shapes here too.
    padded = embedders.pad_axis(
      points, embedders.bucket(len(points), 4096), axis=0
    )
    codes, _ = kmeans.assign(padded, self._centroids)
    codes = np.asarray(codes)[: len(points)]
    return codes.reshape(*features.shape[:2], 1).astype(np.int32)


def export_mulan(
  directory: str | os.PathLike,
  config: mulan.MuLanConfig,
  params: Mapping[str, Any],
  codebooks: np.ndarray,
  text_files: Mapping[str, bytes],
  metadata: Mapping[str, Any] | None = None,
  text_mapper: text_mapper_lib.TextMapper | None = None,
) -> str:
  """Writes a MuLan tokenizer.

  Args:
    directory: target.
    config: of both towers.
    params: of both towers (unboxed).
    codebooks: float32 `[codebooks, codebook_size, output_dim]`.
    text_files: `files` of the text vocabulary (`core/vocabularies.py`).
    metadata: provenance.
    text_mapper: moves text embeddings before they are quantized; part of the
      fingerprint.

  Returns:
    The fingerprint.
  """
  codebooks = _as_codebooks(codebooks, config.output_dim)
  arrays = {"params": _host(params), "codebooks": codebooks}
  if text_mapper is not None:
    arrays["text_mapper"] = text_mapper.to_arrays()
  return artifacts.save(
    directory,
    "mulan",
    artifacts.config_to_dict(config),
    arrays,
    metadata,
    text_files,
  )


class MuLanTokenizer(embedders.MuLanEmbedder):
  """A frozen MuLan with the RVQ of its embedding.

  Attributes:
    stream: 'mulan', one frame per clip.
    codebooks: float32 `[codebooks, codebook_size, output_dim]`.
    text_mapper: moves text embeddings before they are quantized; or None.
    fingerprint: of the artefact.
  """

  def __init__(self, artifact: artifacts.Artifact):
    """Rebuilds the network of a loaded artefact."""
    super().__init__(
      artifacts.config_from_dict(mulan.MuLanConfig, artifact.config),
      artifact.arrays["params"],
      artifact.files,
    )
    self.codebooks = artifact.arrays["codebooks"]
    mapper = artifact.arrays.get("text_mapper")
    self.text_mapper = (
      None if mapper is None else text_mapper_lib.TextMapper.from_arrays(mapper)
    )
    self.fingerprint = artifact.fingerprint
    levels, size, _ = self.codebooks.shape
    self.stream = streams.TokenStream("mulan", size, levels, 0.0)

  @classmethod
  def load(cls, directory: str | os.PathLike) -> "MuLanTokenizer":
    """Opens an artefact of kind 'mulan', verified.

    Raises:
      UserError: if it is missing, damaged or of another kind.
    """
    return cls(artifacts.load(directory, "mulan"))

  def quantize(self, embeddings: np.ndarray) -> np.ndarray:
    """Embeddings `[batch, output_dim]` to int32 `[batch, 1, codebooks]`."""
    return rvq.encode(np.asarray(embeddings), self.codebooks)[:, None]

  def prompt_embeddings(self, texts: Sequence[str]) -> np.ndarray:
    """Texts to float32 `[batch, output_dim]`, what generation starts from.

    Here alone the text mapper is used: scores compare the towers as they are.
    """
    embeddings = self.embed_text(texts)
    if self.text_mapper is not None:
      embeddings = self.text_mapper(embeddings)
    return embeddings

  def encode_text(self, texts: Sequence[str]) -> np.ndarray:
    """`prompt_embeddings`, quantized to int32 `[batch, 1, codebooks]`."""
    return self.quantize(self.prompt_embeddings(texts))

  def encode(self, waveform: np.ndarray, sample_rate_hz: float) -> np.ndarray:
    """Waveforms, as `embed_windows`, to int32 `[batch, 1, codebooks]`."""
    return self.quantize(self.embed_audio(waveform, sample_rate_hz))
