# SPDX-License-Identifier: Apache-2.0
"""TFDS builder of a corpus from any tree of audio files.

Files and perhaps a captions file flow in; clips of encoded audio flow out,
and a doctor's report of the files beside them.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from musiclm_jax.core import progress
from musiclm_jax.data import corpora, doctor, duplicates, worker_pool

from . import plan, segments

_WORK_FROM = ("content", "folder")
_DESCRIPTION = "Audio files of a folder as clips of one rate."
_MIN_RATE_HZ = 8_000


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
    near_duplicates: whether files that are the same recording in another
      encoding are found by fingerprint (`duplicates.py`); copies are left
      out, and works that share a part of a recording are in one split.
    sample_rate_hz: of the clips; sources of another rate are resampled.
    num_channels: of the clips: 1 averages the channels, 2 keeps left and right
      (mono sources are doubled, more than two channels averaged and doubled).
    use_beam: hand all reading to Apache Beam. Does not change the corpus.
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
  near_duplicates: bool = True
  sample_rate_hz: int = segments.SAMPLE_RATE_HZ
  num_channels: int = 1
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
    if self.sample_rate_hz < _MIN_RATE_HZ:
      raise ValueError(
        f"sample_rate_hz={self.sample_rate_hz}: expected >= {_MIN_RATE_HZ}"
      )
    if self.num_channels not in (1, 2):
      raise ValueError(f"num_channels={self.num_channels}: expected 1 or 2")
    self.limits()

  def limits(self) -> doctor.Limits:
    return doctor.Limits(
      min_secs=self.min_secs,
      silent_db=self.silent_db,
      max_clipped_fraction=self.max_clipped_fraction,
      max_bad_fraction=self.max_bad_fraction,
    )

  def settings(self, folder: str) -> plan.Settings:
    return plan.Settings(
      folder=folder,
      captions=self.captions,
      segment_secs=self.segment_secs,
      work_from=self.work_from,
      fractions={
        "validation": self.validation_fraction,
        "test": self.test_fraction,
      },
      limits=self.limits(),
      near_duplicates=self.near_duplicates,
      sample_rate_hz=self.sample_rate_hz,
      num_channels=self.num_channels,
    )


class Builder(tfds.core.GeneratorBasedBuilder):
  """Corpus `audio_folder`."""

  VERSION = tfds.core.Version("1.1.0")
  RELEASE_NOTES = {
    "1.0.0": "First release.",
    "1.1.0": "Titles and names of playlists; 1.0.0 can be read as it is.",
  }
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
      features=corpora.clip_features(("titles", "playlists")),
      description=_DESCRIPTION,
      metadata=tfds.core.MetadataDict(
        source_dir=self.builder_config.source_dir,
        captions=self.builder_config.captions,
        segment_secs=self.builder_config.segment_secs,
        sample_rate_hz=self.builder_config.sample_rate_hz,
        num_channels=self.builder_config.num_channels,
      ),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    config = self.builder_config
    folder = config.source_dir or str(dl_manager.manual_dir)
    settings = config.settings(folder)
    if config.use_beam:
      # Under the name that workers elsewhere can import.
      pipeline = corpora.load_beam_pipeline("audio_folder")
      return pipeline.split_transforms(
        dataclasses.asdict(settings), self.report_dir()
      )
    split_jobs = self._make_plan(settings).jobs
    return {
      split: self._generate_examples(split, jobs)
      for split, jobs in split_jobs.items()
    }

  def report_dir(self) -> str:
    """Where the doctor's report lies: it outlives a failed build."""
    return os.path.dirname(os.fspath(self.data_dir).rstrip("/"))

  def _make_plan(self, settings: plan.Settings) -> plan.Plan:
    names = doctor.list_audio(settings.folder)
    texts, notes = plan.read_captions(settings, names)
    examine = doctor.examine
    if settings.near_duplicates:
      examine = doctor.examine_and_print
    findings, prints = [], {}
    jobs = [(settings.folder, name, settings.limits) for name in names]
    with progress.Progress("examine files", len(jobs), unit="file") as bar:
      for _, found in worker_pool.run(examine, jobs, self._num_processes):
        if settings.near_duplicates:
          found, prints[found.file] = found
        findings.append(found)
        bar.update()
    firsts = doctor.mark_duplicates(findings)
    pairs = duplicates.find_pairs(
      {
        item.file: prints[item.file]
        for item in firsts
        if prints and item.status not in doctor.SKIPPED
      }
    )
    return plan.make_plan(
      settings, findings, pairs, texts, notes, self.report_dir()
    )

  def _generate_examples(
    self, split: str, jobs: list
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    with progress.Progress(f"cut {split}", len(jobs), unit="file") as bar:
      for _, clips in worker_pool.run(
        segments.make_clips, jobs, self._num_processes
      ):
        yield from ((clip["id"], clip) for clip in clips)
        bar.update()
