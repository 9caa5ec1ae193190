# SPDX-License-Identifier: Apache-2.0
"""Audio for MusicCaps that the user has: rows and a folder in, clips out.

Much of it is gone from the web, so what is there is counted: every metric says
how many of the 5,521 clips it has seen.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from musiclm_jax.audio import files
from musiclm_jax.core import errors
from musiclm_jax.evaluation import clip_files, musiccaps

_ID_LENGTH = 11
# Behind the id: '_30', '-30-40', '_[30-40]' and the like.
_TIMES = re.compile(
  r"[-_. ]?[\[(]?([0-9]+)(?:\.0+)?(?:[-_ ]([0-9]+)(?:\.0+)?)?[\])]?"
)
# A file named by the id alone that is no longer than this is the clip.
_CLIP_SLACK_SECS = 1.0


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a folder has of the table.

  Attributes:
    folder: where it was looked for.
    clips: by ytid, in the order of the table.
    missing: ytids without a file, in the order of the table.
    unknown: audio files that belong to no row, sorted.
  """

  folder: pathlib.Path
  clips: dict[str, clip_files.ClipFile]
  missing: tuple[str, ...]
  unknown: tuple[str, ...]

  def to_dict(self) -> dict[str, Any]:
    """JSON-compatible; paths are relative to the folder."""
    return {
      "folder": str(self.folder),
      "num_available": len(self.clips),
      "num_listed": len(self.clips) + len(self.missing),
      "num_public": musiccaps.NUM_CLIPS,
      "available": {ytid: clip.name for ytid, clip in self.clips.items()},
      "missing": list(self.missing),
      "unknown": list(self.unknown),
    }


def find(
  rows: Sequence[musiccaps.Row],
  folder: str | os.PathLike,
  max_unknown_fraction: float = 0.1,
  others: Sequence[musiccaps.Row] = (),
  whole_recordings: bool = True,
) -> Manifest:
  """Audio of rows: files named by ytid, perhaps with times behind it.

  `-0Gj8-vB1q4.wav` is the clip if it is no longer than one, else the whole
  recording, of which the clip is cut; `-0Gj8-vB1q4_30.wav` and
  `-0Gj8-vB1q4-30-40.mp3` are the clip.

  Args:
    rows: of the table.
    folder: of audio files, perhaps in folders of its own.
    max_unknown_fraction: of its files that may belong to no row.
    others: more rows, whose files are known and passed over.
    whole_recordings: whether a long file named by the id alone is the whole
      recording; else it is the clip, as what a system makes.

  Raises:
    UserError: if the folder has no audio, two files belong to one row, more
      files than allowed or all of them belong to none.
  """
  root = pathlib.Path(folder)
  if not root.is_dir():
    raise errors.UserError(f"no folder of audio at {folder}")
  wanted = {row.ytid for row in rows}
  by_ytid = {row.ytid: row for row in (*others, *rows)}
  found: dict[str, clip_files.ClipFile] = {}
  unknown, num_others = [], 0
  for name in files.list_names(root):
    if not (root / name).is_file():
      continue
    clip = _match(root, name, by_ytid, whole_recordings)
    if clip is None:
      unknown.append(name)
      continue
    ytid = pathlib.PurePosixPath(name).name[:_ID_LENGTH]
    if ytid not in wanted:
      num_others += 1
      continue
    if ytid in found:
      raise errors.UserError(
        f"{found[ytid].name} and {name} in {folder} are both named by "
        f"ytid={ytid!r}: expected one file for each clip"
      )
    found[ytid] = clip
  total = len(found) + len(unknown) + num_others
  if not total:
    raise errors.UserError(
      f"no file in {folder} ends in {', '.join(files.ENDINGS)}"
    )
  if not found and num_others:
    raise errors.UserError(
      f"the {num_others} audio files in {folder} are of other rows of the "
      f"table: expected some of the {len(rows)} that are asked for"
    )
  if not found or len(unknown) > max_unknown_fraction * total:
    raise errors.UserError(
      f"{len(unknown)} of {total} audio files in {folder} are named by no ytid "
      f"of the table, the first: {unknown[0]}"
    )
  ordered = {row.ytid: found[row.ytid] for row in rows if row.ytid in found}
  missing = tuple(row.ytid for row in rows if row.ytid not in found)
  return Manifest(root, ordered, missing, tuple(unknown))


def _match(
  root: pathlib.Path,
  name: str,
  by_ytid: dict[str, musiccaps.Row],
  whole_recordings: bool,
) -> clip_files.ClipFile | None:
  """The clip in a file, or None if its name belongs to no row."""
  stem = pathlib.PurePosixPath(name).stem
  row = by_ytid.get(stem[:_ID_LENGTH])
  if row is None:
    return None
  rest = stem[_ID_LENGTH:]
  if rest:
    times = _TIMES.fullmatch(rest)
    if times is None or int(times[1]) != row.start_secs:
      return None
    if times[2] is not None and int(times[2]) != row.end_secs:
      return None
    return clip_files.of_path(root / name, name)
  secs = _secs(root / name) if whole_recordings else None
  most = row.end_secs - row.start_secs + _CLIP_SLACK_SECS
  excerpt = None
  if secs is not None and secs > most:
    excerpt = (float(row.start_secs), float(row.end_secs))
  return clip_files.of_path(root / name, name, excerpt)


def _secs(path: pathlib.Path) -> float | None:
  """Length by the header; None where it cannot be read, which is told later."""
  import soundfile

  try:
    return soundfile.info(str(path)).duration
  except (RuntimeError, OSError):
    return None
