# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the data tests: a small prepared corpus and a token cache."""

import io

import numpy as np
import pytest
import soundfile
from small_corpus import build_corpus

SAMPLE_RATE_HZ = 8000
NUM_TRAIN, NUM_VALIDATION = 13, 5


def ramp_clip(number: int, secs: float) -> np.ndarray:
  """int16 ramp whose samples tell the clip and the position in it."""
  position = np.arange(round(secs * SAMPLE_RATE_HZ))
  return (number * 2000 + position // 10 + 1).astype(np.int16)


def _record(number: int, secs: float) -> dict:
  content = io.BytesIO()
  samples = ramp_clip(number, secs)
  soundfile.write(content, samples, SAMPLE_RATE_HZ, format="FLAC")
  return {
    "id": f"clip{number}",
    "audio": content.getvalue(),
    "sample_rate_hz": SAMPLE_RATE_HZ,
    "num_samples": len(samples),
    "work_id": f"work{number // 2}",
    "arrangement": "piano",
    "captions": [f"Calm piano number {number}", "A slow Song"],
    "aspects": ["calm"],
  }


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory) -> str:
  """A corpus of ramps: 13 train clips of 1.5 s, one of 0.25 s, 5 others."""
  train = [_record(n, 0.25 if n == 3 else 1.5) for n in range(NUM_TRAIN)]
  # Validation numbers go on from the train ones.
  validation = [_record(n % 16, 1.5) for n in range(13, 13 + NUM_VALIDATION)]
  for number, row in enumerate(validation):
    row["id"] = f"validation{number}"
  return build_corpus(
    tmp_path_factory.mktemp("corpus"),
    {"train": train, "validation": validation},
  )


def make_cache_config(**changes):
  """Config of a cache with planted codes, as `cached_clip` makes them."""
  from musiclm_jax.core import streams as streams_lib
  from musiclm_jax.data import token_cache

  values = {
    "streams": (
      streams_lib.TokenStream("mulan", 8, 3),
      streams_lib.TokenStream("semantic", 64, 1, 25.0),
      streams_lib.TokenStream("acoustic", 128, 4, 50.0),
    ),
    "fingerprints": {"mulan": "aa", "semantic": "bb", "acoustic": "cc"},
    "corpus_dir": "/corpora/small",
    "mulan_window_secs": 1.0,
    "mulan_stride_secs": 0.5,
    "shard_size": 4,
  }
  return token_cache.TokenCacheConfig(**{**values, **changes})


def codebooks() -> np.ndarray:
  """MuLan codebooks float32 `[3, 8, 6]`."""
  return np.random.default_rng(5).normal(size=(3, 8, 6)).astype(np.float32)


def cached_clip(number: int, num_semantic_frames: int = 75):
  """Codes that tell their own time: semantic t, acoustic 2t and 2t + 1."""
  from musiclm_jax.data import token_cache

  frames = np.arange(num_semantic_frames)
  acoustic = np.arange(2 * num_semantic_frames)
  levels = np.arange(4)
  rng = np.random.default_rng(number)
  embeddings = rng.normal(size=(max(1, num_semantic_frames // 13 - 1), 6))
  embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
  return token_cache.CachedClip(
    clip_id=f"clip{number}",
    arrays={
      "semantic": ((frames + number) % 64)[:, np.newaxis],
      "acoustic": (acoustic[:, np.newaxis] + 2 * number + 7 * levels) % 128,
      "mulan_embeddings": embeddings.astype(np.float32),
    },
    work_id=f"work{number // 2}",
    captions=(f"caption {number}",),
  )


def write_cache(directory, config, numbers_by_split) -> None:
  """Writes and finishes a cache of planted clips."""
  from musiclm_jax.data import token_cache_writer

  writer = token_cache_writer.TokenCacheWriter(directory, config, codebooks())
  for split, numbers in numbers_by_split.items():
    for shard in writer.pending(split, len(numbers)):
      chosen = numbers[shard.start : shard.end]
      writer.write_shard(shard, (cached_clip(*number) for number in chosen))
  writer.finish({k: len(v) for k, v in numbers_by_split.items()})


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory) -> str:
  """A cache of 11 train clips of 3 s, one of 0.8 s, and 3 for validation."""
  directory = tmp_path_factory.mktemp("cache")
  train = [(n, 20 if n == 4 else 75) for n in range(11)]
  splits = {"train": train, "validation": [(n, 75) for n in range(20, 23)]}
  write_cache(directory, make_cache_config(), splits)
  return str(directory)
