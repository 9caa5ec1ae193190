# SPDX-License-Identifier: Apache-2.0
"""The faults job: recordings and listeners to `faults.json` and a table."""

import argparse
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.audio import faults, files
from musiclm_jax.cli import codec_files, embedder_specs
from musiclm_jax.core import atomic_files, errors, progress, protocols
from musiclm_jax.evaluation import (
  clip_files,
  fault_response,
  hearing,
  metric_card,
  prompt_results,
  summary,
)

FILE_NAME, TABLE_NAME = "faults.json", "faults.md"
CODEC = "codec"
_CODEBOOKS = (4, 1)
_REFERENCE = "reference"
# Of each half, or there is no interval.
_LEAST_WORKS = 3


@dataclasses.dataclass(frozen=True)
class _Clip:
  """A recording that can be read.

  Attributes:
    name: for messages.
    work: what it is taken from; clips of a work stay in one half.
    caption: what is written of it, '' if nothing is.
    file: its audio.
  """

  name: str
  work: str
  caption: str
  file: clip_files.ClipFile


@dataclasses.dataclass(frozen=True)
class _Fault:
  """A fault and what puts it into a batch.

  Attributes:
    kind: of it.
    name: with its strength, in words.
    apply: float32 `[batch, samples]`, its rate in Hz and the seeds of its rows
      to the same shape.
  """

  kind: str
  name: str
  apply: Callable[[np.ndarray, int, Sequence[tuple[int, int]]], np.ndarray]


def _read(folder: str, split: str) -> list[_Clip]:
  path = pathlib.Path(folder)
  if not (path / "dataset_info.json").is_file():
    return [
      _Clip(file.name, file.name, "", file)
      for file in clip_files.of_folder(folder)
    ]
  from musiclm_jax.data import clips

  reader = clips.ClipReader(folder, split)
  found = []
  for index in range(len(reader)):
    texts = reader.texts(index)
    file = clip_files.ClipFile(
      texts.clip_id, lambda index=index: reader.record(index).audio
    )
    caption = texts.captions[0] if texts.captions else ""
    found.append(_Clip(texts.clip_id, texts.work_id, caption, file))
  return found


def split_works(
  works: Sequence[str], max_items: int, seed: int
) -> tuple[list[int], list[int]]:
  """Items of two halves of the works, evenly thinned.

  Args:
    works: of each item.
    max_items: of both halves together.
    seed: of the draw.

  Returns:
    Places of items; no work is in both.

  Raises:
    UserError: if there are fewer than 2 works.
  """
  names = sorted(set(works))
  if len(names) < 2:
    raise errors.UserError(
      f"{len(names)} works: expected at least 2, one for each half"
    )
  order = np.random.default_rng(seed).permutation(len(names))
  first = {names[place] for place in order[::2]}
  parts = []
  for is_first in (True, False):
    mine = [i for i, work in enumerate(works) if (work in first) == is_first]
    count = min(len(mine), max(max_items // 2, 1))
    kept = np.linspace(0, len(mine) - 1, count).astype(int)
    parts.append([mine[place] for place in kept])
  return parts[0], parts[1]


def _faults(codec: Any) -> list[_Fault]:
  """All faults; those of a kind together, the slightest first."""

  def changed(kind: str, level: float):
    def apply(waveforms, rate_hz, seeds):
      return np.stack(
        [
          faults.apply(kind, level, row, rate_hz, np.random.default_rng(seed))
          for row, seed in zip(waveforms, seeds)
        ]
      )

    return _Fault(kind, faults.label(kind, level), apply)

  def copied(count: int):
    def apply(waveforms, rate_hz, seeds):
      del seeds
      own_hz, length = codec.sample_rate_hz, waveforms.shape[1]
      native = [files.resample(row, rate_hz, own_hz) for row in waveforms]
      codes = codec.encode(np.stack(native))[..., :count]
      back = [
        files.resample(row, own_hz, rate_hz) for row in codec.decode(codes)
      ]
      return np.stack(
        [np.pad(row, (0, max(length - len(row), 0)))[:length] for row in back]
      ).astype(np.float32)

    name = f"{count} codebook{'s' if count > 1 else ''}"
    return _Fault(CODEC, name, apply)

  found = [
    changed(kind, level)
    for kind, levels in faults.LEVELS.items()
    for level in levels
  ]
  if codec is not None:
    channels = getattr(codec.config, "num_channels", 1)
    if channels != 1:
      raise errors.UserError(
        f"--codec with {channels} channels: expected 1, as listeners hear mono"
      )
    most = codec.stream.num_codebooks
    counts = [most, *(count for count in _CODEBOOKS if count < most)]
    found += [copied(count) for count in counts]
  return found


def _batches(
  clips: Sequence[_Clip],
  seconds: float,
  batch_size: int,
  left_out: list[str],
) -> Iterator[tuple[np.ndarray, int, list[int]]]:
  """Waveforms of one rate, the rate, and which clips they are."""
  group, rate_hz, places = [], 0, []
  for place, clip in enumerate(clips):
    try:
      waveform, found_hz = clip.file.decode(clip.file.read())
    except errors.UserError as error:
      left_out.append(str(error))
      continue
    length = round(seconds * found_hz)
    if len(waveform) < length:
      left_out.append(
        f"{clip.name} has {len(waveform) / found_hz:.1f} s: expected "
        f"{seconds:g}"
      )
      continue
    if group and (found_hz != rate_hz or len(group) == batch_size):
      yield np.stack(group), rate_hz, places
      group, places = [], []
    group.append(waveform[:length])
    rate_hz = found_hz
    places.append(place)
  if group:
    yield np.stack(group), rate_hz, places


class _Ear:
  """A listener, and what it has heard of each version, clip by clip."""

  def __init__(self, listener: protocols.Listener):
    self.listener = listener
    self._vectors: dict[str, list[np.ndarray]] = {}
    self._logits: dict[str, list[np.ndarray]] = {}

  def hear(self, version: str, waveforms: np.ndarray, rate_hz: int) -> None:
    """Adds a batch `[batch, samples]` to a version."""
    vectors = self._vectors.setdefault(version, [])
    logits = self._logits.setdefault(version, [])
    if isinstance(self.listener, protocols.Embedder):
      vectors += list(self.listener.embed_audio_windows(waveforms, rate_hz))
    if isinstance(self.listener, protocols.Classifier):
      logits += list(self.listener.classify_windows(waveforms, rate_hz))

  def heard(self, version: str, works: Sequence[str]) -> fault_response.Heard:
    """All batches of a version."""
    return fault_response.Heard(
      self._vectors[version], self._logits[version], works
    )

  def text_vectors(self, captions: Sequence[str]) -> np.ndarray | None:
    """Of the captions, if there are any and they can be embedded."""
    if not all(captions):
      return None
    if not isinstance(self.listener, protocols.TextEmbedder):
      return None
    return self.listener.embed_text(captions)


def _listen(
  ears: Sequence[_Ear],
  clips: Sequence[_Clip],
  versions: Sequence[_Fault],
  args: argparse.Namespace,
  bar: progress.Progress,
) -> tuple[list[_Clip], list[str]]:
  """All listeners hear all versions of clips.

  Returns:
    The clips that were heard, and why others were not.
  """
  heard, left_out = [], []
  batches = _batches(clips, args.seconds, args.batch_size, left_out)
  for waveforms, rate_hz, places in batches:
    for version in versions:
      seeds = [(args.seed, place) for place in places]
      changed = version.apply(waveforms, rate_hz, seeds)
      for ear in ears:
        ear.hear(version.name, changed, rate_hz)
      bar.update(len(places))
    heard += [clips[place] for place in places]
  bar.update(len(left_out) * len(versions))
  if len({clip.work for clip in heard}) < _LEAST_WORKS:
    raise errors.UserError(
      f"{len(heard)} clips of a half can be heard: expected those of at least "
      f"{_LEAST_WORKS} works"
      + (f"; the first that cannot: {left_out[0]}" if left_out else "")
    )
  return heard, left_out


def run(args: argparse.Namespace) -> str:
  """Listens, writes `faults.json` and `faults.md`; returns the table.

  Raises:
    UserError: if an option, a listener or the recordings cannot be used.
  """
  if args.max_clips < 2 or args.batch_size < 1:
    raise errors.UserError(
      f"--max_clips={args.max_clips}, --batch_size={args.batch_size}: expected "
      "at least 2 and at least 1"
    )
  if not 0 < args.seconds < math.inf:
    raise errors.UserError(f"--seconds={args.seconds:g}: expected > 0")
  everything = _read(args.reference, args.split)
  works = [clip.work for clip in everything]
  halves = [
    [everything[place] for place in half]
    for half in split_works(works, args.max_clips, args.seed)
  ]
  ears = [_Ear(embedder_specs.open_listener(text)) for text in args.embedder]
  codec = codec_files.load_codec(args.codec) if args.codec else None
  clean = _Fault(fault_response.CLEAN, fault_response.CLEAN, _unchanged)
  versions = [clean, *_faults(codec)]
  total = len(halves[0]) + len(halves[1]) * len(versions)
  with progress.Progress("faults", total, unit="clip") as bar:
    whole = dataclasses.replace(clean, name=_REFERENCE)
    reference, bad = _listen(ears, halves[0], [whole], args, bar)
    clips, more = _listen(ears, halves[1], versions, args, bar)
  results = [_result(ear, reference, clips, versions) for ear in ears]
  text = "\n\n".join(table(result) for result in results)
  folder = pathlib.Path(args.output_dir)
  record = {
    "reference": args.reference,
    "seconds": args.seconds,
    "seed": args.seed,
    "codec": codec.fingerprint if codec else None,
    "halves": [_about(half) for half in (reference, clips)],
    "left_out": [*bad, *more],
    "listeners": results,
    "versions": summary.versions(),
  }
  summary.write_summary(folder / FILE_NAME, record)
  atomic_files.write_text(folder / TABLE_NAME, text + "\n")
  return text


def _unchanged(
  waveforms: np.ndarray, rate_hz: int, seeds: Sequence[Any]
) -> np.ndarray:
  del rate_hz, seeds
  return waveforms


def _about(clips: Sequence[_Clip]) -> dict[str, Any]:
  return {
    "num_clips": len(clips),
    "num_works": len({clip.work for clip in clips}),
    "fingerprint": metric_card.fingerprint_of(clip.name for clip in clips),
  }


def _result(
  ear: _Ear,
  reference: Sequence[_Clip],
  clips: Sequence[_Clip],
  versions: Sequence[_Fault],
) -> dict[str, Any]:
  """Numbers and verdicts of a listener, JSON-compatible."""
  works = [clip.work for clip in clips]
  rows = fault_response.respond(
    ear.heard(_REFERENCE, [clip.work for clip in reference]),
    [
      fault_response.Version(one.kind, one.name, ear.heard(one.name, works))
      for one in versions
    ],
    ear.text_vectors([clip.caption for clip in clips]),
    getattr(ear.listener, "multi_label", True),
  )
  return {
    "listener": hearing.describe(ear.listener, "embed and classify"),
    "titles": {name: titles(ear.listener)[name] for name in rows[0].values},
    "rows": [row.to_dict() for row in rows],
    "verdicts": [
      dataclasses.asdict(verdict) for verdict in fault_response.verdicts(rows)
    ],
  }


def titles(listener: protocols.Listener) -> dict[str, str]:
  """What the metrics may be called; see `prompt_results.title`."""
  fad = prompt_results.title(listener, "fad")
  return {
    fault_response.FAD: fad,
    fault_response.DIAGONAL_FAD: f"{fad}, diagonal",
    fault_response.KAD: prompt_results.title(listener, "kad"),
    fault_response.KLD: prompt_results.title(listener, "kld"),
    fault_response.TEXT: prompt_results.title(listener, "text"),
  }


def table(result: Mapping[str, Any]) -> str:
  """Two tables: numbers, and what each metric tells apart.

  Args:
    result: of one listener, as in `faults.json`.
  """
  names = result["titles"]
  lines = [
    f"| {' | '.join(['heard', *names.values()])} |",
    f"|{'---|' * (len(names) + 1)}",
  ]
  for row in result["rows"]:
    cells = [_interval(row["values"][name]) for name in names]
    lines.append(f"| {' | '.join([row['name'], *cells])} |")
  lines += [
    "",
    "The slightest fault from which on all are told from the clips as they are "
    '(95 %, by the difference of the same clips); "not in order" where the '
    "metric does not get worse with every step.",
    "",
    lines[0].replace("heard", "fault", 1),
    lines[1],
  ]
  verdicts = {(v["kind"], v["metric"]): v for v in result["verdicts"]}
  for kind in dict.fromkeys(v["kind"] for v in result["verdicts"]):
    cells = [_verdict(verdicts[kind, name]) for name in names]
    lines.append(f"| {' | '.join([kind, *cells])} |")
  return "\n".join(lines)


def _interval(found: Mapping[str, float]) -> str:
  mean, low, high = (found[end] for end in ("mean", "low", "high"))
  if math.isnan(low):
    return f"{mean:.3g}"
  return f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def _verdict(verdict: Mapping[str, Any]) -> str:
  told = verdict["slightest"] or "none"
  return told if verdict["is_ordered"] else f"{told}; not in order"
