# SPDX-License-Identifier: Apache-2.0
"""The probe job: a token cache and scores to `probe.json` and a table."""

import argparse
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from musiclm_jax.core import atomic_files, errors, progress
from musiclm_jax.data import score_labels, token_cache
from musiclm_jax.evaluation import probe, summary

FILE_NAME, TABLE_NAME = "probe.json", "probe.md"
# Seconds of the windows of each task; 0 is the whole clip.
WINDOW_SECS = {"pitch_class": 0.24, "chord": 1.0, "tempo": 0, "instrument": 1.0}
# Beside all levels of a codec: the coarse stage's, and about as many bits as
# semantic tokens have.
_FEWER_LEVELS = (4, 1)
_LEVEL_NAMES = {4: "1-4", 1: "1"}
_LAG_SECS = 2.0
_STREAMS = ("semantic", "acoustic")


def _features(
  clip: token_cache.CachedClip,
  config: token_cache.TokenCacheConfig,
  start: float,
  end: float,
  with_rhythm: bool,
) -> dict[str, np.ndarray]:
  """Bags of the codes in a window, of all streams."""
  found = {}
  for name in _STREAMS:
    stream = config.stream(name)
    first = round(start * stream.frame_rate_hz)
    codes = clip.arrays[name][first : round(end * stream.frame_rate_hz)]
    row = probe.bag_of_codes(codes, stream.codebook_size)
    lags = round(_LAG_SECS * stream.frame_rate_hz)
    for levels in (stream.num_codebooks, *_FEWER_LEVELS):
      if levels > stream.num_codebooks:
        continue
      parts = [row[: levels * stream.codebook_size]]
      if with_rhythm:
        parts.append(probe.repeats(codes[:, : min(levels, 4)], lags))
      whole = levels == stream.num_codebooks
      key = name if whole else f"{name} {_LEVEL_NAMES[levels]}"
      found[key] = np.concatenate(parts)
  return found


def _windows(
  task: str, score: Any, secs: float, names: Mapping[str, list[str]]
) -> Iterator[tuple[float, float, int]]:
  """(start, end, label) of the labelled windows of a clip."""
  labels = score_labels.labels_module()
  width = WINDOW_SECS[task] or secs
  for index in range(int(secs / width + 1e-6)):
    start, end = index * width, (index + 1) * width
    if task == "pitch_class":
      label = labels.melody_pitch_class(score, start, end)
    elif task == "chord":
      label = labels.chord(score, start, end)
    else:
      value = score.lead if task == "instrument" else score.tempo
      label = names[task].index(value)
    if label >= 0:
      yield start, end, label


def _examples(
  task: str,
  split: Any,
  config: token_cache.TokenCacheConfig,
  scores: Mapping[str, Any],
  names: Mapping[str, list[str]],
  max_examples: int,
) -> probe.Examples:
  """Labelled windows of a split, evenly thinned to `max_examples`."""
  stream, places = config.stream("semantic"), []
  clips = list(split)
  for clip in clips:
    secs = len(clip.arrays["semantic"]) / stream.frame_rate_hz
    score = scores[clip.clip_id]
    places += [(clip, *rest) for rest in _windows(task, score, secs, names)]
  if len(places) > max_examples:
    kept = np.linspace(0, len(places) - 1, max_examples).round().astype(int)
    places = [places[index] for index in kept]
  if not places:
    raise errors.UserError(f"no window of a split has a label of task {task!r}")
  rows = [
    _features(clip, config, start, end, task == "tempo")
    for clip, start, end, _ in places
  ]
  return probe.Examples(
    {name: np.stack([row[name] for row in rows]) for name in rows[0]},
    np.array([label for *_, label in places]),
    [clip.work_id for clip, *_ in places],
  )


def _check_scores(reader: Any, split: str, scores: Mapping[str, Any]) -> None:
  """The cached clips must be those that the scores describe."""
  for clip in reader[split]:
    score = scores.get(clip.clip_id)
    if score is None or score.captions != clip.captions:
      raise errors.UserError(
        f"clip {clip.clip_id!r} of split {split!r} is not the one that its "
        "score gives now: expected a corpus built by this version"
      )


def run(args: argparse.Namespace) -> str:
  """Runs all probes, writes `probe.json` and `probe.md`; returns the table.

  Raises:
    UserError: if corpus and cache do not belong together.
  """
  reader = token_cache.TokenCacheReader(args.cache_dir)
  splits = ("train", "validation", args.test_split)
  scores = score_labels.read(args.corpus_dir, args.num_processes)
  for split in splits:
    _check_scores(reader, split, scores)
  names = {
    "instrument": sorted({score.lead for score in scores.values()}),
    "tempo": ["slow", "moderate", "fast"],
  }
  results = {}
  with progress.Progress("probes", len(probe.TASKS), unit="task") as bar:
    for task in probe.TASKS:
      parts = [
        _examples(
          task, reader[split], reader.config, scores, names, args.max_examples
        )
        for split in splits
      ]
      results[task] = probe.probe(*parts)
      bar.update()
  text = probe.table(results)
  folder = pathlib.Path(args.output_dir)
  record = {
    "tasks": results,
    "window_secs": WINDOW_SECS,
    "fingerprints": dict(reader.config.fingerprints),
  }
  summary.write_summary(folder / FILE_NAME, record)
  atomic_files.write_text(folder / TABLE_NAME, text + "\n")
  return text
