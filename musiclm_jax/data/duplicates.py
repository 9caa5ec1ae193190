# SPDX-License-Identifier: Apache-2.0
"""Recordings that are in a folder more than once, whatever their encoding.

Fingerprints by file flow in; pairs that share a recording flow out, and from
these what to leave out and which works must be in one split. The steps are
functions of one file, one key or one pair, so that Beam can do them too.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from musiclm_jax.audio import fingerprint
from musiclm_jax.data import doctor

# A key in more places than this says nothing, and costs their square.
MAX_PLACES = 50
# Keys that must agree on an offset: at least three, and one in a hundred of
# the shorter file's, since long files have many by chance.
_MIN_VOTES, _MIN_VOTE_SHARE = 3, 0.01
# Music that repeats itself fits at several offsets.
_MAX_OFFSETS = 5
# From this share on, the file holds nothing that the other does not.
COPY_SHARE = 0.8
# Less in common than this is a loop or a sample, not a recording.
_MIN_SHARED_SECS = 5.0
_LOSSLESS = (".wav", ".flac")


@dataclasses.dataclass(frozen=True, order=True)
class Pair:
  """Two files that share a recording.

  Attributes:
    a: the file whose name comes first.
    b: the other.
    shared_secs: length of what they share.
    share_a: part of the first that is shared, in [0, 1].
    share_b: part of the second.
    offset_secs: where the second starts in the first.
    agreement: see `fingerprint.Match`.
  """

  a: str
  b: str
  shared_secs: float
  share_a: float
  share_b: float
  offset_secs: float
  agreement: float

  def share(self, file: str) -> float:
    return self.share_a if file == self.a else self.share_b


def vote_offsets(
  places: Sequence[tuple[str, int]],
) -> list[tuple[tuple[str, str], int]]:
  """Votes of one key.

  Args:
    places: (file, frame) wherever the key occurs.

  Returns:
    ((file, later file), frame in the first minus frame in the second), sorted;
    nothing if there are more than `MAX_PLACES`.
  """
  if len(places) > MAX_PLACES:
    return []
  places = sorted(places)
  return [
    ((file, other), frame - other_frame)
    for index, (file, frame) in enumerate(places)
    for other, other_frame in places[index + 1 :]
    if file != other
  ]


def top_offsets(offsets: Iterable[int]) -> list[tuple[int, int]]:
  """The offsets most keys of a pair agree on, give or take a frame.

  Args:
    offsets: one per vote, in any order.

  Returns:
    (votes, offset), most votes first; at most five, far enough apart.
  """
  counts = collections.Counter(offsets)
  votes = sorted(
    (-sum(counts[near] for near in (at - 1, at, at + 1)), at) for at in counts
  )
  found: list[tuple[int, int]] = []
  for negative, at in votes:
    if -negative < _MIN_VOTES or len(found) == _MAX_OFFSETS:
      break
    if all(abs(at - other) > 2 for _, other in found):
      found.append((-negative, at))
  return found


def judge(
  names: tuple[str, str],
  prints: tuple[fingerprint.Fingerprint, fingerprint.Fingerprint],
  offsets: Sequence[tuple[int, int]],
) -> Pair | None:
  """Compares two files where their keys say so.

  Args:
    names: of the files, the first one first.
    prints: their fingerprints.
    offsets: from `top_offsets`.

  Returns:
    None if they share too little.
  """
  fewest = _MIN_VOTE_SHARE * min(len(item.keys) for item in prints)
  matches = [
    fingerprint.compare(*prints, offset)
    for votes, offset in offsets
    if votes >= fewest
  ]
  best = max(
    (match for match in matches if match is not None),
    key=lambda match: max(match.share_a, match.share_b),
    default=None,
  )
  if best is None:
    return None
  is_copy = max(best.share_a, best.share_b) >= COPY_SHARE
  if not is_copy and best.shared_secs < _MIN_SHARED_SECS:
    return None
  return Pair(
    *names,
    shared_secs=round(best.shared_secs, 2),
    share_a=round(best.share_a, 4),
    share_b=round(best.share_b, 4),
    offset_secs=round(best.offset_secs, 3),
    agreement=round(best.agreement, 4),
  )


def find_pairs(
  prints: Mapping[str, fingerprint.Fingerprint],
) -> list[Pair]:
  """All pairs of files that share a recording, sorted.

  What `vote_offsets`, `top_offsets` and `judge` do, with all keys in memory:
  two to three megabytes per hour of audio.
  """
  names = sorted(prints)
  if not names:
    return []
  keys = np.concatenate([prints[name].keys for name in names])
  frames = np.concatenate([prints[name].key_frames for name in names])
  files = np.repeat(
    np.arange(len(names), dtype=np.int32),
    [len(prints[name].keys) for name in names],
  )
  # Within a key by file and frame, as `vote_offsets` sorts them.
  order = np.lexsort((frames, files, keys))
  keys, frames, files = keys[order], frames[order], files[order]
  _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
  rare = counts[inverse] <= MAX_PLACES
  keys, frames, files = keys[rare], frames[rare], files[rare]
  firsts, seconds, offsets = [], [], []
  for step in range(1, min(MAX_PLACES, len(keys))):
    meets = (keys[step:] == keys[:-step]) & (files[step:] != files[:-step])
    firsts.append(files[:-step][meets])
    seconds.append(files[step:][meets])
    offsets.append((frames[:-step] - frames[step:])[meets])
  if not firsts:
    return []
  pairs = np.stack([np.concatenate(firsts), np.concatenate(seconds)], axis=1)
  all_offsets = np.concatenate(offsets)
  order = np.lexsort((pairs[:, 1], pairs[:, 0]))
  pairs, all_offsets = pairs[order], all_offsets[order]
  changes = np.flatnonzero((pairs[1:] != pairs[:-1]).any(axis=1)) + 1
  found = []
  for start, stop in zip([0, *changes], [*changes, len(pairs)]):
    # Most pairs that meet at all meet once, by chance.
    if stop - start < _MIN_VOTES:
      continue
    both = names[pairs[start, 0]], names[pairs[start, 1]]
    pair = judge(
      both,
      (prints[both[0]], prints[both[1]]),
      top_offsets(all_offsets[start:stop].tolist()),
    )
    if pair is not None:
      found.append(pair)
  return sorted(found)


def _rank(finding: doctor.Finding) -> tuple:
  """Long ones first; of about equal length the one of better quality."""
  length = round(math.log(max(finding.secs, 1e-3), 1.1))
  is_lossy = not finding.file.lower().endswith(_LOSSLESS)
  return (
    -length,
    is_lossy,
    -finding.sample_rate_hz,
    -finding.secs,
    finding.file,
  )


def mark_near_duplicates(
  findings: Sequence[doctor.Finding], pairs: Iterable[Pair]
) -> tuple[list[doctor.Finding], dict[str, str]]:
  """Marks copies, and finds out which kept files belong in one split.

  Of files that are the same recording the longest is kept, and of about equal
  length a lossless one before a lossy one, and the highest rate. Files that
  share only a part are all kept.

  Args:
    findings: with exact duplicates marked.
    pairs: from `find_pairs`.

  Returns:
    Findings in the same order, copies as `doctor.NEAR_DUPLICATE`; and by kept
    file that shares with other kept ones the first of its group.
  """
  usable = [item for item in findings if item.status not in doctor.SKIPPED]
  by_file: dict[str, list[Pair]] = collections.defaultdict(list)
  kept_names = {item.file for item in usable}
  for pair in sorted(pairs):
    if pair.a in kept_names and pair.b in kept_names:
      by_file[pair.a].append(pair)
      by_file[pair.b].append(pair)
  original: dict[str, str] = {}
  detail: dict[str, str] = {}
  done: set[str] = set()
  for finding in sorted(usable, key=_rank):
    file = finding.file
    original[file] = file
    copies = [
      pair
      for pair in by_file[file]
      if pair.share(file) >= COPY_SHARE and {pair.a, pair.b} - {file} <= done
    ]
    if copies:
      best = max(copies, key=lambda pair: (pair.share(file), pair.agreement))
      other = best.b if best.a == file else best.a
      original[file] = original[other]
      detail[file] = (
        f"same recording as {original[other]} ({best.shared_secs:.1f} s, "
        f"agreement {best.agreement:.2f})"
      )
    done.add(file)
  marked = [
    dataclasses.replace(
      item,
      status=doctor.NEAR_DUPLICATE,
      detail=detail[item.file],
      duplicate_of=original[item.file],
    )
    if item.file in detail
    else item
    for item in findings
  ]
  return marked, _groups(original, by_file)


def _groups(
  original: Mapping[str, str], by_file: Mapping[str, Sequence[Pair]]
) -> dict[str, str]:
  """First file of the group, by kept file that shares with other kept ones.

  A copy that is left out still ties what it shares with: two files may both
  hold it.
  """
  leader = {file: file for file in set(original.values())}

  def find(file: str) -> str:
    while leader[file] != file:
      file = leader[file]
    return file

  for file in sorted(by_file):
    for pair in by_file[file]:
      low, high = sorted((find(original[pair.a]), find(original[pair.b])))
      leader[high] = low
  sizes = collections.Counter(map(find, leader))
  return {file: find(file) for file in sorted(leader) if sizes[find(file)] > 1}
