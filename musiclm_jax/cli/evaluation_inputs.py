# SPDX-License-Identifier: Apache-2.0
"""What an evaluation by prompts reads: prompts, reference clips, samples."""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.audio import files
from musiclm_jax.cli import bulk, evaluation_jobs, prompt_files
from musiclm_jax.core import errors
from musiclm_jax.evaluation import clip_files, musiccaps, musiccaps_audio
from musiclm_jax.systems import provenance

_CORPUS_FILE = "dataset_info.json"
# Names of what a prompt was written for, which reference clips are found by.
_PAIR_NAMES = ("ytid", "clip_id")


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Prompts of a file.

  Attributes:
    rows: all of them, also where only the first ones are used.
    num_expected: in the whole set: 5,521 for MusicCaps, whatever is used.
    table: rows of MusicCaps; None for another file.
    texts: of the whole set, as far as it is known.
    known: all rows of MusicCaps, whatever the subset.
  """

  rows: tuple[prompt_files.Asked, ...]
  num_expected: int
  table: tuple[musiccaps.Row, ...] | None = None
  texts: tuple[str, ...] = ()
  known: tuple[musiccaps.Row, ...] = ()


def read_prompts(job: evaluation_jobs.EvaluatePromptsJob) -> Prompts:
  """Reads the prompts of a job; none without a file.

  Raises:
    UserError: if the file cannot be used.
  """
  if not job.prompts:
    return Prompts((), 0)
  path = prompt_files.find(job.prompts)
  table, found, known = None, [], ()
  if musiccaps.is_table(path):
    known = tuple(musiccaps.read(path))
    table = tuple(musiccaps.select(known, job.subset))
    found = [prompt_files.Asked(r.caption, source=r.source) for r in table]
    num_expected = musiccaps.num_expected(job.subset)
  elif job.subset != "all":
    raise errors.UserError(
      f"--subset={job.subset} with {path}: expected the MusicCaps table"
    )
  else:
    found = prompt_files.read_rows(path)
    num_expected = len(found)
  texts = tuple(row.prompt for row in found)
  if job.max_prompts < 0:
    raise errors.UserError(f"--max_prompts={job.max_prompts}: expected >= 0")
  return Prompts(tuple(found), num_expected, table, texts, known)


@dataclasses.dataclass(frozen=True)
class Reference:
  """Clips to compare with.

  Attributes:
    clips: names are unique.
    by_source: clips by ytid, by id in a corpus, or by name and stem of a file.
    num_expected: clips there should be.
    about: JSON-compatible.
  """

  clips: tuple[clip_files.ClipFile, ...] = ()
  by_source: Mapping[str, clip_files.ClipFile] = dataclasses.field(
    default_factory=dict
  )
  num_expected: int = 0
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def pair(self, source: Mapping[str, str]) -> clip_files.ClipFile | None:
    """The clip that a text was written for, if it is there."""
    for name in _PAIR_NAMES:
      if source.get(name) in self.by_source:
        return self.by_source[source[name]]
    return None


def read_reference(
  job: evaluation_jobs.EvaluatePromptsJob, prompts: Prompts
) -> Reference:
  """The reference set of a job; an empty one without.

  Raises:
    UserError: if it cannot be used.
  """
  if not job.reference:
    return Reference()
  if (pathlib.Path(job.reference) / _CORPUS_FILE).is_file():
    return _corpus(job.reference, job.split)
  if prompts.table is not None:
    found = musiccaps_audio.find(
      prompts.table, job.reference, job.max_bad_fraction, prompts.known
    )
    return Reference(
      tuple(found.clips.values()),
      found.clips,
      prompts.num_expected,
      {"kind": "musiccaps", "subset": job.subset, **found.to_dict()},
    )
  found = of_clips(clip_files.of_folder(job.reference))
  about = {"kind": "folder", "folder": job.reference}
  return dataclasses.replace(found, about=about)


def of_clips(clips: Sequence[clip_files.ClipFile]) -> Reference:
  """All of some clips; files are found without their endings and folders too.

  A short name that several files have finds none of them.
  """
  by_source = {clip.name: clip for clip in clips}
  files_of = [clip for clip in clips if clip.path is not None]
  for shorten in (_without_ending, lambda name: pathlib.PurePath(name).stem):
    short = [shorten(clip.name) for clip in files_of]
    counts = collections.Counter(short)
    for name, clip in zip(short, files_of):
      if counts[name] == 1:
        by_source.setdefault(name, clip)
  return Reference(tuple(clips), by_source, len(clips))


def _without_ending(name: str) -> str:
  return pathlib.PurePath(name).with_suffix("").as_posix()


def _corpus(folder: str, split: str) -> Reference:
  from musiclm_jax.data import clips as clips_lib

  reader = clips_lib.ClipReader(folder, split)
  found = of_clips(
    [
      clip_files.ClipFile(
        reader.clip_id(index), functools.partial(_record, reader, index)
      )
      for index in range(len(reader))
    ]
  )
  about = {"kind": "corpus", "folder": folder, "split": split}
  return dataclasses.replace(found, about=about)


def _record(reader: Any, index: int) -> bytes:
  return reader.record(index).audio


@dataclasses.dataclass(frozen=True)
class Sample:
  """A generated file.

  Attributes:
    clip: to hear.
    text: that it was made for.
    source: what the text was written for, by column.
    about: its sidecar; empty where there is none.
    take: which one of its text it is, those without a file included.
  """

  clip: clip_files.ClipFile
  text: str
  source: Mapping[str, str]
  about: Mapping[str, Any]
  take: int = 0


def read_samples(folders: Sequence[str], prompts: Prompts) -> list[Sample]:
  """Generated files with their texts.

  A folder of this package has a manifest, or sidecars. One of another system,
  for MusicCaps, has files named by ytid.

  Args:
    folders: of them.
    prompts: of the job; names that its table lacks are an error.

  Raises:
    UserError: if there is no file, or a text is missing.
  """
  found: dict[str, Sample] = {}
  takes: dict[str, int] = collections.Counter()
  for folder in map(pathlib.Path, folders):
    if not folder.is_dir():
      raise errors.UserError(f"no folder of samples at {folder}")
    for sample in _of_folder(folder, prompts):
      # Files that are missing count, so that takes are those of other runs.
      take = takes[sample.text]
      takes[sample.text] += 1
      if not sample.clip.path.is_file():
        continue
      name = sample.clip.name
      if name in found:
        raise errors.UserError(
          f"{name} is in two of --samples_dir: expected different names"
        )
      found[name] = dataclasses.replace(sample, take=take)
  if not found:
    raise errors.UserError(
      f"no samples in {', '.join(map(str, folders))}: expected audio files "
      "with sidecars that have a prompt"
    )
  if prompts.table is not None:
    known = {row.ytid for row in prompts.table}
    for name, sample in found.items():
      ytid = sample.source.get("ytid")
      if ytid not in known:
        raise errors.UserError(
          f"sample {name} was made for ytid={ytid!r}, which is not in the "
          "table (or not in this --subset)"
        )
  return list(found.values())


def check_texts(samples: Sequence[Sample], prompts: Prompts, path: str) -> None:
  """Refuses samples of texts that a set of prompts does not have.

  Args:
    samples: of `read_samples`.
    prompts: the set; MusicCaps goes by ids.
    path: of the set, for the message.

  Raises:
    UserError: naming the first.
  """
  if prompts.table is not None or not prompts.texts:
    return
  known = set(prompts.texts)
  for sample in samples:
    if sample.text not in known:
      raise errors.UserError(
        f"sample {sample.clip.name} was made for {sample.text!r}, which is "
        f"not in {path}"
      )


def _of_folder(folder: pathlib.Path, prompts: Prompts) -> list[Sample]:
  records = _records(folder)
  if not records and prompts.table is not None:
    audio = musiccaps_audio.find(
      prompts.table, folder, 0.0, whole_recordings=False
    )
    rows = {row.ytid: row for row in prompts.table}
    return [
      Sample(clip, rows[ytid].caption, rows[ytid].source, {})
      for ytid, clip in audio.clips.items()
    ]
  found = []
  for record in records:
    name = record.pop("file")
    path = folder / name
    source = prompt_files.source_of(record, str(path))
    text = source.get("caption") or record.get("prompt")
    if isinstance(text, str):
      clip = clip_files.of_path(path, name)
      found.append(Sample(clip, text, source, record))
  return found


def _records(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Sidecars with the name of their `file`, in the order of the manifest.

  Raises:
    UserError: if one is damaged; names it.
  """
  manifest = folder / bulk.MANIFEST
  if not manifest.is_file():
    return [
      {**record, "file": path.relative_to(folder).as_posix()}
      for path, record in provenance.sidecars(folder)
    ]
  records = []
  lines = manifest.read_text(encoding="utf-8", errors="replace").split("\n")
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except (ValueError, RecursionError):
      record = None
    if not isinstance(record, dict) or not isinstance(record.get("file"), str):
      raise errors.UserError(
        f'{manifest}:{number}: expected a JSON object with a text "file"'
      )
    records.append(record)
  return records


def write_prompts(
  path: pathlib.Path,
  prompts: Prompts,
  job: evaluation_jobs.EvaluatePromptsJob,
  reference: Reference,
) -> int:
  """Writes the prompts of a bulk job, which makes the first --max_prompts.

  With --condition=audio the reference clip of each takes the place of its
  text; prompts without one are left out, and so are those beyond
  --max_prompts, whose clips would be written for nothing.

  Returns:
    Their number.

  Raises:
    UserError: if no prompt is left, or a clip cannot be read.
  """
  rows = []
  for row in prompts.rows:
    if job.condition == "audio" and 0 < job.max_prompts <= len(rows):
      break
    source = dict(row.source)
    record: dict[str, Any] = {"prompt": row.prompt}
    for name in ("seconds", "seed"):
      if getattr(row, name) is not None:
        record[name] = getattr(row, name)
    if row.audio:
      record["audio_prompt"] = row.audio
      source["caption"] = row.prompt
    if job.condition == "audio":
      clip = reference.pair(source)
      if clip is None:
        continue
      record["audio_prompt"] = str(_as_file(clip, path.parent / "conditions"))
      source["caption"] = row.prompt
    if source:
      record["source"] = source
    rows.append(record)
  if not rows:
    raise errors.UserError(
      f"--condition=audio: no prompt of {job.prompts} names a clip of "
      f"{job.reference}"
    )
  prompt_files.write(path, rows)
  return len(rows)


def _as_file(clip: clip_files.ClipFile, folder: pathlib.Path) -> pathlib.Path:
  """A clip as a file that holds it and nothing else."""
  if clip.path is not None and clip.excerpt_secs is None:
    return clip.path
  content = clip.read()
  path = folder / f"{clip.key(content)[:16]}.wav"
  if not path.is_file():
    folder.mkdir(parents=True, exist_ok=True)
    files.write_wav(path, *clip.decode(content))
  return path
