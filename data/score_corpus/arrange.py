# SPDX-License-Identifier: Apache-2.0
"""A piece and a plan to timed notes, and the facts one can hear in them.

Nothing here makes sound: `render.py` does, and `captions.py` words the facts.
"""

import dataclasses
import random
from collections.abc import Sequence

from . import drums, harmony, instruments, plans, works

PITCH_NAMES = (
  "C", "C sharp", "D", "E flat", "E", "F",
  "F sharp", "G", "A flat", "A", "B flat", "B",
)  # fmt: skip

# Quarter notes per minute of a melody of quarter notes. Denser melodies go
# slower, so that the classes stay apart in notes per second as well.
_TEMPO_QPM = {"slow": 64.0, "moderate": 122.0, "fast": 215.0}
_DENSITY_POWER = 0.75
_REGISTER_CENTRE = {"low": 46, "middle": 62, "high": 79}
_VELOCITY = {"soft": 56, "medium": 84, "loud": 114}
_MAX_START_TRIES = 12


@dataclasses.dataclass(frozen=True)
class Track:
  """Notes of one sound.

  Attributes:
    program: General MIDI program; ignored for drums.
    role: 'lead', 'accompaniment' or 'drums' (pitches are drum keys).
    notes: (onset_secs, duration_secs, pitch, velocity).
  """

  program: int
  role: str
  notes: tuple[tuple[float, float, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is true of an arrangement; captions say nothing else.

  Attributes:
    ensemble: 'solo', 'duo' or 'quartet'.
    lead: instrument or quartet name.
    partner: accompanying instrument, or ''.
    texture: what sounds beside the melody: 'unaccompanied melody', 'chords',
      'arpeggios', 'bass notes', 'lower voices', 'several voices'.
    has_drums: whether drums play.
    tempo: 'slow', 'moderate', 'fast'.
    quarters_per_minute: the exact tempo.
    register: 'low', 'middle', 'high': measured from the melody's mean pitch.
    loudness: 'soft', 'medium', 'loud'.
    tonic: pitch class after transposition.
    mode: 'major' or 'minor'.
    meter: time signature.
    style: of the work.
  """

  ensemble: str
  lead: str
  partner: str
  texture: str
  has_drums: bool
  tempo: str
  quarters_per_minute: float
  register: str
  loudness: str
  tonic: int
  mode: str
  meter: str
  style: str


def _register_of(pitches: Sequence[int]) -> str:
  mean = sum(pitches) / max(len(pitches), 1)
  if mean < 54:
    return "low"
  return "middle" if mean < 71 else "high"


def fold(pitch: int, lowest: int, highest: int) -> int:
  """Moves a pitch by octaves into a range of at least an octave."""
  while pitch < lowest:
    pitch += 12
  while pitch > highest:
    pitch -= 12
  return pitch


def notes_between(
  notes: Sequence[works.Note], piece: works.Piece, start: float, quarters: float
) -> list[works.Note]:
  """Notes in `[start, start + quarters)`, going round at the piece's end."""
  first = piece.pickup_quarters
  bars = max(int((piece.end_quarters - first) / piece.bar_quarters + 0.01), 1)
  cycle = bars * piece.bar_quarters
  window = []
  for onset, duration, pitch in notes:
    if not 0 <= onset - first < cycle:
      continue
    at = (onset - start) % cycle
    while at < quarters:
      window.append((at, min(duration, quarters - at), pitch))
      at += cycle
  return sorted(window)


def choose_start(
  piece: works.Piece, quarters: float, rng: random.Random
) -> float:
  """A bar line from which the melody sounds through most of the clip."""
  first, bar = piece.pickup_quarters, piece.bar_quarters
  bars = max(int((piece.end_quarters - first) / bar + 0.01), 1)
  best, best_share = first, -1.0
  for _ in range(_MAX_START_TRIES):
    start = first + rng.randrange(bars) * bar
    melody = notes_between(piece.melody, piece, start, quarters)
    share = sum(note[1] for note in melody) / quarters
    if melody and melody[0][0] > 1.0:
      share -= 0.5
    if share > best_share:
      best, best_share = start, share
    if share > 0.85:
      break
  return best


def _tempo(piece: works.Piece, plan: plans.Plan, rng: random.Random) -> float:
  melody = piece.melody
  span = max(melody[-1][0] + melody[-1][1] - melody[0][0], 1.0)
  density = min(max(len(melody) / span, 0.5), 4.0)
  base = _TEMPO_QPM[plan.tempo] * rng.uniform(0.95, 1.05)
  return round(base * density**-_DENSITY_POWER, 1)


def arrange(piece: works.Piece, plan: plans.Plan) -> tuple[list[Track], Facts]:
  """Sets a piece for the instruments of a plan.

  Args:
    piece: the score.
    plan: what is wanted; the same plan gives the same arrangement.

  Returns:
    Tracks that start at 0 and last at least `plan.secs`, and their facts.
  """
  rng = random.Random(plan.seed)
  qpm = _tempo(piece, plan, rng)
  # A little more than the clip, so that its end is cut from sounding music.
  quarters = (plan.secs + 1.0) * qpm / 60.0
  start = choose_start(piece, quarters, rng)
  voices = [
    notes_between(piece.melody if index == 0 else voice, piece, start, quarters)
    for index, voice in enumerate(piece.voices)
  ]
  shift = _transposition(voices[0], plan, rng)
  tonic = (piece.tonic + shift) % 12
  voices = [[(o, d, p + shift) for o, d, p in voice] for voice in voices]
  key = harmony.Key(tonic, piece.mode)
  if plan.ensemble == "quartet":
    parts, texture = _quartet(voices, plan, piece, key)
  elif plan.ensemble == "duo":
    parts, texture = _duo(voices, plan, piece, key, rng)
  else:
    parts, texture = _solo(voices, plan)
  velocity = _VELOCITY[plan.loudness]
  tracks = [
    _track(part, piece, qpm, velocity * part.loudness, rng) for part in parts
  ]
  if plan.has_drums:
    beats = drums.pattern(piece.meter, piece.bar_quarters, quarters, plan.tempo)
    tracks.append(_drum_track(beats, qpm, velocity))
  facts = Facts(
    ensemble=plan.ensemble,
    lead=plan.lead,
    partner=plan.partner,
    texture=texture,
    has_drums=plan.has_drums,
    tempo=plan.tempo,
    quarters_per_minute=qpm,
    register=_register_of([note[2] for note in parts[0].notes]),
    loudness=plan.loudness,
    tonic=tonic,
    mode=piece.mode,
    meter=piece.meter,
    style=piece.style,
  )
  return _from_zero(tracks), facts


def _transposition(
  melody: Sequence[works.Note], plan: plans.Plan, rng: random.Random
) -> int:
  """Semitones: a random key, and the octave nearest to the register."""
  mean = sum(note[2] for note in melody) / max(len(melody), 1)
  centre = _REGISTER_CENTRE[plan.register]
  if plan.ensemble != "quartet":
    item = instruments.BY_NAME[plan.lead]
    centre = min(max(centre, item.lowest + 7), item.highest - 7)
  return round(centre - mean) + rng.randint(-3, 3)


@dataclasses.dataclass(frozen=True)
class _Part:
  program: int
  notes: list[works.Note]
  loudness: float = 1.0
  role: str = "lead"


def _solo(
  voices: list[list[works.Note]], plan: plans.Plan
) -> tuple[list[_Part], str]:
  lead = instruments.BY_NAME[plan.lead]
  # In the low register close chords are mud: the melody is played alone.
  is_full = lead.is_polyphonic and len(voices) > 1 and plan.register != "low"
  played = voices if is_full else voices[:1]
  parts = []
  for index, voice in enumerate(played):
    notes = [(o, d, fold(p, lead.lowest, lead.highest)) for o, d, p in voice]
    parts.append(_Part(lead.program, notes, 1.0 if index == 0 else 0.8))
  return parts, "several voices" if is_full else "unaccompanied melody"


def _duo(
  voices: list[list[works.Note]],
  plan: plans.Plan,
  piece: works.Piece,
  key: harmony.Key,
  rng: random.Random,
) -> tuple[list[_Part], str]:
  lead = instruments.BY_NAME[plan.lead]
  partner = instruments.BY_NAME[plan.partner]
  melody = [(o, d, fold(p, lead.lowest, lead.highest)) for o, d, p in voices[0]]
  if len(voices) > 1 and rng.random() < 0.5:
    texture = "lower voices"
    # Folded down to where accompaniments lie, whatever the lead's register.
    below = sorted(
      (o, d, fold(p, 40, 66)) for voice in voices[1:] for o, d, p in voice
    )
  else:
    texture = rng.choice(("chords", "arpeggios", "bass notes"))
    below = harmony.accompany(
      [note for voice in voices for note in voice],
      key,
      piece.bar_quarters,
      texture,
      piece.is_compound,
    )
  below = [
    (o, d, fold(p, partner.lowest, partner.highest)) for o, d, p in below
  ]
  return (
    [
      _Part(lead.program, melody),
      _Part(partner.program, below, role="accompaniment"),
    ],
    texture,
  )


def _quartet(
  voices: list[list[works.Note]],
  plan: plans.Plan,
  piece: works.Piece,
  key: harmony.Key,
) -> tuple[list[_Part], str]:
  quartet = instruments.QUARTETS_BY_NAME[plan.lead]
  if len(voices) >= 4:
    # Outer voices always, and the two inner ones next to the melody.
    four = [voices[0], voices[1], voices[2], voices[-1]]
  else:
    four = [voices[0], *harmony.lower_three(voices[0], key, piece.bar_quarters)]
  parts = [
    _Part(program, [(o, d, fold(p, low, high)) for o, d, p in voice], loudness)
    for program, voice, low, high, loudness in zip(
      quartet.programs,
      four,
      quartet.lowest,
      quartet.highest,
      (1.0, 0.75, 0.75, 0.85),
    )
  ]
  return parts, "four voices"


def _track(
  part: _Part,
  piece: works.Piece,
  qpm: float,
  velocity: float,
  rng: random.Random,
) -> Track:
  secs = 60.0 / qpm
  notes = []
  for onset, duration, pitch in part.notes:
    # Bar lines are accented, and no two notes are struck quite alike.
    accent = 6 if onset % piece.bar_quarters < 1e-6 else 0
    struck = round(velocity + accent + rng.uniform(-4, 4))
    notes.append(
      (
        onset * secs,
        max(duration * secs * 0.95, 0.05),
        pitch,
        min(max(struck, 20), 127),
      )
    )
  return Track(part.program, part.role, tuple(notes))


def _drum_track(
  beats: Sequence[tuple[float, int, float]], qpm: float, velocity: float
) -> Track:
  secs = 60.0 / qpm
  return Track(
    0,
    "drums",
    tuple(
      (onset * secs, 0.1, key, min(max(round(velocity * strength), 20), 127))
      for onset, key, strength in beats
    ),
  )


def _from_zero(tracks: list[Track]) -> list[Track]:
  first = min(note[0] for track in tracks for note in track.notes)
  return [
    dataclasses.replace(
      track, notes=tuple((o - first, d, p, v) for o, d, p, v in track.notes)
    )
    for track in tracks
  ]
