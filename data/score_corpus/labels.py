# SPDX-License-Identifier: Apache-2.0
"""What sounds when in a clip, from its score: labels for probes.

A corpus's size and seed flow in; for each clip the notes of its arrangement
and the facts in them flow out. Nothing is stored in the corpus: an arrangement
is a function of work and plan. No TensorFlow here.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from . import arrange, captions, plans, works

# Root, third and fifth of major and minor triads; index 12 * minor + root.
_TRIADS = tuple(
  tuple((root + step) % 12 for step in steps)
  for steps in ((0, 4, 7), (0, 3, 7))
  for root in range(12)
)
_NOTE_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
PITCH_CLASS_NAMES = _NOTE_NAMES
CHORD_NAMES = (*_NOTE_NAMES, *(f"{name}m" for name in _NOTE_NAMES))
# A chord needs three pitch classes, of which a triad explains so much.
_MIN_CHORD_SHARE = 0.7


@dataclasses.dataclass(frozen=True)
class ClipScore:
  """The score of one clip.

  Attributes:
    clip_id: as in the corpus.
    work_id: as in the corpus.
    captions: as in the corpus, to compare with.
    melody: (onset_secs, duration_secs, pitch) of the leading part.
    notes: the same of all pitched parts.
    lead: instrument or quartet of the melody.
    tempo: 'slow', 'moderate' or 'fast'.
    quarters_per_minute: the exact tempo.
  """

  clip_id: str
  work_id: str
  captions: tuple[str, ...]
  melody: tuple[tuple[float, float, int], ...]
  notes: tuple[tuple[float, float, int], ...]
  lead: str
  tempo: str
  quarters_per_minute: float


def clip_score(piece: works.Piece, plan: plans.Plan) -> ClipScore:
  """The score of a planned clip.

  Times start with the first note; the clip starts where sound does, which is
  later by the attack of its instruments (less than 0.1 s).
  """
  tracks, facts = arrange.arrange(piece, plan)
  pitched = [
    tuple((onset, duration, pitch) for onset, duration, pitch, _ in track.notes)
    for track in tracks
    if track.role != "drums"
  ]
  return ClipScore(
    clip_id=plan.clip_id,
    work_id=plan.work_id,
    captions=tuple(captions.captions(facts, plan.seed)),
    melody=pitched[0],
    notes=tuple(note for notes in pitched for note in notes),
    lead=facts.lead,
    tempo=facts.tempo,
    quarters_per_minute=facts.quarters_per_minute,
  )


def clip_scores(
  pieces: Sequence[works.Piece], size: str, seed: int
) -> Iterator[ClipScore]:
  """Scores of all clips of a corpus.

  Args:
    pieces: all pieces of the corpus, in the order of `works.select_works`.
    size: key of `plans.SIZES`.
    seed: of the corpus.
  """
  by_id = {piece.work_id: piece for piece in pieces}
  for plan in plans.make_plans(pieces, plans.SIZES[size], seed):
    yield clip_score(by_id[plan.work_id], plan)


def pitch_classes(
  notes: Iterable[tuple[float, float, int]], start: float, end: float
) -> list[float]:
  """Seconds that each pitch class sounds in `[start, end)`."""
  seconds = [0.0] * 12
  for onset, duration, pitch in notes:
    overlap = min(onset + duration, end) - max(onset, start)
    if overlap > 0:
      seconds[pitch % 12] += overlap
  return seconds


def melody_pitch_class(score: ClipScore, start: float, end: float) -> int:
  """The melody's pitch class in a window, or -1 where none prevails."""
  seconds = pitch_classes(score.melody, start, end)
  best = max(range(12), key=lambda index: seconds[index])
  # It sounds most of the window, and no other nearly as long.
  rest = sum(seconds) - seconds[best]
  share = seconds[best] / (end - start)
  return best if share > 0.6 and rest < 0.5 * seconds[best] else -1


def chord(score: ClipScore, start: float, end: float) -> int:
  """Index in `CHORD_NAMES` of a window's triad, or -1 where none fits."""
  seconds = pitch_classes(score.notes, start, end)
  total = sum(seconds)
  if sum(value > 0.05 * total for value in seconds) < 3:
    return -1
  # The bass says which of two triads with common notes it is.
  lowest = min(
    (pitch for o, d, pitch in score.notes if o < end and o + d > start),
    default=0,
  )

  def fit(index: int) -> float:
    bonus = 0.1 * (_TRIADS[index][0] == lowest % 12)
    return sum(seconds[c] for c in _TRIADS[index]) / total + bonus

  best = max(range(24), key=fit)
  triad = [seconds[c] for c in _TRIADS[best]]
  if min(triad) <= 0.0 or sum(triad) < _MIN_CHORD_SHARE * total:
    return -1
  return best
