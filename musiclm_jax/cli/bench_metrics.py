# SPDX-License-Identifier: Apache-2.0
"""Each metric of clips alone, and the networks that listen to them.

Metrics are timed as an evaluation computes them, from a store on disk, on
random answers of a listener; listeners and chroma on random audio.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from musiclm_jax.cli import benchmarking, embedder_specs
from musiclm_jax.core import errors, protocols
from musiclm_jax.evaluation import (
  chroma_similarity,
  embedding_store,
  hearing,
  prompt_metrics,
  prompt_results,
)

HAS_GIN_FILES = True
_DIM, _NUM_CLASSES, _NUM_WINDOWS = 128, 50, 3
_AUDIO_RATE_HZ = 24000
_SHARD_SIZE = 256
_CHROMA_CLIPS = 4


@dataclasses.dataclass(frozen=True)
class Request:
  """What is timed.

  Attributes:
    num_clips: generated ones, and as many reference clips.
    embedders: specs of networks that listen.
    seconds: of each clip they hear.
    batch_size: clips they hear at once.
  """

  num_clips: int
  embedders: tuple[str, ...]
  seconds: float
  batch_size: int

  def __post_init__(self):
    if self.num_clips < 4:
      raise errors.UserError(f"--num_clips={self.num_clips}: expected >= 4")
    if not 1.0 <= self.seconds < float("inf"):
      raise errors.UserError(f"--seconds={self.seconds}: expected >= 1")
    if self.batch_size < 1:
      raise errors.UserError(f"--batch_size={self.batch_size}: expected >= 1")


class _Random:
  """A listener of which only the answers in a store are asked for."""

  name, fingerprint, published_as = "random", "0" * 16, None
  sample_rate_hz, window_secs, hop_secs = _AUDIO_RATE_HZ, 1.0, 1.0
  embedding_dim, multi_label = _DIM, False
  class_names = tuple(f"class {index}" for index in range(_NUM_CLASSES))

  def settings(self) -> dict[str, Any]:
    return {}

  def embed_text(self, texts: Sequence[str]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(texts), _DIM))

  def embed_audio_windows(self, waveforms, sample_rate_hz):
    raise RuntimeError("asked for a clip that the store should have")

  classify_windows = embed_audio_windows


def load(args: argparse.Namespace) -> Request:
  """The request of a command line."""
  return Request(
    args.num_clips, tuple(args.embedder), args.seconds, args.batch_size
  )


def _store(
  folder: str, keys: Sequence[str], task: str, width: int
) -> embedding_store.EmbeddingStore:
  """A store of random answers for clips, on disk."""
  store = hearing.open_store(folder, _Random(), task, _SHARD_SIZE)
  generator = np.random.default_rng(1)
  for key in keys:
    rows = generator.normal(size=(_NUM_WINDOWS, width)).astype(np.float32)
    store.add(key, rows)
  store.flush()
  return store


def _per_clip(
  work: Callable[[], Any], num_clips: int, timing: benchmarking.Timing
) -> dict[str, Any]:
  """Clips per second of calls that take so many."""
  work()  # What is compiled or read once is not counted.
  found = benchmarking.rates(work, timing)
  return {
    f"clips_per_{name}": num_clips * found[f"calls_per_{name}"]
    for name in ("second", "cpu_second")
  }


def _metrics(count: int, timing: benchmarking.Timing) -> dict[str, Any]:
  names = [f"clip {index}" for index in range(count)]
  keys = {name: f"made {index:08d}" for index, name in enumerate(names)}
  reference = [f"real {index:08d}" for index in range(count)]
  material = prompt_results.Material(
    names=tuple(names),
    keys=keys,
    texts={name: f"text {name}" for name in names},
    reference_keys=tuple(reference),
    pairs=dict(zip(names, reference)),
    num_expected=count,
    num_reference_expected=count,
    reference="random",
    prompts="random",
  )
  ear, every, found = _Random(), [*keys.values(), *reference], {}
  with tempfile.TemporaryDirectory() as folder:
    stores = {
      "embedded": _store(folder, every, hearing.EMBED, _DIM),
      "classified": _store(folder, every, hearing.CLASSIFY, _NUM_CLASSES),
    }
    for metric in prompt_metrics.METRICS:
      kind = "classified" if metric == "kld" else "embedded"

      def work(metric=metric, kind=kind):
        notes: list[str] = []
        compute = getattr(prompt_metrics, kind)
        results = list(compute(ear, stores[kind], material, (metric,), notes))
        if notes or not results:
          raise RuntimeError(f"{metric} was not computed: {notes}")

      found[metric] = _per_clip(work, count, timing)
  return found


def _chroma(clips: np.ndarray) -> None:
  grams = [chroma_similarity.chromagram(x, _AUDIO_RATE_HZ) for x in clips]
  for first, second in zip(grams, grams[1:] + grams[:1]):
    chroma_similarity.similarity(first, second)


def run(request: Request, timing: benchmarking.Timing) -> dict[str, Any]:
  """Clips per second of each metric, and of each listener.

  Raises:
    UserError: if an embedder cannot be opened.
  """
  listeners = {
    spec: embedder_specs.open_listener(spec) for spec in request.embedders
  }
  size = round(request.seconds * _AUDIO_RATE_HZ)
  generator = np.random.default_rng(0)
  audio = 0.1 * generator.standard_normal((request.batch_size, size))
  audio = audio.astype(np.float32)
  found = _metrics(request.num_clips, timing)
  clips = np.resize(audio, (_CHROMA_CLIPS, size))
  found["chroma"] = _per_clip(lambda: _chroma(clips), _CHROMA_CLIPS, timing)
  for spec, listener in listeners.items():
    listen = (
      listener.embed_audio_windows
      if isinstance(listener, protocols.Embedder)
      else listener.classify_windows
    )
    found[f"listening ({spec})"] = _per_clip(
      lambda listen=listen: listen(audio, _AUDIO_RATE_HZ),
      request.batch_size,
      timing,
    )
  return {
    "num_clips": request.num_clips,
    "windows_per_clip": _NUM_WINDOWS,
    "embedding_dim": _DIM,
    "seconds": request.seconds,
    "batch_size": request.batch_size,
    "metrics": found,
  }
