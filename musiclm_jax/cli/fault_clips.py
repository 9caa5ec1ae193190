# SPDX-License-Identifier: Apache-2.0
"""Recordings for the faults job: which are heard, and their waveforms."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.cli import evaluation_inputs
from musiclm_jax.core import errors
from musiclm_jax.evaluation import clip_files


@dataclasses.dataclass(frozen=True)
class Clip:
  """A recording that can be read.

  Attributes:
    name: for messages.
    work: what it is taken from.
    caption: what is written of it, '' if nothing is.
    file: its audio.
    sample: what a system made of the caption, if that is to be heard too.
  """

  name: str
  work: str
  caption: str
  file: clip_files.ClipFile
  sample: clip_files.ClipFile | None = None


@dataclasses.dataclass(frozen=True)
class Batch:
  """Clips of one rate and length.

  Attributes:
    waveforms: float32 `[batch, samples]`, mono.
    sample_rate_hz: of all.
    places: of the clips, in the list they are of.
    samples: what was made for each, of the same shape; None without any.
  """

  waveforms: np.ndarray
  sample_rate_hz: int
  places: tuple[int, ...]
  samples: np.ndarray | None


def read(folder: str, split: str) -> list[Clip]:
  """Clips of a prepared corpus, or files below a folder, each its own work.

  Raises:
    UserError: if there are none.
  """
  path = pathlib.Path(folder)
  if not (path / "dataset_info.json").is_file():
    return [
      Clip(file.name, file.name, "", file)
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
    found.append(Clip(texts.clip_id, texts.work_id, caption, file))
  return found


def halves(
  clips: Sequence[Clip], max_clips: int, seed: int
) -> tuple[list[Clip], list[Clip]]:
  """Clips of two halves of the works, evenly thinned.

  Args:
    clips: all of them.
    max_clips: of both halves together.
    seed: of the draw.

  Returns:
    The reference, and the clips to be evaluated; no work is in both.

  Raises:
    UserError: if there are fewer than 2 works.
  """
  works = sorted({clip.work for clip in clips})
  if len(works) < 2:
    raise errors.UserError(
      f"{len(works)} works: expected at least 2, one for each half"
    )
  order = np.random.default_rng(seed).permutation(len(works))
  first = {works[place] for place in order[::2]}
  parts = [
    [clip for clip in clips if (clip.work in first) == is_first]
    for is_first in (True, False)
  ]
  count = max(max_clips // 2, 1)
  return _thinned(parts[0], count), _thinned(parts[1], count)


def paired(
  clips: Sequence[Clip], samples_dirs: Sequence[str], max_clips: int
) -> tuple[list[Clip], list[Clip]]:
  """The clips that samples were made for, and clips of other works.

  Args:
    clips: all of them.
    samples_dirs: folders of samples whose prompts name clips; of several of
      one clip the first is taken.
    max_clips: of both lists together.

  Returns:
    The reference, and the clips with samples and their prompts as captions.

  Raises:
    UserError: if a folder cannot be used, no sample names a clip, or no other
      work is left.
  """
  by_name = {clip.name: clip for clip in clips}
  reference = evaluation_inputs.of_clips([clip.file for clip in clips])
  found: dict[str, Clip] = {}
  prompts = evaluation_inputs.Prompts((), 0)
  for sample in evaluation_inputs.read_samples(samples_dirs, prompts):
    pair = reference.pair(sample.source)
    if pair is not None and pair.name not in found:
      found[pair.name] = dataclasses.replace(
        by_name[pair.name], caption=sample.text, sample=sample.clip
      )
  if not found:
    raise errors.UserError(
      f"no sample in {', '.join(samples_dirs)} was made for a clip of the "
      "reference: expected prompts with a source"
    )
  works = {clip.work for clip in found.values()}
  rest = [clip for clip in clips if clip.work not in works]
  if not rest:
    raise errors.UserError(
      "samples were made for every work of the reference: expected others"
    )
  count = max(max_clips // 2, 1)
  return _thinned(rest, count), _thinned(list(found.values()), count)


def _thinned(clips: Sequence[Clip], count: int) -> list[Clip]:
  places = np.linspace(0, len(clips) - 1, min(len(clips), count)).astype(int)
  return [clips[place] for place in places]


def batches(
  clips: Sequence[Clip], seconds: float, batch_size: int, left_out: list[str]
) -> Iterator[Batch]:
  """The first seconds of clips.

  Args:
    clips: to read.
    seconds: of each; shorter ones are left out.
    batch_size: most clips of a batch.
    left_out: gets why clips cannot be heard, a line each.
  """
  group: list[tuple[int, int, list[np.ndarray]]] = []
  for place, clip in enumerate(clips):
    try:
      waveforms, rate_hz = _waveforms(clip, seconds)
    except errors.UserError as error:
      left_out.append(str(error))
      continue
    if group and (rate_hz != group[0][1] or len(group) == batch_size):
      yield _batch(group)
      group = []
    group.append((place, rate_hz, waveforms))
  if group:
    yield _batch(group)


def _batch(group: Sequence[tuple[int, int, list[np.ndarray]]]) -> Batch:
  places, rates, rows = zip(*group)
  waveforms, *samples = (np.stack(column) for column in zip(*rows))
  return Batch(waveforms, rates[0], places, *(samples or [None]))


def _waveforms(clip: Clip, seconds: float) -> tuple[list[np.ndarray], int]:
  """The clip and, if it has one, its sample at the clip's rate."""
  rate_hz, found = 0, []
  for file in (clip.file, clip.sample):
    if file is None:
      continue
    waveform, file_hz = file.decode(file.read())
    rate_hz = rate_hz or file_hz
    waveform = files.resample(waveform, file_hz, rate_hz)
    length = round(seconds * rate_hz)
    if len(waveform) < length:
      raise errors.UserError(
        f"{file.name} has {len(waveform) / rate_hz:.1f} s: expected {seconds:g}"
      )
    found.append(waveform[:length])
  return found, rate_hz
