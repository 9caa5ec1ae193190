# SPDX-License-Identifier: Apache-2.0
"""TFDS builder of a corpus from any tree of audio files.

Files and perhaps a captions file flow in; clips of encoded audio flow out,
and a doctor's report of the files beside them.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from musiclm_jax.core import errors, progress
from musiclm_jax.data import corpora, doctor, worker_pool

from . import captions_file, segments

_WORK_FROM = ("content", "folder")
_DESCRIPTION = "Audio files of a folder as mono clips at 24 kHz."


@dataclasses.dataclass
class AudioFolderConfig(tfds.core.BuilderConfig):
  """Which folder, and how it is cut.

  Attributes:
    source_dir: the tree; TFDS's manual_dir if empty.
    captions: CSV or JSONL file, or empty.
    segment_secs: length of the clips.
    work_from: 'content': each file is a work (copies are found by content);
      'folder': all files of a folder are one work. A `work` column of the
      captions file overrules both.
    validation_fraction: share of works.
    test_fraction: share of works.
    min_secs: see `doctor.Limits`, and so the other three.
    silent_db: dB below full scale.
    max_clipped_fraction: of samples.
    max_bad_fraction: of files.
    use_beam: hand the cutting to Apache Beam.
  """

  source_dir: str = ""
  captions: str = ""
  segment_secs: float = 30.0
  work_from: str = "content"
  validation_fraction: float = 0.05
  test_fraction: float = 0.05
  min_secs: float = 1.0
  silent_db: float = -60.0
  max_clipped_fraction: float = 0.01
  max_bad_fraction: float = 0.1
  use_beam: bool = False

  def __post_init__(self):
    if not self.segment_secs > 0:
      raise ValueError(f"segment_secs={self.segment_secs}: expected > 0")
    if self.work_from not in _WORK_FROM:
      raise ValueError(
        f"work_from={self.work_from!r}: expected one of {_WORK_FROM}"
      )
    if not 0 <= self.validation_fraction + self.test_fraction < 1:
      raise ValueError(
        f"validation_fraction={self.validation_fraction} and "
        f"test_fraction={self.test_fraction}: expected a sum in [0, 1)"
      )
    self.limits()

  def limits(self) -> doctor.Limits:
    return doctor.Limits(
      min_secs=self.min_secs,
      silent_db=self.silent_db,
      max_clipped_fraction=self.max_clipped_fraction,
      max_bad_fraction=self.max_bad_fraction,
    )


class Builder(tfds.core.GeneratorBasedBuilder):
  """Corpus `audio_folder`."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put audio files under manual_dir, or name a folder by source_dir."
  )
  builder_config_cls = AudioFolderConfig
  BUILDER_CONFIGS = [
    AudioFolderConfig(name="folder", description="Files of manual_dir.")
  ]

  def __init__(
    self,
    *,
    file_format: Any = "array_record",
    num_processes: int = 0,
    **kwargs: Any,
  ):
    """Sets up the builder.

    Args:
      file_format: array_record is what random access needs.
      num_processes: readers; 0 means all cores. Does not change the corpus.
      **kwargs: of every TFDS builder.
    """
    self._num_processes = num_processes or worker_pool.default_num_processes()
    super().__init__(file_format=file_format or "array_record", **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      features=corpora.clip_features(),
      description=_DESCRIPTION,
      metadata=tfds.core.MetadataDict(
        source_dir=self.builder_config.source_dir,
        captions=self.builder_config.captions,
        segment_secs=self.builder_config.segment_secs,
      ),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    config = self.builder_config
    folder = config.source_dir or str(dl_manager.manual_dir)
    names = doctor.list_audio(folder)
    texts, unmatched = {}, []
    if config.captions:
      texts, unmatched = captions_file.match(
        captions_file.read(config.captions), names
      )
    kept = self._examine(folder, names, texts, unmatched)
    split_jobs = _split_jobs(config, folder, kept, texts)
    return {
      split: self._generate_examples(split, jobs)
      for split, jobs in split_jobs.items()
    }

  def report_dir(self) -> pathlib.Path:
    """Where the doctor's report lies: it outlives a failed build."""
    return pathlib.Path(self.data_dir).parent

  def _examine(
    self,
    folder: str,
    names: list[str],
    texts: dict[str, captions_file.FileText],
    unmatched: list[str],
  ) -> list[doctor.Finding]:
    """Usable files; writes the report.

    Raises:
      UserError: if too many files are bad.
    """
    limits = self.builder_config.limits()
    jobs = [(folder, name, limits) for name in names]
    findings = []
    with progress.Progress("examine files", len(jobs), unit="file") as bar:
      for _, finding in worker_pool.run(
        doctor.examine, jobs, self._num_processes
      ):
        findings.append(finding)
        bar.update()
    findings = doctor.mark_duplicates(findings)
    notes = []
    if self.builder_config.captions:
      notes.append(f"{len(texts)} of {len(names)} files have captions")
    if unmatched:
      notes.append(
        f"{len(unmatched)} names in the captions file fit no file, such as "
        f"{unmatched[0]!r}"
      )
    report = doctor.make_report(folder, findings, limits, notes)
    path = doctor.write_report(self.report_dir(), report)
    doctor.check(report, path)
    return [item for item in findings if item.status not in doctor.SKIPPED]

  def _generate_examples(self, split: str, jobs: list) -> Any:
    if self.builder_config.use_beam:
      beam = tfds.core.lazy_imports.apache_beam
      return f"files of {split}" >> beam.Create(jobs) | (
        f"cut {split}" >> beam.FlatMap(_keyed_clips)
      )
    return self._cut(split, jobs)

  def _cut(
    self, split: str, jobs: list
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    with progress.Progress(f"cut {split}", len(jobs), unit="file") as bar:
      for _, clips in worker_pool.run(
        segments.make_clips, jobs, self._num_processes
      ):
        yield from ((clip["id"], clip) for clip in clips)
        bar.update()


def _split_jobs(
  config: AudioFolderConfig,
  folder: str,
  kept: list[doctor.Finding],
  texts: dict[str, captions_file.FileText],
) -> dict[str, list[segments.FileJob]]:
  """Jobs by split, without empty splits."""
  seen: collections.Counter = collections.Counter()
  jobs = []
  for finding in kept:
    text = texts.get(finding.file, captions_file.FileText())
    work_id = text.work or finding.content_hash
    if not text.work and config.work_from == "folder":
      work_id = pathlib.PurePosixPath(finding.file).parent.as_posix()
    jobs.append(
      segments.FileJob(
        folder=folder,
        file=finding.file,
        work_id=work_id,
        arrangement=seen[work_id],
        captions=tuple(text.captions),
        aspects=tuple(text.aspects),
        segment_secs=config.segment_secs,
        silent_db=config.silent_db,
      )
    )
    seen[work_id] += 1
  splits = segments.split_works(
    (job.work_id for job in jobs),
    {
      "validation": config.validation_fraction,
      "test": config.test_fraction,
    },
  )
  by_split: dict[str, list] = collections.defaultdict(list)
  for job in jobs:
    by_split[splits[job.work_id]].append(job)
  if "train" not in by_split:
    raise errors.UserError(
      f"all {len(jobs)} usable files of {folder} fall into validation and "
      "test: expected more works, or smaller fractions"
    )
  return dict(by_split)


def _keyed_clips(job: segments.FileJob) -> list[tuple[str, dict[str, Any]]]:
  return [(clip["id"], clip) for clip in segments.make_clips(job)]
