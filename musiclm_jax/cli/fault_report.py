# SPDX-License-Identifier: Apache-2.0
"""The faults job: recordings and listeners to `faults.json` and a table."""

import argparse
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.audio import faults, files
from musiclm_jax.cli import codec_files, embedder_specs, fault_clips
from musiclm_jax.core import atomic_files, errors, progress, protocols
from musiclm_jax.evaluation import (
  fault_response,
  hearing,
  metric_card,
  mulan_consistency,
  prompt_results,
  summary,
)

FILE_NAME, TABLE_NAME = "faults.json", "faults.md"
CODEC = "codec"
_CODEBOOKS = (4, 1)
GENERATED = "generated"
OTHER_PROMPTS = "generated for other prompts"
_REFERENCE = "reference"
_Seed = tuple[int, int]
# Of each half, or there is no interval.
_LEAST_WORKS = 3
# Shorter sounds hold no piece to shuffle.
_LEAST_SECS = 0.2


@dataclasses.dataclass(frozen=True)
class _Fault:
  """A fault and what puts it into clips.

  Attributes:
    kind: of it.
    name: with its strength, in words.
    apply: a batch and a seed for each of its clips to float32
      `[batch, samples]`.
  """

  kind: str
  name: str
  apply: Callable[[fault_clips.Batch, Sequence[_Seed]], np.ndarray]


def _changed(
  kind: str, level: float, of_samples: bool = False
) -> Callable[[fault_clips.Batch, Sequence[_Seed]], np.ndarray]:
  """What puts a fault into clips, or into what was made for them."""

  def apply(batch, seeds):
    rows = batch.samples if of_samples else batch.waveforms
    return np.stack(
      [
        faults.apply(
          kind, level, row, batch.sample_rate_hz, np.random.default_rng(seed)
        )
        for row, seed in zip(rows, seeds)
      ]
    )

  return apply


def _copied(
  codec: Any, count: int
) -> Callable[[fault_clips.Batch, Sequence[_Seed]], np.ndarray]:
  """The codec's copy from its first codebooks."""

  def apply(batch, seeds):
    del seeds
    own_hz, rate_hz = codec.sample_rate_hz, batch.sample_rate_hz
    length = batch.waveforms.shape[1]
    native = [files.resample(row, rate_hz, own_hz) for row in batch.waveforms]
    codes = codec.encode(np.stack(native))[..., :count]
    back = [files.resample(row, own_hz, rate_hz) for row in codec.decode(codes)]
    return np.stack(
      [np.pad(row, (0, max(length - len(row), 0)))[:length] for row in back]
    ).astype(np.float32)

  return apply


def _versions(codec: Any, with_samples: bool) -> list[_Fault]:
  """Clips as they are, then all faults; of a kind the slightest first."""
  found = [_Fault(fault_response.CLEAN, fault_response.CLEAN, _unchanged)]
  found += [
    _Fault(kind, faults.label(kind, level), _changed(kind, level))
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
    for count in (most, *(few for few in _CODEBOOKS if few < most)):
      name = f"{count} codebook{'s' if count > 1 else ''}"
      found.append(_Fault(CODEC, name, _copied(codec, count)))
  if with_samples:
    piece = min(faults.LEVELS[faults.SHUFFLED])
    found += [
      _Fault(GENERATED, GENERATED, lambda batch, _: batch.samples),
      _Fault(
        GENERATED,
        f"{GENERATED}, {faults.label(faults.SHUFFLED, piece)}",
        _changed(faults.SHUFFLED, piece, of_samples=True),
      ),
    ]
  return found


def _unchanged(batch: fault_clips.Batch, seeds: Sequence[_Seed]) -> np.ndarray:
  del seeds
  return batch.waveforms


class _Ear:
  """A listener, and what it has heard of each version, clip by clip.

  Attributes:
    listener: it.
    vectors: of each version, those of each clip; none of a mere classifier.
  """

  def __init__(self, listener: protocols.Listener):
    self.listener = listener
    self.vectors: dict[str, list[np.ndarray]] = {}
    self._logits: dict[str, list[np.ndarray]] = {}

  def hear(self, version: str, waveforms: np.ndarray, rate_hz: int) -> None:
    """Adds a batch `[batch, samples]` to a version."""
    vectors = self.vectors.setdefault(version, [])
    logits = self._logits.setdefault(version, [])
    if isinstance(self.listener, protocols.Embedder):
      vectors += list(self.listener.embed_audio_windows(waveforms, rate_hz))
    if isinstance(self.listener, protocols.Classifier):
      logits += list(self.listener.classify_windows(waveforms, rate_hz))

  def heard(self, version: str, works: Sequence[str]) -> fault_response.Heard:
    """All batches of a version."""
    return fault_response.Heard(
      self.vectors[version], self._logits[version], works
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
  clips: Sequence[fault_clips.Clip],
  versions: Sequence[_Fault],
  args: argparse.Namespace,
  bar: progress.Progress,
) -> tuple[list[fault_clips.Clip], list[str]]:
  """All listeners hear all versions of clips.

  Returns:
    The clips that were heard, and why others were not.
  """
  heard, left_out = [], []
  batches = fault_clips.batches(clips, args.seconds, args.batch_size, left_out)
  for batch in batches:
    seeds = [(args.seed, place) for place in batch.places]
    for version in versions:
      changed = version.apply(batch, seeds)
      for ear in ears:
        ear.hear(version.name, changed, batch.sample_rate_hz)
      bar.update(len(seeds))
    heard += [clips[place] for place in batch.places]
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
  if not _LEAST_SECS <= args.seconds < math.inf:
    raise errors.UserError(
      f"--seconds={args.seconds:g}: expected at least {_LEAST_SECS:g}"
    )
  if args.seed < 0:
    raise errors.UserError(f"--seed={args.seed}: expected at least 0")
  clips = fault_clips.read(args.reference, args.split)
  if args.samples_dir:
    halves = fault_clips.paired(clips, args.samples_dir, args.max_clips)
  else:
    halves = fault_clips.halves(clips, args.max_clips, args.seed)
  ears = [_Ear(embedder_specs.open_listener(text)) for text in args.embedder]
  codec = codec_files.load_codec(args.codec) if args.codec else None
  versions = _versions(codec, bool(args.samples_dir))
  total = len(halves[0]) + len(halves[1]) * len(versions)
  with progress.Progress("faults", total, unit="clip") as bar:
    whole = dataclasses.replace(versions[0], name=_REFERENCE)
    reference, bad = _listen(ears, halves[0], [whole], args, bar)
    clips, more = _listen(ears, halves[1], versions, args, bar)
  num_rows = len(versions) + bool(args.samples_dir)
  with progress.Progress("metrics", num_rows * len(ears), unit="row") as bar:
    results = [_result(ear, reference, clips, versions, bar) for ear in ears]
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


def _about(clips: Sequence[fault_clips.Clip]) -> dict[str, Any]:
  return {
    "num_clips": len(clips),
    "num_works": len({clip.work for clip in clips}),
    "fingerprint": metric_card.fingerprint_of(clip.name for clip in clips),
  }


def _result(
  ear: _Ear,
  reference: Sequence[fault_clips.Clip],
  clips: Sequence[fault_clips.Clip],
  versions: Sequence[_Fault],
  bar: progress.Progress,
) -> dict[str, Any]:
  """Numbers and verdicts of a listener, JSON-compatible."""
  works = [clip.work for clip in clips]
  heard = [
    fault_response.Version(one.kind, one.name, ear.heard(one.name, works))
    for one in versions
  ]
  made = [one.heard for one in heard if one.name == GENERATED]
  captions = [clip.caption for clip in clips]
  most = max(captions.count(text) for text in set(captions))
  if made and 2 * most <= len(captions):
    others = made[0].of_others(mulan_consistency.derangement(captions))
    heard.append(fault_response.Version(OTHER_PROMPTS, OTHER_PROMPTS, others))
  rows = fault_response.respond(
    ear.heard(_REFERENCE, [clip.work for clip in reference]),
    heard,
    ear.text_vectors(captions),
    getattr(ear.listener, "multi_label", True),
    bar.update,
  )
  return {
    "listener": hearing.describe(ear.listener, "embed and classify"),
    "titles": {name: titles(ear.listener)[name] for name in rows[0].values},
    "rows": [row.to_dict() for row in rows],
    "ladder": _ladder(rows),
    "warnings": _warnings(ear, len(clips)),
    "verdicts": [
      dataclasses.asdict(verdict) for verdict in fault_response.verdicts(rows)
    ],
  }


def _warnings(ear: _Ear, num_clips: int) -> list[str]:
  """What has to be said of few clips; see `metric_card`."""
  counts = [
    sum(map(len, ear.vectors[name]))
    for name in (_REFERENCE, fault_response.CLEAN)
  ]
  if not any(counts):
    return [*metric_card.small_sample_warnings(num_clips)]
  return [
    *metric_card.small_sample_warnings(
      num_clips,
      num_vectors=min(counts),
      embedding_dim=ear.listener.embedding_dim,
    )
  ]


def _ladder(rows: Sequence[fault_response.Row]) -> dict[str, Any] | None:
  """Whether ground truth, copies, what was generated and noise are in order.

  Returns:
    Names of the rows, and of each metric those out of order; None where
    nothing was generated.
  """
  of_kind = {
    kind: [row for row in rows if row.kind == kind]
    for kind in (CODEC, GENERATED, faults.NOISE)
  }
  if not of_kind[GENERATED]:
    return None
  steps = [
    rows[0],
    *of_kind[CODEC][:1],
    *of_kind[GENERATED],
    of_kind[faults.NOISE][-1],
  ]
  return {
    "names": [row.name for row in steps],
    "out_of_order": fault_response.out_of_order(steps),
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
  lines += [line for text in result["warnings"] for line in ("", f"{text}.")]
  ladder = result["ladder"]
  if ladder:
    lines += ["", f"From good to bad: {'; '.join(ladder['names'])}.", ""]
    for name, title in names.items():
      wrong = ladder["out_of_order"][name]
      lines.append(
        f"- {title}: "
        + (f"not {'; not '.join(wrong)}" if wrong else "in order")
      )
  return "\n".join(lines)


def _interval(found: Mapping[str, float]) -> str:
  mean, low, high = (found[end] for end in ("mean", "low", "high"))
  if math.isnan(low):
    return f"{mean:.3g}"
  return f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def _verdict(verdict: Mapping[str, Any]) -> str:
  told = verdict["slightest"] or "none"
  return told if verdict["is_ordered"] else f"{told}; not in order"
