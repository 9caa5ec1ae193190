# SPDX-License-Identifier: Apache-2.0
"""Which scores there are, and each as a light list of notes.

music21's bundled corpus flows in; `Work`s (where a score lies) and `Piece`s
(its voices as plain tuples, key and meter) flow out. No TensorFlow here.
"""

import dataclasses
import functools
import importlib.util
import pathlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Onset and duration in quarter notes, MIDI pitch.
Note = tuple[float, float, int]

_TUNE_NUMBER = re.compile(r"^X:[ \t]*(\d+)", re.MULTILINE)
_DANCE = re.compile(r"^R:[ \t]*(\w+)", re.MULTILINE)
_DANCES = ("reel", "jig", "hornpipe", "strathspey", "waltz", "polka", "march")
_MIN_ABC_CHARS = 220  # Shorter tunes last only a few bars.
_MIN_NOTES = 16

# Krumhansl and Kessler's key profiles, for scores that state no mode.
_MAJOR = (
  6.35,
  2.23,
  3.48,
  2.33,
  4.38,
  4.09,
  2.52,
  5.19,
  2.39,
  3.66,
  2.29,
  2.88,
)
_MINOR = (
  6.33,
  2.68,
  3.52,
  5.38,
  2.60,
  3.53,
  2.54,
  4.75,
  3.98,
  2.69,
  3.34,
  3.17,
)


class UnusableScore(ValueError):
  """A score that cannot be parsed, or holds too little music."""


@dataclasses.dataclass(frozen=True)
class Work:
  """Where a score lies.

  Attributes:
    work_id: corpus path without ending, and tune number in a collection.
    category: collection: 'chorale', 'fiddle', 'folk', 'oneill', 'classical'.
    path: file relative to music21's corpus.
    number: tune number inside a collection file, or None.
  """

  work_id: str
  category: str
  path: str
  number: int | None = None


@dataclasses.dataclass(frozen=True)
class Piece:
  """A score as voices of notes.

  Attributes:
    work_id: of its `Work`.
    style: what it is by its collection or header: 'chorale', 'reel', ... .
    tonic: pitch class of the key, 0 = C.
    mode: 'major' or 'minor'.
    meter: time signature as written, '6/8'.
    bar_quarters: quarter notes per bar.
    pickup_quarters: quarter notes before the first full bar.
    voices: highest part first, each sorted by onset.
  """

  work_id: str
  style: str
  tonic: int
  mode: str
  meter: str
  bar_quarters: float
  pickup_quarters: float
  voices: tuple[tuple[Note, ...], ...]

  @property
  def is_compound(self) -> bool:
    """Whether three eighths make a beat (6/8, 9/8, 12/8, 3/8)."""
    top, bottom = self.meter.split("/")
    return int(bottom) >= 8 and int(top) % 3 == 0

  @property
  def end_quarters(self) -> float:
    return max(note[0] + note[1] for voice in self.voices for note in voice)

  @functools.cached_property
  def melody(self) -> tuple[Note, ...]:
    """The top voice, its highest note at each onset."""
    highest: dict[float, Note] = {}
    for note in self.voices[0]:
      if note[0] not in highest or note[2] > highest[note[0]][2]:
        highest[note[0]] = note
    return tuple(sorted(highest.values()))


@functools.cache
def corpus_root() -> pathlib.Path:
  """Folder of music21's corpus (found without importing music21)."""
  spec = importlib.util.find_spec("music21")
  if spec is None or spec.origin is None:
    raise ModuleNotFoundError("music21 is not installed: pip install music21")
  return pathlib.Path(spec.origin).parent / "corpus"


def _single(category: str, folder: str, *endings: str) -> list[Work]:
  root = corpus_root()
  paths = sorted(
    path
    for path in (root / folder).rglob("*")
    if path.suffix in endings and path.is_file()
  )
  return [
    Work(
      path.relative_to(root).with_suffix("").as_posix(),
      category,
      path.relative_to(root).as_posix(),
    )
    for path in paths
  ]


@functools.cache
def _tunes(path: str) -> dict[int, str]:
  """Tunes of an ABC collection by number; of repeated numbers the first."""
  text = (corpus_root() / path).read_text(encoding="utf-8", errors="replace")
  starts = list(_TUNE_NUMBER.finditer(text))
  ends = [match.start() for match in starts[1:]] + [len(text)]
  tunes: dict[int, str] = {}
  for match, end in zip(starts, ends):
    tunes.setdefault(int(match.group(1)), text[match.start() : end].strip())
  return tunes


def _collections(category: str, folder: str) -> list[Work]:
  root, found = corpus_root(), []
  for path in sorted((root / folder).glob("*.abc")):
    if path.name.startswith("test"):
      continue  # music21's own unit-test files.
    relative = path.relative_to(root).as_posix()
    stem = relative.removesuffix(".abc")
    found.extend(
      Work(f"{stem}/{number}", category, relative, number)
      for number, text in _tunes(relative).items()
      if len(text) >= _MIN_ABC_CHARS
    )
  return found


@functools.cache
def list_works(category: str) -> tuple[Work, ...]:
  """All works of a category in a fixed order.

  Raises:
    ValueError: if there is no such category.
  """
  if category == "chorale":
    found = _single("chorale", "bach", ".mxl")
  elif category == "fiddle":
    found = _single("fiddle", "ryansMammoth", ".abc")
  elif category == "folk":
    found = _collections("folk", "essenFolksong")
  elif category == "oneill":
    found = _collections("oneill", "oneills1850")
  elif category == "classical":
    found = []
    for folder in ("joplin", "haydn", "mozart"):
      found.extend(_single("classical", folder, ".mxl"))
  else:
    raise ValueError(
      f"category={category!r}: expected 'chorale', 'fiddle', 'folk', 'oneill' "
      "or 'classical'"
    )
  return tuple(found)


def select_works(counts: Mapping[str, int], seed: int) -> list[Work]:
  """Draws works per category, the same for the same seed.

  Args:
    counts: works wanted by category; capped at what there is.
    seed: of the draw.

  Returns:
    The works, grouped by category.
  """
  chosen = []
  for category, count in counts.items():
    works = list(list_works(category))
    random.Random(f"{seed}/works/{category}").shuffle(works)
    chosen.extend(works[:count])
  return chosen


def read_piece(work: Work) -> Piece:
  """Parses a score to notes.

  Raises:
    UnusableScore: if music21 cannot parse it, or it holds too little music.
  """
  # Parsing is slow to import, and listing works does not need it.
  from music21 import converter

  path = corpus_root() / work.path
  reader = converter.Converter()
  text = ""
  try:
    if work.number is None:
      # No pickles: parallel processes would write the same ones.
      reader.parseFile(path, forceSource=True, storePickle=False)
      if path.suffix == ".abc":
        text = path.read_text(encoding="utf-8", errors="replace")
    else:
      text = _tunes(work.path)[work.number]
      reader.parseData(text + "\n", format="abc")
    return _to_piece(work, reader.stream, text)
  except UnusableScore:
    raise
  except Exception as error:  # music21 raises many kinds on damaged scores
    raise UnusableScore(f"score {work.work_id}: {error}") from error


def _to_piece(work: Work, score: Any, text: str) -> Piece:
  parts = list(score.parts) or [score]
  voices = [voice for voice in map(_notes, parts) if len(voice) >= 8]
  if sum(map(len, voices)) < _MIN_NOTES:
    raise UnusableScore(f"score {work.work_id}: fewer than {_MIN_NOTES} notes")
  voices.sort(key=lambda voice: -sum(n[2] for n in voice) / len(voice))
  signature = next(
    iter(score.recurse().getElementsByClass("TimeSignature")), None
  )
  meter = signature.ratioString if signature is not None else "4/4"
  top, bottom = map(int, meter.split("/"))
  bar_quarters = 4.0 * top / bottom
  tonic, mode = _key(score, voices)
  return Piece(
    work_id=work.work_id,
    style=_style(work, text),
    tonic=tonic,
    mode=mode,
    meter=meter,
    bar_quarters=bar_quarters,
    pickup_quarters=_pickup(parts[0], bar_quarters),
    voices=tuple(tuple(voice) for voice in voices),
  )


def _notes(part: Any) -> list[Note]:
  """Sounding notes of a part; ties joined, grace and chord names left out."""
  notes: list[Note] = []
  open_ties: dict[int, int] = {}
  for element in part.flatten().notes:
    duration = float(element.quarterLength)
    if duration <= 0 or "Harmony" in element.classes:
      continue
    tied_on = element.tie is not None and element.tie.type in (
      "stop",
      "continue",
    )
    for pitch in element.pitches:
      midi, onset = int(pitch.midi), float(element.offset)
      if tied_on and midi in open_ties:
        first = notes[open_ties[midi]]
        notes[open_ties[midi]] = (first[0], onset + duration - first[0], midi)
        continue
      open_ties[midi] = len(notes)
      notes.append((onset, duration, midi))
  return sorted(notes)


def _pickup(part: Any, bar_quarters: float) -> float:
  measures = list(part.getElementsByClass("Measure"))
  if len(measures) < 2:
    return 0.0
  first = float(measures[1].offset - measures[0].offset)
  return first if 0 < first < bar_quarters else 0.0


def _style(work: Work, text: str) -> str:
  dance = _DANCE.search(text)
  if dance and dance.group(1).lower() in _DANCES:
    return dance.group(1).lower()
  if work.category == "classical":
    return "ragtime" if work.path.startswith("joplin") else "classical"
  return {"chorale": "chorale", "folk": "folk song"}.get(
    work.category, "fiddle tune"
  )


def _key(score: Any, voices: Iterable[Sequence[Note]]) -> tuple[int, str]:
  """The key as the score states it, else the best-fitting profile."""
  stated = next(iter(score.recurse().getElementsByClass("KeySignature")), None)
  mode = getattr(stated, "mode", None)
  if mode in ("major", "minor"):
    return int(stated.tonic.pitchClass), mode
  weights = [0.0] * 12
  for voice in voices:
    for _, duration, pitch in voice:
      weights[pitch % 12] += duration
  fits = {
    (tonic, name): sum(
      weights[(tonic + step) % 12] * profile[step] for step in range(12)
    )
    / sum(profile)
    for tonic in range(12)
    for name, profile in (("major", _MAJOR), ("minor", _MINOR))
  }
  return max(fits, key=lambda key: fits[key])


def melody_groups(pieces: Sequence[Piece]) -> list[int]:
  """Groups pieces that share a melody, so that a split can keep them together.

  Bach set the same hymn many times, and fiddle tunes appear in two books. Two
  pieces belong together when a quarter of the shorter melody's runs of eight
  intervals occur in the other one as well, in any key.

  Args:
    pieces: any number.

  Returns:
    For each piece, the index of the first piece of its group.
  """
  runs = [_interval_runs(piece.melody) for piece in pieces]
  where: dict[tuple[int, ...], list[int]] = {}
  for index, found in enumerate(runs):
    for run in found:
      where.setdefault(run, []).append(index)
  shared: dict[tuple[int, int], int] = {}
  for indices in where.values():
    for position, left in enumerate(indices):
      for right in indices[position + 1 :]:
        shared[left, right] = shared.get((left, right), 0) + 1
  group = list(range(len(pieces)))

  def find(index: int) -> int:
    while group[index] != index:
      index = group[index]
    return index

  for (left, right), count in sorted(shared.items()):
    if count >= 0.25 * min(len(runs[left]), len(runs[right])):
      first, second = sorted((find(left), find(right)))
      group[second] = first
  return [find(index) for index in range(len(pieces))]


def _interval_runs(melody: Sequence[Note], length: int = 8) -> set[tuple]:
  pitches = [note[2] for note in melody]
  # Repeated notes carry text in songs and differ between verses.
  steps = [b - a for a, b in zip(pitches, pitches[1:]) if a != b]
  return {
    tuple(steps[start : start + length])
    for start in range(max(len(steps) - length + 1, 1))
  }
