# SPDX-License-Identifier: Apache-2.0
"""Files to clips of a set length, and works to splits. No TensorFlow here."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.data import folders

SAMPLE_RATE_HZ = 24_000
# A rest at the end is worth a clip of its own from half a segment on.
_MIN_REST = 0.5


@dataclasses.dataclass(frozen=True)
class FileJob:
  """One file to cut.

  Attributes:
    folder: the tree.
    file: in it.
    work_id: what it is a recording of; decides the split.
    arrangement: index among the files of the work.
    captions: of the whole file, given to each of its clips.
    aspects: likewise.
    segment_secs: length of a clip.
    silent_db: clips below are left out.
    titles: of the whole file.
    playlists: likewise.
    sample_rate_hz: of the clips.
    num_channels: of the clips; see `files.as_channels`.
  """

  folder: str
  file: str
  work_id: str
  arrangement: int
  captions: tuple[str, ...]
  aspects: tuple[str, ...]
  segment_secs: float
  silent_db: float
  titles: tuple[str, ...] = ()
  playlists: tuple[str, ...] = ()
  sample_rate_hz: int = SAMPLE_RATE_HZ
  num_channels: int = 1


def cut(waveform: np.ndarray, segment_samples: int) -> list[np.ndarray]:
  """Cuts a waveform into segments without overlap.

  Args:
    waveform: `[samples]` or `[samples, channels]`.
    segment_samples: length of a segment.

  Returns:
    Whole segments, and the rest if it is half a segment or all there is.
  """
  pieces = [
    waveform[start : start + segment_samples]
    for start in range(0, len(waveform), segment_samples)
  ]
  if len(pieces) > 1 and len(pieces[-1]) < _MIN_REST * segment_samples:
    pieces.pop()
  return pieces


def make_clips(job: FileJob) -> list[dict[str, Any]]:
  """All examples of one file, as the builder's features want them.

  Raises:
    UserError: if the file has become unreadable since it was examined.
  """
  rate_hz = job.sample_rate_hz
  waveform, _ = folders.read_audio(
    job.folder, job.file, rate_hz, mono=job.num_channels == 1
  )
  waveform = files.as_channels(waveform, job.num_channels)
  clips = []
  pieces = cut(waveform, round(job.segment_secs * rate_hz))
  for index, piece in enumerate(pieces):
    rms = float(np.sqrt(np.mean(np.square(piece, dtype=np.float64))))
    if rms < 10 ** (job.silent_db / 20):
      continue
    clips.append(
      {
        "id": f"{job.file}#{index}",
        "audio": files.encode_flac(piece, rate_hz),
        "sample_rate_hz": rate_hz,
        "num_samples": len(piece),
        "work_id": job.work_id,
        "arrangement": job.arrangement,
        "captions": list(job.captions),
        "aspects": list(job.aspects),
        "titles": list(job.titles),
        "playlists": list(job.playlists),
      }
    )
  return clips


def _fraction(work_id: str) -> float:
  """A number in [0, 1) that depends on the name alone."""
  digest = hashlib.sha256(f"split/{work_id}".encode()).digest()
  return int.from_bytes(digest[:8], "big") / 2.0**64


def split_works(
  work_ids: Iterable[str], fractions: Mapping[str, float]
) -> dict[str, str]:
  """The split of each work, by a hash of its id.

  Adding files does not move the others. Only where a split would be empty,
  the train work nearest to it is moved there, as long as train keeps one.

  Args:
    work_ids: any number, perhaps repeated.
    fractions: share of 'validation' and 'test'; the rest is 'train'.

  Returns:
    'train', 'validation' or 'test' by work id.
  """
  order = sorted(set(work_ids), key=_fraction)
  splits = {}
  for work_id in order:
    at, split = _fraction(work_id), "train"
    for name, share in fractions.items():
      if 0 <= at < share:
        split = name
        break
      at -= share
    splits[work_id] = split
  for name, share in fractions.items():
    train = [work_id for work_id in order if splits[work_id] == "train"]
    if share > 0 and name not in splits.values() and len(train) > 1:
      splits[train[0]] = name
  return splits
