# SPDX-License-Identifier: Apache-2.0
"""Generated audio against the training set: the clips it is nearest to.

Two measures: the cosine of MuLan windows, and the longest run of semantic
tokens in common. How near is near is told by held-out clips, which cannot have
been copied: what is nearer than all of them is flagged.
"""

import argparse
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.cli import embedding_files, stage_examples
from musiclm_jax.core import artifacts, errors, progress
from musiclm_jax.data import token_cache
from musiclm_jax.evaluation import (
  memorization_search_page,
  optimal_transport,
  summary,
  token_search,
)
from musiclm_jax.systems import bundle as bundle_lib
from musiclm_jax.systems import device_feed, window_programs

FILE_NAME = "memorization_search.json"
PAGE_NAME = "index.html"
FORMAT_VERSION = 1
_MAX_HELDOUT = 1000
_BLOCK_CLIPS = 256
# Of a product of windows, which are many of long clips: 64 MB.
_MAX_COSINES = 1 << 24
# Of caches that were made before clips were cut into windows.
_WINDOW_SECS, _HALO_SECS = 10.0, 1.0


class Query(NamedTuple):
  """A sound that is looked for.

  Attributes:
    name: path, or id of a held-out clip.
    tokens: semantic, int `[frames]`.
    embeddings: MuLan windows at unit length, float32 `[windows, dim]`; no
      windows where there is no MuLan.
  """

  name: str
  tokens: np.ndarray
  embeddings: np.ndarray


def _programs(
  bundle: bundle_lib.Bundle, config: token_cache.TokenCacheConfig
) -> list[Any]:
  """The tokenizers as they made the cache: windows are part of tokens."""
  found: list[Any] = [
    window_programs.SemanticProgram(
      artifacts.load(bundle.paths["semantic"], "semantic"),
      config.semantic_window_secs or _WINDOW_SECS,
      config.semantic_halo_secs if config.semantic_window_secs else _HALO_SECS,
    )
  ]
  if bundle_lib.MULAN in bundle.paths:
    mulan = artifacts.load(bundle.paths[bundle_lib.MULAN], "mulan")
    found.append(window_programs.MuLanProgram(mulan))
  return found


def embed_files(
  bundle: bundle_lib.Bundle,
  config: token_cache.TokenCacheConfig,
  paths: Sequence[pathlib.Path],
) -> tuple[list[Query], list[dict[str, str]]]:
  """Tokens and MuLan windows of audio files, as the cache has them of clips.

  Returns:
    A query for each file that could be read; path and reason of the others.
  """
  programs = _programs(bundle, config)
  feed = device_feed.DeviceFeed(programs)
  codec = artifacts.load(bundle.paths["soundstream"], "soundstream")
  rate_hz = codec.config["sample_rate_hz"]
  skipped: list[dict[str, str]] = []

  def items() -> Iterator[device_feed.Item]:
    for number, path in enumerate(paths):
      try:
        waveform, found_hz = files.read_audio(path)
        waveform = files.resample(waveform, found_hz, rate_hz)
      except errors.UserError as error:
        skipped.append({"path": str(path), "reason": str(error)})
        continue
      audio = window_programs.Audio(waveform, rate_hz)
      cuts = {program.name: program.cut(audio) for program in programs}
      yield device_feed.Item(number, number, cuts, str(path))

  arrived: list[device_feed.Item] = []
  results: dict[tuple[int, str, int], np.ndarray] = {}
  for one in feed.collect(feed.dispatch(items())):
    if isinstance(one, device_feed.Row):
      results[one.item.index, one.program, one.window] = one.result
    else:
      arrived.append(one)
  queries = []
  for item in arrived:
    arrays = {
      name: cut.join(
        [results[item.index, name, n] for n in range(item.num_rows[name])]
      )
      for name, cut in item.cuts.items()
    }
    nothing = np.zeros((0, 1), np.float32)
    queries.append(
      Query(
        item.payload,
        arrays["semantic"][:, 0],
        arrays.get(token_cache.EMBEDDINGS, nothing),
      )
    )
  return queries, skipped


class _Best:
  """The highest scores of each query, and where they are."""

  def __init__(self, num_queries: int, top_k: int):
    self.scores = np.full((num_queries, top_k), -np.inf)
    self.clips = np.full((num_queries, top_k), -1, np.int64)
    self.places = np.zeros((num_queries, top_k, 2), np.int64)

  def add(
    self, query: int, score: float, clip: int, place: tuple[int, int]
  ) -> None:
    """Keeps a score if it is among the highest of its query."""
    row = self.scores[query]
    at = int((row >= score).sum())  # behind equal ones: the first clip stays
    if at == len(row):
      return
    for array, value in (
      (self.scores, score),
      (self.clips, clip),
      (self.places, place),
    ):
      array[query, at + 1 :] = array[query, at:-1].copy()
      array[query, at] = value


def _cosines(
  queries: Sequence[Query], windows: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
  """Number and cosines `[query windows, windows]` of each query with windows.

  Several queries share a product, as far as it stays small.
  """
  most = _MAX_COSINES // max(len(windows), 1)
  group: list[int] = []
  for number, query in enumerate(queries):
    size = len(query.embeddings)
    if not size:
      continue
    if group and size + sum(len(queries[i].embeddings) for i in group) > most:
      yield from _product(queries, group, windows)
      group = []
    group.append(number)
  yield from _product(queries, group, windows)


def _product(
  queries: Sequence[Query], group: Sequence[int], windows: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
  if not group:
    return
  parts = [queries[number].embeddings for number in group]
  cosines = np.concatenate(parts) @ windows.T
  ends = np.cumsum([len(part) for part in parts])
  yield from zip(group, np.split(cosines, ends[:-1]))


def _search_mulan(
  queries: Sequence[Query],
  clips: Sequence[token_cache.CachedClip],
  first: int,
  best: _Best,
) -> None:
  """The nearest windows of a block of clips."""
  windows = [clip.arrays[token_cache.EMBEDDINGS] for clip in clips]
  clip_starts = np.cumsum([0, *map(len, windows)])
  stacked = np.concatenate(windows)
  for number, rows in _cosines(queries, stacked):
    nearest = rows.max(0)
    scores = np.maximum.reduceat(nearest, clip_starts[:-1])
    lowest = best.scores[number, -1]
    for clip in np.flatnonzero(scores > lowest):
      span = slice(clip_starts[clip], clip_starts[clip + 1])
      window = int(nearest[span].argmax())
      place = int(rows[:, clip_starts[clip] + window].argmax()), window
      best.add(number, float(scores[clip]), first + int(clip), place)


def search(
  queries: Sequence[Query], split: Any, top_k: int, ngram: int
) -> tuple[_Best, _Best, dict[tuple[int, int], float]]:
  """Compares queries with all clips of a split, in one pass.

  Args:
    queries: what is looked for.
    split: of a `TokenCacheReader`.
    top_k: clips of each that are kept.
    ngram: see `token_search.TokenQueries`.

  Returns:
    Nearest by MuLan (cosine; places are windows) and by tokens (length of the
    run; places are frames), and by query and clip the n-gram containment.
  """
  by_mulan = _Best(len(queries), top_k)
  by_tokens = _Best(len(queries), top_k)
  containment: dict[tuple[int, int], float] = {}
  wanted = token_search.TokenQueries([q.tokens for q in queries], ngram)
  with progress.Progress("search", len(split), unit="clip") as bar:
    for first in range(0, len(split), _BLOCK_CLIPS):
      end = min(first + _BLOCK_CLIPS, len(split))
      clips = [split[index] for index in range(first, end)]
      _search_mulan(queries, clips, first, by_mulan)
      for index, clip in enumerate(clips, first):
        for run in wanted.find(clip.arrays["semantic"][:, 0]):
          if run.length > by_tokens.scores[run.query, -1]:
            place = run.query_start, run.clip_start
            by_tokens.add(run.query, run.length, index, place)
            containment[run.query, index] = run.containment
      bar.update(len(clips))
  return by_mulan, by_tokens, containment


def _share_below(value: float, others: np.ndarray) -> float | None:
  """Share of held-out clips that are less near."""
  return float((others < value).mean()) if len(others) else None


def _describe(
  number: int,
  query: Query,
  split: Any,
  found: tuple[_Best, _Best, dict[tuple[int, int], float]],
  heldout: tuple[np.ndarray, np.ndarray],
  config: token_cache.TokenCacheConfig,
) -> dict[str, Any]:
  """The entry of one generated file."""
  by_mulan, by_tokens, containment = found
  rate_hz = config.stream("semantic").frame_rate_hz
  record: dict[str, Any] = {
    "file": query.name,
    "secs": round(len(query.tokens) / rate_hz, 3),
    "flagged": [],
    "mulan": [],
    "tokens": [],
  }
  for name, best, others in (
    ("mulan", by_mulan, heldout[0]),
    ("tokens", by_tokens, heldout[1]),
  ):
    for score, clip, place in zip(
      best.scores[number], best.clips[number], best.places[number]
    ):
      if clip < 0:
        continue
      hit = split[int(clip)]
      unit = config.mulan_stride_secs if name == "mulan" else 1 / rate_hz
      entry = {
        "clip_id": hit.clip_id,
        "work_id": hit.work_id,
        "start_secs": round(float(place[0]) * unit, 3),
        "clip_start_secs": round(float(place[1]) * unit, 3),
        "heldout_below": _share_below(score, others),
      }
      if name == "mulan":
        entry["cosine"] = float(score)
      else:
        run = query.tokens[place[0] : place[0] + int(score)]
        weights = optimal_transport.histograms(run[None]).weights
        entry |= {
          "run_tokens": int(score),
          "run_secs": round(score / rate_hz, 3),
          "containment": containment[number, int(clip)],
          "entropy_bits": float(optimal_transport.entropy_bits(weights)[0]),
        }
      record[name].append(entry)
    if len(others) and best.scores[number, 0] > others.max():
      record["flagged"].append(name)
  return record


def _badness(record: dict[str, Any]) -> tuple:
  """Flagged ones first, then by the longest run, then by cosine."""
  run = record["tokens"][0]["run_tokens"] if record["tokens"] else 0
  cosine = record["mulan"][0]["cosine"] if record["mulan"] else -1.0
  return (-len(record["flagged"]), -run, -cosine, record["file"])


def run(args: argparse.Namespace) -> int:
  """Searches the training clips that generated files are nearest to.

  Returns:
    The exit code: 1 if a file could not be read; the others are done then.

  Raises:
    UserError: if parts do not belong together, or there is nothing to do.
  """
  if not args.generated:
    raise errors.UserError("nothing to search for: expected --generated=PATH")
  paths = embedding_files.list_audio(args.generated)
  bundle = bundle_lib.open_bundle(args.bundle)
  reader = token_cache.TokenCacheReader(args.cache_dir)
  config = reader.config
  streams = ["semantic"]
  if bundle_lib.MULAN in bundle.paths:
    streams.append(token_cache.MULAN)
  stage_examples.check_cache(bundle, streams, config, args.cache_dir)
  if args.heldout_split == args.split:
    raise errors.UserError(
      f"--heldout_split={args.heldout_split} is the split that is searched: "
      "expected clips that were not trained on"
    )
  split = reader[args.split]
  queries, skipped = embed_files(bundle, config, paths)
  if not queries:
    raise errors.UserError(
      f"{len(skipped)} of {len(paths)} files cannot be read, the first: "
      f"{skipped[0]['reason']}"
    )
  others = []
  if args.heldout_split:
    clips = reader[args.heldout_split]
    step = max(1, -(-len(clips) // _MAX_HELDOUT))
    for index in range(0, len(clips), step):
      clip = clips[index]
      vectors = clip.arrays.get(token_cache.EMBEDDINGS, np.zeros((0, 1)))
      if token_cache.MULAN not in streams:
        vectors = np.zeros((0, 1), np.float32)
      tokens = clip.arrays["semantic"][:, 0]
      others.append(Query(clip.clip_id, tokens, vectors))
  found = search([*queries, *others], split, args.top_k, args.ngram)
  heldout = tuple(
    np.maximum(best.scores[len(queries) :, 0], low)
    for best, low in ((found[0], -1.0), (found[1], 0.0))
  )
  records = [
    _describe(number, query, split, found, heldout, config)
    for number, query in enumerate(queries)
  ]
  report = {
    "format_version": FORMAT_VERSION,
    "split": args.split,
    "num_clips": len(split),
    "ngram": args.ngram,
    "heldout": {
      "split": args.heldout_split,
      "num_clips": len(others),
      **{
        name: _quantiles(values)
        for name, values in zip(("mulan", "tokens"), heldout)
      },
    },
    "num_flagged": sum(bool(record["flagged"]) for record in records),
    "files": sorted(records, key=_badness),
    "skipped": skipped,
    "fingerprints": bundle.fingerprints,
    "versions": summary.versions(),
  }
  folder = pathlib.Path(args.output_dir)
  summary.write_summary(folder / FILE_NAME, report)
  page = memorization_search_page.write(
    folder / PAGE_NAME, report, args.num_shown
  )
  _print(report)
  print(page)
  return 1 if skipped else 0


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
  if not len(values):
    return None
  names = ("median", "share_95", "highest")
  return dict(zip(names, np.quantile(values, (0.5, 0.95, 1.0)).tolist()))


def _print(report: dict[str, Any]) -> None:
  """The worst files, for a terminal."""
  for record in report["files"][:10]:
    flagged = f"  flagged by {', '.join(record['flagged'])}"
    run = record["tokens"][0] if record["tokens"] else None
    near = record["mulan"][0] if record["mulan"] else None
    cells = [
      f"run {run['run_tokens']} tokens of {run['clip_id']}" if run else "",
      f"cosine {near['cosine']:.3f} with {near['clip_id']}" if near else "",
    ]
    print(
      f"{record['file']}: {'; '.join(filter(None, cells))}"
      f"{flagged if record['flagged'] else ''}"
    )
  print(
    f"{report['num_flagged']} of {len(report['files'])} files are nearer to a "
    f"training clip than all {report['heldout']['num_clips']} held-out clips"
  )
  for one in report["skipped"]:
    print(f"skipped: {one['reason']}")
