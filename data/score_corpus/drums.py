# SPDX-License-Identifier: Apache-2.0
"""Drum patterns by meter and tempo, as (onset_quarters, key, strength)."""

_KICK, _SNARE, _HAT, _OPEN_HAT = 36, 38, 42, 46
# The SoundFont's kick is its loudest drum, but the cymbals and the snare are
# what tells drums from a low note.
_KICK_STRENGTH, _SNARE_STRENGTH = 0.6, 1.15
_STRONG_HAT, _WEAK_HAT = 1.2, 0.95


def _bar(meter: str, bar_quarters: float, tempo: str) -> list[tuple]:
  top, bottom = map(int, meter.split("/"))
  beat = 4.0 / bottom
  if bottom >= 8 and top % 3 == 0:
    # Compound: eighths on the hat, kick and snare by turns on each third.
    hits = [
      (i * beat, _HAT, _WEAK_HAT if i % 3 else _STRONG_HAT) for i in range(top)
    ]
    for third in range(top // 3):
      drum = (_SNARE, _SNARE_STRENGTH) if third % 2 else (_KICK, _KICK_STRENGTH)
      hits.append((third * 3 * beat, *drum))
    return hits
  if top == 3:
    return [
      (0.0, _KICK, _KICK_STRENGTH),
      (beat, _SNARE, 0.7 * _SNARE_STRENGTH),
      (2 * beat, _SNARE, 0.7 * _SNARE_STRENGTH),
      *((i * beat / 2, _HAT, _STRONG_HAT) for i in range(6)),
    ]
  # Hats twice per strong beat; slow music gets them four times, so that the
  # drums are heard often enough to be recognised.
  step = bar_quarters / (8 if tempo == "slow" else 4)
  cymbal = _OPEN_HAT if tempo == "slow" else _HAT
  hits = [
    (i * step, cymbal, _WEAK_HAT if i % 2 else _STRONG_HAT)
    for i in range(round(bar_quarters / step))
  ]
  quarter = bar_quarters / 4
  hits += [(at, _KICK, _KICK_STRENGTH) for at in (0.0, 2 * quarter)]
  return hits + [(at, _SNARE, _SNARE_STRENGTH) for at in (quarter, 3 * quarter)]


def pattern(
  meter: str, bar_quarters: float, quarters: float, tempo: str
) -> list[tuple[float, int, float]]:
  """Drum hits of a kit.

  Args:
    meter: time signature, '4/4'.
    bar_quarters: quarter notes per bar.
    quarters: how long to play, from a bar line on.
    tempo: 'slow', 'moderate' or 'fast'.

  Returns:
    (onset in quarter notes, General MIDI drum key, strength beside the
    velocity of the melody).
  """
  bar = _bar(meter, bar_quarters, tempo)
  hits, start = [], 0.0
  while start < quarters:
    hits.extend(
      (start + at, key, strength)
      for at, key, strength in bar
      if start + at < quarters
    )
    start += bar_quarters
  return sorted(hits)
