# SPDX-License-Identifier: Apache-2.0
"""Simple chords under a melody: triads of its key that fit its notes."""

import dataclasses
from collections.abc import Sequence

from . import works

_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
# Tonic, subdominant and dominant are preferred where several chords fit.
_DEGREE_BONUS = {0: 0.35, 3: 0.2, 4: 0.3, 5: 0.1, 1: 0.05}
_CHORD_LOWEST, _BASS_LOWEST = 48, 38


@dataclasses.dataclass(frozen=True)
class Key:
  """A key.

  Attributes:
    tonic: pitch class, 0 = C.
    mode: 'major' or 'minor'.
  """

  tonic: int
  mode: str

  def triad(self, degree: int) -> tuple[int, int, int]:
    """Pitch classes of the triad on a scale degree, root first."""
    scale = _SCALES[self.mode]
    classes = [scale[(degree + step) % 7] for step in (0, 2, 4)]
    if self.mode == "minor" and degree == 4:
      classes[1] = 11  # The leading note: minor keys have a major dominant.
    return tuple((self.tonic + step) % 12 for step in classes)


def choose_chords(
  notes: Sequence[works.Note], key: Key, step_quarters: float
) -> list[tuple[int, int, int]]:
  """The best-fitting triad of each step of `step_quarters`."""
  end = max((note[0] + note[1] for note in notes), default=step_quarters)
  chords = []
  for index in range(max(int(end / step_quarters + 0.999), 1)):
    start, stop = index * step_quarters, (index + 1) * step_quarters
    weights = [0.0] * 12
    for onset, duration, pitch in notes:
      overlap = min(onset + duration, stop) - max(onset, start)
      if overlap > 0:
        # The first note of a step says most about its harmony.
        strength = 1.5 if abs(onset - start) < 1e-6 else 1.0
        weights[pitch % 12] += overlap * strength
    total = sum(weights) or 1.0
    scores = {
      degree: sum(weights[c] for c in key.triad(degree)) / total + bonus
      for degree, bonus in _DEGREE_BONUS.items()
    }
    chords.append(key.triad(max(scores, key=lambda degree: scores[degree])))
  return chords


def _at_or_above(pitch_class: int, lowest: int) -> int:
  return lowest + (pitch_class - lowest) % 12


def _close_position(chord: tuple[int, int, int]) -> list[int]:
  return sorted(_at_or_above(c, _CHORD_LOWEST) for c in chord)


def accompany(
  notes: Sequence[works.Note],
  key: Key,
  bar_quarters: float,
  texture: str,
  is_compound: bool,
) -> list[works.Note]:
  """An accompaniment in the tenor and bass range.

  Args:
    notes: melody and any other voices, which the chords are fitted to.
    key: of the melody.
    bar_quarters: quarter notes per bar; chords change once per bar.
    texture: 'chords', 'arpeggios' or 'bass notes'.
    is_compound: whether beats are divided by three.

  Returns:
    Notes sorted by onset.

  Raises:
    ValueError: if the texture is none of these.
  """
  beats = 6 if is_compound or round(bar_quarters) == 3 else 8
  out: list[works.Note] = []
  for index, chord in enumerate(choose_chords(notes, key, bar_quarters)):
    start = index * bar_quarters
    bass = _at_or_above(chord[0], _BASS_LOWEST)
    tones = _close_position(chord)
    if texture == "chords":
      half = bar_quarters / 2
      for at in (start, start + half):
        out.extend((at, half, tone) for tone in tones)
      out.append((start, bar_quarters, bass))
    elif texture == "arpeggios":
      order = [bass, tones[0], tones[1], tones[2], tones[1], tones[0]]
      step = bar_quarters / beats
      out.extend(
        (start + i * step, step * 1.5, order[i % len(order)])
        for i in range(beats)
      )
    elif texture == "bass notes":
      half = bar_quarters / 2
      fifth = _at_or_above(chord[2], _BASS_LOWEST)
      out += [(start, half, bass), (start + half, half, fifth)]
    else:
      raise ValueError(
        f"texture={texture!r}: expected 'chords', 'arpeggios' or 'bass notes'"
      )
  return sorted(out)


def lower_three(
  melody: Sequence[works.Note], key: Key, bar_quarters: float
) -> list[list[works.Note]]:
  """Two inner voices and a bass under a melody, in half-bar notes."""
  half = bar_quarters / 2
  voices: list[list[works.Note]] = [[], [], []]
  mean = sum(note[2] for note in melody) / max(len(melody), 1)
  inner = max(round(mean) - 14, 45)
  for index, chord in enumerate(choose_chords(melody, key, half)):
    at = index * half
    low, high = sorted(_at_or_above(c, inner) for c in chord[1:])
    voices[0].append((at, half, high))
    voices[1].append((at, half, low))
    voices[2].append((at, half, _at_or_above(chord[0], _BASS_LOWEST)))
  return voices
