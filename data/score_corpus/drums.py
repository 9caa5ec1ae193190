# SPDX-License-Identifier: Apache-2.0
"""Drum patterns by meter and tempo, as (onset_quarters, key, strength)."""

_KICK, _SNARE, _HAT, _RIDE = 36, 38, 42, 51


def _bar(meter: str, bar_quarters: float, tempo: str) -> list[tuple]:
  top, bottom = map(int, meter.split("/"))
  beat = 4.0 / bottom
  if bottom >= 8 and top % 3 == 0:
    # Compound: eighths on the hat, kick and snare by turns on each third.
    hits = [(i * beat, _HAT, 0.8 if i % 3 == 0 else 0.6) for i in range(top)]
    strong = [(i * 3 * beat, i) for i in range(top // 3)]
    return hits + [(at, _SNARE if i % 2 else _KICK, 0.95) for at, i in strong]
  if top == 3:
    return [
      (0.0, _KICK, 1.0),
      (beat, _SNARE, 0.6),
      (2 * beat, _SNARE, 0.6),
      *((i * beat / 2, _HAT, 0.7) for i in range(6)),
    ]
  # Hats twice per strong beat; slow music gets them four times, so that the
  # drums are heard often enough to be recognised.
  step = bar_quarters / (8 if tempo == "slow" else 4)
  cymbal = _RIDE if tempo == "fast" else _HAT
  hits = [
    (i * step, cymbal, 0.75 if i % 2 == 0 else 0.6)
    for i in range(round(bar_quarters / step))
  ]
  quarter = bar_quarters / 4
  hits += [(0.0, _KICK, 1.0), (2 * quarter, _KICK, 0.9)]
  return hits + [(quarter, _SNARE, 0.95), (3 * quarter, _SNARE, 0.95)]


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
    (onset in quarter notes, General MIDI drum key, strength in (0, 1]).
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
