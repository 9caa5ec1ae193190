# SPDX-License-Identifier: Apache-2.0
"""Humming and whistling, synthesised: notes in, a waveform out.

Both are one gliding tone, as no instrument of the SoundFont is: pitch slides
between notes, wavers, is never quite in tune, and breath is heard.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

# Onset and duration in seconds, MIDI pitch.
TimedNote = tuple[float, float, int]

_CONTROL_HZ = 200  # rate of pitch and loudness curves


@dataclasses.dataclass(frozen=True)
class Voice:
  """How a voice sounds.

  Attributes:
    lowest: MIDI pitch below which it does not sing.
    highest: MIDI pitch above which it does not.
    partials: amplitudes of the harmonics.
    breath: level of the noise beside the tone.
    glide_secs: time a slide between notes takes.
    vibrato_cents: largest depth.
    detune_cents: standard deviation of the pitch of a note.
  """

  lowest: int
  highest: int
  partials: tuple[float, ...]
  breath: float
  glide_secs: float
  vibrato_cents: float
  detune_cents: float


# Closed lips leave the first few harmonics; the rest is a guess by ear.
VOICES = {
  "hum": Voice(
    43, 74, (1.0, 0.45, 0.22, 0.1, 0.05, 0.03), 0.03, 0.07, 40.0, 18.0
  ),
  "whistle": Voice(69, 98, (1.0, 0.04, 0.015), 0.08, 0.04, 25.0, 15.0),
}


def _smooth(curve: np.ndarray, secs: float) -> np.ndarray:
  """A curve at `_CONTROL_HZ` under a moving Hann window."""
  width = max(round(secs * _CONTROL_HZ), 1)
  window = np.hanning(width + 2)[1:-1]
  padded = np.pad(curve, (width // 2, width - 1 - width // 2), mode="edge")
  return np.convolve(padded, window / window.sum(), mode="valid")


def sing(
  notes: Sequence[TimedNote],
  secs: float,
  voice: str,
  sample_rate_hz: int,
  seed: int,
) -> np.ndarray:
  """Sings notes one after the other.

  Args:
    notes: sorted by onset; a later note ends the one before it.
    secs: length of the result.
    voice: key of `VOICES`.
    sample_rate_hz: of the result.
    seed: of intonation, vibrato, timing and breath.

  Returns:
    float32 `[round(secs * sample_rate_hz)]`, any level.

  Raises:
    ValueError: if there is no such voice, or no note begins before the end.
  """
  if voice not in VOICES:
    raise ValueError(f"voice={voice!r}: expected one of {sorted(VOICES)}")
  notes = [note for note in notes if note[0] < secs]
  if not notes:
    raise ValueError(f"notes: expected one that begins within {secs} s")
  kind, rng = VOICES[voice], np.random.default_rng(seed)
  count = round(secs * _CONTROL_HZ) + 1
  pitch = np.full(count, float(notes[0][2]))
  level = np.zeros(count)
  for onset, duration, note_pitch in notes:
    onset = max(onset + rng.normal(0.0, 0.015), 0.0)
    first = round(onset * _CONTROL_HZ)
    last = round((onset + max(duration, 0.08)) * _CONTROL_HZ)
    # A short dip before each note, or repeated notes would be one.
    level[max(first - 8, 0) : first] *= 0.35
    pitch[first:] = note_pitch + rng.normal(0.0, kind.detune_cents / 100)
    level[first:last] = rng.uniform(0.8, 1.0)
    level[last:] = 0.0
  times = np.arange(count) / _CONTROL_HZ
  depth = rng.uniform(0.2, 1.0) * kind.vibrato_cents / 100
  phase = 2 * np.pi * rng.uniform(4.5, 6.5) * times + rng.uniform(0, 2 * np.pi)
  drift = _smooth(rng.normal(0.0, 1.0, count), 0.5) * 0.5
  pitch = _smooth(pitch, kind.glide_secs) + depth * np.sin(phase) + drift
  level = _smooth(level, 0.05) * (1 + 0.1 * np.sin(phase))

  at = np.arange(round(secs * sample_rate_hz)) / sample_rate_hz
  tone_hz = 440.0 * 2 ** ((np.interp(at, times, pitch) - 69) / 12)
  loudness = np.interp(at, times, level)
  angle = 2 * np.pi * np.cumsum(tone_hz) / sample_rate_hz
  tone = np.zeros(len(at))
  for number, amplitude in enumerate(kind.partials, 1):
    heard = number * tone_hz < 0.45 * sample_rate_hz
    tone += amplitude * heard * np.sin(number * angle)
  # Breath is noise around the tone: its product with the tone.
  noise = rng.normal(0.0, 1.0, len(at))
  breath = kind.breath * noise * (0.5 + np.sin(angle))
  return (loudness * (tone + breath)).astype(np.float32)
