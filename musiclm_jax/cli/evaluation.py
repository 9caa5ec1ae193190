# SPDX-License-Identifier: Apache-2.0
"""The evaluate job: a bundle, a corpus and samples to `evaluation.json`."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.cli import jobs
from musiclm_jax.core import artifacts, errors, stages, streams
from musiclm_jax.data import clips, token_cache
from musiclm_jax.evaluation import (
  codec_metrics,
  mulan_consistency,
  retrieval,
  stage_scores,
  summary,
)
from musiclm_jax.systems import bundle as bundle_lib
from musiclm_jax.systems import musiclm, provenance, stage_lm

FILE_NAME = "evaluation.json"
RECONSTRUCTIONS = "reconstructions"
_SHOWN_COUNTS = (1, 4, 12)
_NUM_SHOWN = 3


def _check_cache(
  bundle: bundle_lib.Bundle, config: token_cache.TokenCacheConfig, where: str
) -> None:
  """The cache must come from the bundle's tokenizers."""
  names = {"acoustic": "soundstream", "semantic": "semantic", "mulan": "mulan"}
  if "melody" in bundle.fingerprints:
    names["melody"] = "melody"
  for stream, mark in config.fingerprints.items():
    if stream not in names:
      continue  # The bundle does without it.
    artifacts.check_fingerprint(
      f"{names[stream]} behind the token cache {where}",
      mark,
      bundle.fingerprints[names[stream]],
    )


def codec_scores(
  system: musiclm.MusicLM, reader: clips.ClipReader, num_clips: int, folder
) -> dict[str, Any]:
  """The codec table on held-out clips; a few are kept to listen to."""
  indices = _spread(len(reader), num_clips)
  found = [reader[index] for index in indices]
  length = min(len(clip.waveform) for clip in found)
  waveforms = np.stack([clip.waveform[:length] for clip in found])
  rate_hz = system.codec.sample_rate_hz
  folder = pathlib.Path(folder) / RECONSTRUCTIONS
  folder.mkdir(parents=True, exist_ok=True)
  codes = system.codec.encode(waveforms[:_NUM_SHOWN])
  most = codes.shape[-1]
  names = []
  for row, clip in enumerate(found[:_NUM_SHOWN]):
    files.write_wav(folder / f"{row}_original.wav", waveforms[row], rate_hz)
    names.append(clip.captions[0] if clip.captions else clip.clip_id)
  for count in _SHOWN_COUNTS:
    if count > most:
      continue
    decoded = system.codec.decode(codes[..., :count])[:, :length]
    for row in range(len(names)):
      files.write_wav(folder / f"{row}_{count}.wav", decoded[row], rate_hz)
  (folder / "names.json").write_text(json.dumps(names))
  counts = [n for n in (1, 2, 4, 8, 12) if n <= most]
  return codec_metrics.codec_table(
    system.codec, waveforms, counts, system.codec.stream.codebook_size
  )


def _spread(total: int, count: int) -> list[int]:
  """At most `count` indices, evenly spread over `total`."""
  if total < 1:
    raise errors.UserError("the held-out split has no clips")
  count = min(total, max(1, count))
  return [index * total // count for index in range(count)]


def mulan_scores(
  system: musiclm.MusicLM, split: Sequence[token_cache.CachedClip]
) -> dict[str, Any]:
  """Retrieval over a split: the first caption of each clip, its audio."""
  captions, embeddings = [], []
  for clip in split:
    if clip.captions:
      captions.append(clip.captions[0])
      mean = clip.arrays[token_cache.EMBEDDINGS].mean(0)
      embeddings.append(mean / max(np.linalg.norm(mean), 1e-12))
  if not captions:
    raise errors.UserError("the held-out split has no captions")
  return retrieval.retrieval(
    system.mulan.embed_text(captions), np.stack(embeddings), captions
  )


def heldout_crops(
  stage: stage_lm.StageLM,
  split: Sequence[token_cache.CachedClip],
  reader: token_cache.TokenCacheReader,
  num_crops: int,
) -> dict[str, np.ndarray]:
  """Whole crops of a stage's length, spread over a split.

  Returns:
    By stream, int32 `[crops, frames, codebooks]`.
  """
  secs = stage.spec.crop_secs
  layout = stages.StageLayout(stage.spec, stage.streams)
  target = layout.target_stream
  per_crop = layout.num_target_frames
  places = [
    (index, start)
    for index, clip in enumerate(split)
    for start in range(0, len(clip.arrays[target.name]) // per_crop)
  ]
  if not places:
    raise errors.UserError(
      f"no held-out clip is as long as a crop of stage {stage.spec.name!r}, "
      f"{secs:g} s"
    )
  names = {segment.stream for segment in stage.spec.segments}
  crops: dict[str, list[np.ndarray]] = {name: [] for name in sorted(names)}
  for place in _spread(len(places), num_crops):
    index, start = places[place]
    clip, start_secs = split[index], start * per_crop / target.frame_rate_hz
    for name, kept in crops.items():
      stream = stage.streams[name]
      if stream.frame_rate_hz == 0:
        codes = token_cache.mulan_codes(
          clip.arrays[token_cache.EMBEDDINGS],
          reader.mulan_codebooks,
          start_secs,
          start_secs + secs,
          reader.config,
        )
      elif stream.has_windows:
        codes = streams.take_windows(
          stream, clip.arrays[name], start_secs, stream.num_frames(secs)
        )
      else:
        first = round(start_secs * stream.frame_rate_hz)
        codes = clip.arrays[name][first : first + stream.num_frames(secs)]
      kept.append(codes)
  return {name: np.stack(kept) for name, kept in crops.items()}


def stage_table(
  system: musiclm.MusicLM,
  reader: token_cache.TokenCacheReader,
  split: Sequence[token_cache.CachedClip],
  num_crops: int,
) -> dict[str, Any]:
  """Cross-entropy of every stage beside unigram and bigram."""
  train = list(reader["train"])
  table = {}
  scored = dict(system.stages)
  scored |= {one.KIND: one for one in system.acoustic.values()}
  known = {stream.name for stream in reader.config.streams}
  if system.melody_stage is not None and "melody" in known:
    scored[system.melody_stage.spec.name] = system.melody_stage
  for name, stage in scored.items():
    target = stage.target_stream
    layout = stages.StageLayout(stage.spec, stage.streams)
    heldout, counted = stage_scores.targets_as_modelled(
      layout,
      heldout_crops(stage, split, reader, num_crops),
      [clip.arrays[target.name] for clip in train],
    )
    table[name] = stage_scores.stage_scores(
      stage,
      heldout,
      counted,
      stage.spec.target,
      layout.num_target_codes,
    )
  return table


def read_samples(folders: Sequence[str]) -> list[dict[str, Any]]:
  """Sidecars of generated files, each with its `path`, in name order."""
  found = []
  for folder in folders:
    for path, record in provenance.sidecars(folder):
      if "prompt" in record:
        found.append({**record, "path": str(path)})
  return found


def consistency(
  system: musiclm.MusicLM, samples: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  """MuLan cycle consistency of samples with their own and other prompts."""
  audio = []
  for sample in samples:
    waveform, rate_hz = files.read_audio(sample["path"])
    audio.append(system.mulan.embed_audio(waveform[None], rate_hz)[0])
  prompts = [sample["prompt"] for sample in samples]
  return mulan_consistency.mulan_consistency(
    system.mulan.embed_text(prompts), np.stack(audio), prompts
  )


def evaluate(job: jobs.EvaluateJob) -> None:
  """Runs every metric and writes `evaluation.json`.

  Raises:
    UserError: if parts are missing or do not belong together.
  """
  bundle = bundle_lib.open_bundle(job.bundle)
  reader = token_cache.TokenCacheReader(job.cache_dir)
  _check_cache(bundle, reader.config, job.cache_dir)
  system = musiclm.MusicLM.load(job.bundle)
  split = list(reader[job.split])
  samples = read_samples(job.samples_dir)
  result = {
    "codec": codec_scores(
      system,
      clips.ClipReader(job.corpus_dir, job.split),
      job.num_codec_clips,
      job.output_dir,
    ),
    "mulan": mulan_scores(system, split),
    "stages": stage_table(system, reader, split, job.num_stage_crops),
    "mcc": consistency(system, samples) if len(samples) > 1 else {},
    "fingerprints": bundle.fingerprints,
  }
  summary.write_summary(pathlib.Path(job.output_dir) / FILE_NAME, result)
  print(json.dumps(result["mulan"], indent=2))
  for name, scores in result["stages"].items():
    numbers = {k: v for k, v in scores.items() if k.endswith("cross_entropy")}
    print(name, json.dumps(numbers))
  print("mcc", json.dumps(result["mcc"]))
