# SPDX-License-Identifier: Apache-2.0
"""What the worker processes do: a version of a melody to a clip of audio.

Kept apart from the builder, so that workers do not import TensorFlow.
"""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.audio import files

from ..score_corpus import arrange, drums, harmony, instruments, render, works
from . import versions, voices

SAMPLE_RATE_HZ = 16_000
_MIDDLE_QPM = 122.0
_DENSITY_POWER = 0.75
_RMS_DB = -20.0
_VELOCITY = 90


def middle_qpm(piece: works.Piece) -> float:
  """Quarter notes per minute; fewer where the melody has many notes."""
  melody = piece.melody
  span = max(melody[-1][0] + melody[-1][1] - melody[0][0], 1.0)
  density = min(max(len(melody) / span, 0.5), 4.0)
  return _MIDDLE_QPM * density**-_DENSITY_POWER


def _octaves(
  notes: Sequence[works.Note], lowest: int, highest: int, octave: float
) -> list[works.Note]:
  """Moves a melody as a whole to an octave that lies in a range.

  Notes that still lie outside are moved by themselves.
  """
  pitches = [note[2] for note in notes]
  # Fewest notes outside, of those the octave that was asked for.
  outside = {
    12 * step: sum(not lowest <= p + 12 * step <= highest for p in pitches)
    for step in range(-5, 6)
  }
  best = [s for s, n in sorted(outside.items()) if n == min(outside.values())]
  shift = best[round(octave * (len(best) - 1))]
  return [(o, d, arrange.fold(p + shift, lowest, highest)) for o, d, p in notes]


def _timed(
  notes: Sequence[works.Note], quarter_secs: float, rng: random.Random
) -> list[tuple[float, float, int]]:
  """Quarters to seconds, not quite on the beat."""
  return [
    (
      max(onset * quarter_secs + rng.gauss(0.0, 0.008), 0.0),
      max(duration * quarter_secs * 0.95, 0.05),
      pitch,
    )
    for onset, duration, pitch in notes
  ]


def _track(
  program: int,
  role: str,
  notes: Sequence[tuple[float, float, int]],
  rng: random.Random,
) -> arrange.Track:
  return arrange.Track(
    program,
    role,
    tuple((o, d, p, _VELOCITY + rng.randint(-6, 6)) for o, d, p in notes),
  )


def _accompaniment(
  piece: works.Piece,
  parts: Sequence[Sequence[works.Note]],
  version: versions.Version,
) -> list[works.Note]:
  partner = instruments.BY_NAME[version.partner]
  if version.texture == "lower voices" and len(parts) > 1:
    below = [
      (o, d, arrange.fold(p, 40, 66)) for part in parts[1:] for o, d, p in part
    ]
  else:
    texture = version.texture
    below = harmony.accompany(
      [note for part in parts for note in part],
      harmony.Key((piece.tonic + version.semitones) % 12, piece.mode),
      piece.bar_quarters,
      "chords" if texture == "lower voices" else texture,
      piece.is_compound,
    )
  return sorted(
    (o, d, arrange.fold(p, partner.lowest, partner.highest))
    for o, d, p in below
  )


def render_version(piece: works.Piece, version: versions.Version) -> np.ndarray:
  """Plays a version of the melody of a piece.

  Second t of a clip is second `t * tempo_ratio` of the score at the middle
  tempo, in every version of the work.

  Returns:
    float32 `[samples]` in (-1, 1) at `SAMPLE_RATE_HZ`, `score_secs /
    tempo_ratio` long.
  """
  quarter_secs = 60.0 / middle_qpm(piece)
  quarters = version.score_secs / quarter_secs
  start = arrange.choose_start(
    piece, quarters, random.Random(version.work_seed)
  )
  lines = (piece.melody, *piece.voices[1:])
  parts = [
    [
      (onset, duration, pitch + version.semitones)
      for onset, duration, pitch in arrange.notes_between(
        line, piece, start, quarters
      )
    ]
    for line in lines
  ]
  quarter_secs /= version.tempo_ratio
  secs = version.score_secs / version.tempo_ratio
  rng = random.Random(version.seed)
  if version.voice != "instrument":
    voice = voices.VOICES[version.voice]
    melody = _octaves(parts[0], voice.lowest, voice.highest, version.octave)
    waveform = voices.sing(
      [(o * quarter_secs, d * quarter_secs, p) for o, d, p in melody],
      secs,
      version.voice,
      SAMPLE_RATE_HZ,
      version.seed,
    )
    return render.set_level(waveform, _RMS_DB).astype(np.float32)
  lead = instruments.BY_NAME[version.lead]
  melody = _octaves(parts[0], lead.lowest, lead.highest, version.octave)
  tracks = [
    _track(lead.program, "lead", _timed(melody, quarter_secs, rng), rng)
  ]
  if version.texture:
    partner = instruments.BY_NAME[version.partner]
    below = _accompaniment(piece, parts, version)
    below = _timed(below, quarter_secs, rng)
    tracks.append(_track(partner.program, "accompaniment", below, rng))
  if version.has_drums:
    beats = drums.pattern(piece.meter, piece.bar_quarters, quarters, "moderate")
    hits = [(onset * quarter_secs, 0.1, key) for onset, key, _ in beats]
    tracks.append(_track(0, "drums", hits, rng))
  waveform = files.resample(
    render.synthesize(tracks, secs),
    render.SAMPLE_RATE_HZ,
    SAMPLE_RATE_HZ,
  )
  num_samples = round(secs * SAMPLE_RATE_HZ)
  waveform = waveform[:num_samples]
  waveform = np.pad(waveform, (0, num_samples - len(waveform)))
  return render.set_level(waveform, _RMS_DB).astype(np.float32)


def make_clip(job: tuple[works.Piece, versions.Version]) -> dict[str, Any]:
  """One example, as the builder's features want it."""
  piece, version = job
  waveform = render_version(piece, version)
  facts = dataclasses.asdict(version)
  named = ("voice", "lead", "partner", "texture")
  return {
    "id": version.clip_id,
    "audio": render.to_flac(waveform, SAMPLE_RATE_HZ),
    "sample_rate_hz": SAMPLE_RATE_HZ,
    "num_samples": len(waveform),
    "work_id": version.work_id,
    "arrangement": version.index,
    "captions": [],
    "aspects": [facts[name] for name in named if facts[name]],
    "transformation": version.transformation,
    "semitones": version.semitones,
    "tempo_ratio": version.tempo_ratio,
  }
