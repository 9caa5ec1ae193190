# SPDX-License-Identifier: Apache-2.0
"""The tokenize job: clips of a corpus to shards of a token cache."""

import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from musiclm_jax.core import errors, progress
from musiclm_jax.data import clips, token_cache, token_cache_writer
from musiclm_jax.systems import tokenizers


class ClipTokenizer:
  """The three frozen tokenizers over batches of clips."""

  def __init__(self, artifact_dir: str | os.PathLike):
    """Loads `soundstream`, `semantic` and `mulan` below `artifact_dir`."""
    root = pathlib.Path(artifact_dir)
    self.codec = tokenizers.SoundStreamTokenizer.load(root / "soundstream")
    self.semantic = tokenizers.SemanticTokenizer.load(root / "semantic")
    self.mulan = tokenizers.MuLanTokenizer.load(root / "mulan")

  def config(self, corpus_dir: str) -> token_cache.TokenCacheConfig:
    """What a cache made with these tokenizers holds."""
    parts = (self.codec, self.semantic, self.mulan)
    return token_cache.TokenCacheConfig(
      streams=tuple(part.stream for part in parts),
      fingerprints={part.stream.name: part.fingerprint for part in parts},
      corpus_dir=str(corpus_dir),
      mulan_window_secs=self.mulan.config.window_secs,
    )

  def __call__(self, group: Sequence[clips.Clip]) -> list[dict]:
    """Arrays of each clip of a group of equal length."""
    waveform = np.stack([clip.waveform for clip in group])
    rate_hz = group[0].sample_rate_hz
    if rate_hz != self.codec.sample_rate_hz:
      raise errors.UserError(
        f"clip {group[0].clip_id!r} has {rate_hz} Hz: the codec was trained "
        f"on {self.codec.sample_rate_hz} Hz"
      )
    acoustic = self.codec.encode(waveform)
    semantic = self.semantic.encode(waveform, rate_hz)
    windows = self.mulan.embed_windows(waveform, rate_hz)
    return [
      {
        "acoustic": acoustic[row],
        "semantic": semantic[row],
        token_cache.EMBEDDINGS: windows[row],
      }
      for row in range(len(group))
    ]


def _cached_clips(
  reader: clips.ClipReader,
  shard: token_cache_writer.Shard,
  tokenizer: ClipTokenizer,
  batch_size: int,
  skipped: list[str],
) -> Iterator[token_cache.CachedClip]:
  """Tokenized clips of a shard; bad ones are named in `skipped`."""
  for group in reader.batches(shard.start, shard.end, batch_size):
    good = []
    for clip in group:
      if len(clip.waveform) and np.isfinite(clip.waveform).all():
        good.append(clip)
      else:
        logging.warning("clip %s is empty or not finite", clip.clip_id)
        skipped.append(clip.clip_id)
    if not good:
      continue
    for clip, arrays in zip(good, tokenizer(good)):
      yield token_cache.CachedClip(
        clip.clip_id, arrays, clip.work_id, clip.captions
      )


def tokenize_corpus(
  corpus_dir: str,
  artifact_dir: str,
  output_dir: str,
  splits: Sequence[str] = (),
  batch_size: int = 16,
  max_bad_fraction: float = 0.01,
) -> None:
  """Writes a token cache, or goes on with an unfinished one.

  Args:
    corpus_dir: a prepared corpus.
    artifact_dir: folder of the frozen tokenizers.
    output_dir: the cache.
    splits: of the corpus; all by default.
    batch_size: clips per call of a tokenizer.
    max_bad_fraction: of clips that may be skipped.

  Raises:
    UserError: if something is missing, tokenizers differ from those of an
      existing cache, or too many clips are bad.
  """
  splits = list(splits) or clips.split_names(corpus_dir)
  readers = {split: clips.ClipReader(corpus_dir, split) for split in splits}
  sizes = {split: len(reader) for split, reader in readers.items()}
  tokenizer = ClipTokenizer(artifact_dir)
  writer = token_cache_writer.TokenCacheWriter(
    output_dir, tokenizer.config(corpus_dir), tokenizer.mulan.codebooks
  )
  pending = {
    split: list(writer.pending(split, sizes[split])) for split in splits
  }
  todo = sum(s.end - s.start for shards in pending.values() for s in shards)
  total = sum(sizes.values())
  skipped: list[str] = []
  with progress.Progress("tokenize", total, total - todo, "clip") as bar:
    for split, shards in pending.items():
      for shard in shards:
        of_shard: list[str] = []
        writer.write_shard(
          shard,
          _counted(
            _cached_clips(
              readers[split], shard, tokenizer, batch_size, of_shard
            ),
            bar,
          ),
          of_shard,
        )
        skipped += of_shard
  if len(skipped) > max_bad_fraction * total:
    raise errors.UserError(
      f"{len(skipped)} of {total} clips are bad, more than "
      f"max_bad_fraction={max_bad_fraction}: {skipped[:5]}"
    )
  counts = writer.finish(sizes)
  print(f"{output_dir}: {counts}")


def _counted(items: Iterator, bar: progress.Progress) -> Iterator:
  for item in items:
    yield item
    bar.update()
