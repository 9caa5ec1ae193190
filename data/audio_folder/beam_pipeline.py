# SPDX-License-Identifier: Apache-2.0
"""The same corpus by Apache Beam: a folder flows in, clips by split flow out.

    names -> findings and fingerprints -> pairs -> one plan -> files of a split
                                                               -> clips

Everything a worker reads is a file of the folder; only names, findings, keys
and pairs cross the network, and the plan is made by one worker from these.
Imported only where Beam is wanted, and under the package name
`musiclm_jax_builders`, which is installed where workers run.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam

from musiclm_jax.audio import fingerprint
from musiclm_jax.data import doctor, duplicates

from . import plan, segments

_Print = fingerprint.Fingerprint


def split_transforms(
  settings: Mapping[str, Any], report_dir: str
) -> dict[str, beam.PTransform]:
  """One transform per split, which share all that comes before the cut.

  Args:
    settings: fields of `plan.Settings`, as plain values.
    report_dir: gets the doctor's report.

  Returns:
    By split, a transform from a pipeline to (id, example).

  Raises:
    UserError: if there is no folder, no audio in it, or no captions file.
  """
  limits = doctor.Limits(**settings["limits"])
  corpus = _Corpus(plan.Settings(**{**settings, "limits": limits}), report_dir)
  fractions = corpus.settings.fractions
  # Beam has to know the splits before it has seen a file.
  return {
    split: _Split(corpus, split)
    for split in plan.SPLITS
    if fractions.get(split, 1.0) > 0
  }


class _Split(beam.PTransform):
  """Clips of one split."""

  def __init__(self, corpus: "_Corpus", split: str):
    super().__init__()
    self._corpus, self._split = corpus, split

  def expand(self, begin: Any) -> Any:
    return (
      self._corpus.jobs(begin.pipeline)
      | "OfSplit" >> beam.Filter(_is_of, self._split)
      | "Job" >> beam.Values()
      # Or one worker cuts what it planned.
      | "Spread" >> beam.Reshuffle()
      | "Cut" >> beam.FlatMap(_keyed_clips)
    )


class _Corpus:
  """The part of the graph that all splits share; made once per pipeline."""

  def __init__(self, settings: plan.Settings, report_dir: str):
    self.settings, self._report_dir = settings, report_dir
    self._names = doctor.list_audio(settings.folder)
    self._texts, self._notes = plan.read_captions(settings, self._names)
    self._made: dict[int, Any] = {}

  def jobs(self, pipeline: beam.Pipeline) -> Any:
    """(split, job) of every file that is kept."""
    if id(pipeline) not in self._made:
      self._made[id(pipeline)] = self._make_jobs(pipeline)
    return self._made[id(pipeline)]

  def _make_jobs(self, pipeline: beam.Pipeline) -> Any:
    settings = self.settings
    examine = doctor.examine_and_print
    if not settings.near_duplicates:
      examine = _examine_only
    examined = (
      pipeline
      | "Names" >> beam.Create(self._names)
      | "SpreadNames" >> beam.Reshuffle()
      | "ExamineJob" >> beam.Map(_examine_job, settings.folder, settings.limits)
      | "Examine" >> beam.Map(examine)
    )
    findings = examined | "Findings" >> beam.Keys()
    pairs = pipeline | "NoPairs" >> beam.Create([])
    if settings.near_duplicates:
      pairs = examined | "Pairs" >> _FindPairs()
    return (
      pipeline
      | "Once" >> beam.Create([None])
      | "Plan"
      >> beam.FlatMap(
        _make_plan,
        settings=settings,
        texts=self._texts,
        notes=self._notes,
        report_dir=self._report_dir,
        findings=beam.pvalue.AsList(findings),
        pairs=beam.pvalue.AsList(pairs),
      )
    )


class _FindPairs(beam.PTransform):
  """(finding, fingerprint) to pairs, as `duplicates.find_pairs`."""

  def expand(self, examined: Any) -> Any:
    prints = (
      examined
      | "Usable" >> beam.Filter(_has_print)
      | "ByContent" >> beam.Map(_by_content)
      | "GroupContent" >> beam.GroupByKey()
      # Of equal files the first: the others are exact duplicates.
      | "First" >> beam.Map(_first_of_content)
    )
    offsets = (
      prints
      | "Keys" >> beam.FlatMap(_places)
      | "GroupKeys" >> beam.GroupByKey()
      | "Votes" >> beam.FlatMap(_votes)
      | "GroupVotes" >> beam.GroupByKey()
      | "TopOffsets" >> beam.MapTuple(_top_offsets)
      | "Enough" >> beam.Filter(_has_offsets)
    )
    halves = (
      {"print": prints, "pairs": offsets | "ByFirst" >> beam.Map(_by_first)}
      | "JoinFirst" >> beam.CoGroupByKey()
      | "Attach" >> beam.FlatMap(_attach)
    )
    return (
      {"print": prints, "halves": halves}
      | "JoinSecond" >> beam.CoGroupByKey()
      | "Judge" >> beam.FlatMap(_judge)
    )


def _is_of(item: tuple[str, Any], split: str) -> bool:
  return item[0] == split


def _keyed_clips(job: segments.FileJob) -> list[tuple[str, dict[str, Any]]]:
  return [(clip["id"], clip) for clip in segments.make_clips(job)]


def _examine_job(
  name: str, folder: str, limits: doctor.Limits
) -> tuple[str, str, doctor.Limits]:
  return folder, name, limits


def _examine_only(
  job: tuple[str, str, doctor.Limits],
) -> tuple[doctor.Finding, None]:
  return doctor.examine(job), None


def _make_plan(
  unused: None,
  settings: plan.Settings,
  texts: Mapping[str, Any],
  notes: Iterable[str],
  report_dir: str,
  findings: list[doctor.Finding],
  pairs: list[duplicates.Pair],
) -> Iterator[tuple[str, segments.FileJob]]:
  del unused
  made = plan.make_plan(settings, findings, pairs, texts, notes, report_dir)
  plan.check_splits(settings, made)
  for split, jobs in made.jobs.items():
    for job in jobs:
      yield split, job


def _has_print(examined: tuple[doctor.Finding, _Print | None]) -> bool:
  return examined[1] is not None


def _by_content(
  examined: tuple[doctor.Finding, _Print],
) -> tuple[str, tuple[str, _Print]]:
  finding, item = examined
  return finding.content_hash, (finding.file, item)


def _first_of_content(
  group: tuple[str, Iterable[tuple[str, _Print]]],
) -> tuple[str, _Print]:
  return min(group[1], key=_name)


def _name(named: tuple[str, Any]) -> str:
  return named[0]


def _places(
  named: tuple[str, _Print],
) -> Iterator[tuple[int, tuple[str, int]]]:
  name, item = named
  for key, frame in zip(item.keys.tolist(), item.key_frames.tolist()):
    yield key, (name, frame)


def _votes(
  group: tuple[int, Iterable[tuple[str, int]]],
) -> list[tuple[tuple[str, str], int]]:
  # One more than may vote: a common key is not read to its end.
  places = itertools.islice(group[1], duplicates.MAX_PLACES + 1)
  return duplicates.vote_offsets(list(places))


def _top_offsets(
  names: tuple[str, str], offsets: Iterable[int]
) -> tuple[tuple[str, str], list[tuple[int, int]]]:
  return names, duplicates.top_offsets(offsets)


def _has_offsets(item: tuple[Any, list]) -> bool:
  return bool(item[1])


def _by_first(
  item: tuple[tuple[str, str], list[tuple[int, int]]],
) -> tuple[str, tuple[str, list[tuple[int, int]]]]:
  (first, second), offsets = item
  return first, (second, offsets)


def _attach(
  group: tuple[str, Mapping[str, Iterable[Any]]],
) -> Iterator[tuple[str, tuple[str, _Print, list[tuple[int, int]]]]]:
  """The first file's fingerprint, sent to where the second's is."""
  first, joined = group
  item = next(iter(joined["print"]))
  for second, offsets in joined["pairs"]:
    yield second, (first, item, offsets)


def _judge(
  group: tuple[str, Mapping[str, Iterable[Any]]],
) -> Iterator[duplicates.Pair]:
  second, joined = group
  item = next(iter(joined["print"]))
  for first, first_item, offsets in joined["halves"]:
    pair = duplicates.judge((first, second), (first_item, item), offsets)
    if pair is not None:
      yield pair
