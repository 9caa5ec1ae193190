# SPDX-License-Identifier: Apache-2.0
"""What becomes of each file: findings flow in, a report and jobs flow out.

The same for a build in this process and for one by Beam, and without
TensorFlow, so that workers may import it.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from musiclm_jax.core import errors
from musiclm_jax.data import doctor, duplicates

from . import captions_file, segments

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the builder's config says, as plain values that Beam can ship.

  Attributes:
    folder: the tree.
    captions: CSV or JSONL file, or ''.
    segment_secs: length of the clips.
    work_from: 'content' or 'folder'.
    fractions: share of works in 'validation' and 'test'.
    limits: of the doctor.
    near_duplicates: whether copies are found by fingerprint.
    sample_rate_hz: of the clips.
    num_channels: of the clips.
  """

  folder: str
  captions: str
  segment_secs: float
  work_from: str
  fractions: Mapping[str, float]
  limits: doctor.Limits
  near_duplicates: bool
  sample_rate_hz: int = segments.SAMPLE_RATE_HZ
  num_channels: int = 1


@dataclasses.dataclass(frozen=True)
class Plan:
  """The result.

  Attributes:
    report: of the doctor.
    jobs: files to cut, by split, without empty splits.
  """

  report: dict[str, Any]
  jobs: dict[str, list[segments.FileJob]]


def read_captions(
  settings: Settings, names: list[str]
) -> tuple[dict[str, captions_file.FileText], list[str]]:
  """Text by file, and notes for the report."""
  if not settings.captions:
    return {}, []
  texts, unmatched = captions_file.match(
    captions_file.read(settings.captions), names
  )
  notes = [f"{len(texts)} of {len(names)} files have captions"]
  if unmatched:
    notes.append(
      f"{len(unmatched)} names in the captions file fit no file, such as "
      f"{unmatched[0]!r}"
    )
  return texts, notes


def make_plan(
  settings: Settings,
  findings: Iterable[doctor.Finding],
  pairs: Iterable[duplicates.Pair],
  texts: Mapping[str, captions_file.FileText],
  notes: Iterable[str],
  report_dir: str,
) -> Plan:
  """Decides on every file, and writes the doctor's report.

  Args:
    settings: of the corpus.
    findings: of all files, in any order.
    pairs: files that share a recording.
    texts: by file.
    notes: lines for the report.
    report_dir: gets `doctor.json` and `doctor.txt`.

  Raises:
    UserError: if too many files are bad, or none is left for train.
  """
  marked = doctor.mark_duplicates(findings)
  marked, groups = duplicates.mark_near_duplicates(marked, pairs)
  notes = list(notes)
  if not settings.near_duplicates:
    notes.append("near duplicates were not looked for")
  if groups:
    notes.append(
      f"{len(groups)} files share a part with others and are kept, each group "
      f"in one split; such as {', '.join(sorted(groups)[:3])}"
    )
  report = doctor.make_report(settings.folder, marked, settings.limits, notes)
  report["groups"] = groups
  path = doctor.write_report(report_dir, report)
  doctor.check(report, path)
  kept = [item for item in marked if item.status not in doctor.SKIPPED]
  return Plan(report, _jobs_by_split(settings, kept, texts, groups))


def check_splits(settings: Settings, made: Plan) -> None:
  """For builds that have to name their splits beforehand.

  Raises:
    UserError: if a split that has a share is empty.
  """
  for split, share in settings.fractions.items():
    if share > 0 and split not in made.jobs:
      raise errors.UserError(
        f"split {split!r} of {settings.folder} is empty with {share} of the "
        f"works: expected more works, or {split}_fraction=0"
      )


def _jobs_by_split(
  settings: Settings,
  kept: list[doctor.Finding],
  texts: Mapping[str, captions_file.FileText],
  groups: Mapping[str, str],
) -> dict[str, list[segments.FileJob]]:
  seen: collections.Counter = collections.Counter()
  jobs = []
  for finding in kept:
    text = texts.get(finding.file, captions_file.FileText())
    work_id = text.work or finding.content_hash
    if not text.work and settings.work_from == "folder":
      work_id = pathlib.PurePosixPath(finding.file).parent.as_posix()
    jobs.append(
      segments.FileJob(
        folder=settings.folder,
        file=finding.file,
        work_id=work_id,
        arrangement=seen[work_id],
        captions=tuple(text.captions),
        aspects=tuple(text.aspects),
        titles=tuple(text.titles),
        playlists=tuple(text.playlists),
        segment_secs=settings.segment_secs,
        silent_db=settings.limits.silent_db,
        sample_rate_hz=settings.sample_rate_hz,
        num_channels=settings.num_channels,
      )
    )
    seen[work_id] += 1
  tied = _tied_works({job.file: job.work_id for job in jobs}, groups)
  splits = segments.split_works(tied.values(), settings.fractions)
  by_split: dict[str, list] = collections.defaultdict(list)
  for job in jobs:
    by_split[splits[tied[job.work_id]]].append(job)
  if "train" not in by_split:
    raise errors.UserError(
      f"all {len(jobs)} usable files of {settings.folder} fall into "
      "validation and test: expected more works, or smaller fractions"
    )
  return dict(by_split)


def _tied_works(
  work_of: Mapping[str, str], groups: Mapping[str, str]
) -> dict[str, str]:
  """By work the one that decides its split: its own, or of its group."""
  tied = {work_id: work_id for work_id in work_of.values()}

  def find(work_id: str) -> str:
    while tied[work_id] != work_id:
      work_id = tied[work_id]
    return work_id

  for file, leader in sorted(groups.items()):
    low, high = sorted((find(work_of[file]), find(work_of[leader])))
    tied[high] = low
  return {work_id: find(work_id) for work_id in tied}
