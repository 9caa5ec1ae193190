# SPDX-License-Identifier: Apache-2.0
"""Tempo and key of a sound, as estimated: waveforms in, names out.

Estimates, not facts: a tempo may be half or twice what people tap, a key the
relative one. They are for distributions over many sounds, measured alike on
both sides of a comparison.
"""

from collections.abc import Sequence

import numpy as np

from musiclm_jax.audio import files

_RATE_HZ = 22050
_HOP_LENGTH = 512
_TEMPO_EDGES = (60, 80, 100, 120, 140, 160)
NO_BEAT, NO_KEY = "no beat found", "no pitch found"
PITCH_CLASSES = (
  "C", "C sharp", "D", "E flat", "E", "F",
  "F sharp", "G", "A flat", "A", "B flat", "B",
)  # fmt: skip
# How well the notes of a scale fit its key, from the tonic up; Krumhansl,
# Cognitive Foundations of Musical Pitch (1990), table 2.1.
_PROFILES = {
  "major": (
    6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88,
  ),
  "minor": (
    6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17,
  ),
}  # fmt: skip


def tempo_bpm(waveform: np.ndarray, sample_rate_hz: float) -> float:
  """Beats per minute, by librosa's autocorrelation of onset strength.

  librosa prefers tempi near 120.

  Args:
    waveform: float32 `[samples]` in [-1, 1].
    sample_rate_hz: its rate.

  Returns:
    The tempo; NaN where there is no onset.
  """
  import librosa  # here: it loads numba

  waveform = files.resample(waveform, sample_rate_hz, _RATE_HZ)
  onsets = librosa.onset.onset_strength(
    y=waveform, sr=_RATE_HZ, hop_length=_HOP_LENGTH
  )
  if not np.isfinite(onsets).all() or onsets.max(initial=0) < 1e-3:
    return float("nan")
  found = librosa.feature.tempo(
    onset_envelope=onsets, sr=_RATE_HZ, hop_length=_HOP_LENGTH
  )
  return float(found[0])


def tempo_name(bpm: float) -> str:
  """The class of a tempo, '80 to 100 BPM'."""
  if not np.isfinite(bpm):
    return NO_BEAT
  return tempo_names()[int(np.searchsorted(_TEMPO_EDGES, bpm, side="right"))]


def tempo_names() -> tuple[str, ...]:
  """Classes of tempi from slow to fast, then `NO_BEAT`."""
  inner = (f"{a} to {b} BPM" for a, b in zip(_TEMPO_EDGES, _TEMPO_EDGES[1:]))
  first, last = _TEMPO_EDGES[0], _TEMPO_EDGES[-1]
  return (f"below {first} BPM", *inner, f"{last} BPM and above", NO_BEAT)


def key(chroma: np.ndarray) -> tuple[str, str]:
  """The key whose profile correlates best with the pitch classes heard.

  Args:
    chroma: float `[frames, 12]`, class 0 = C, as
      `chroma_similarity.chromagram` makes it.

  Returns:
    Tonic of `PITCH_CLASSES` and 'major' or 'minor'; both `NO_KEY` where
    nothing is heard.
  """
  heard = np.asarray(chroma, np.float64).sum(0)
  if not heard.max(initial=0) > 0 or np.ptp(heard) < 1e-9 * heard.max():
    return NO_KEY, NO_KEY
  scores = {
    (name, mode): np.corrcoef(np.roll(profile, tonic), heard)[0, 1]
    for mode, profile in _PROFILES.items()
    for tonic, name in enumerate(PITCH_CLASSES)
  }
  return max(scores, key=scores.get)


def facts(
  waveforms: Sequence[np.ndarray], sample_rate_hz: float
) -> list[dict[str, str]]:
  """Names by 'tempo', 'key' and 'mode' of each sound.

  Args:
    waveforms: float32 `[samples]` each.
    sample_rate_hz: of all.
  """
  from musiclm_jax.evaluation import chroma_similarity

  found = []
  for waveform in waveforms:
    tonic, mode = key(chroma_similarity.chromagram(waveform, sample_rate_hz))
    found.append(
      {
        "tempo": tempo_name(tempo_bpm(waveform, sample_rate_hz)),
        "key": tonic if tonic == NO_KEY else f"{tonic} {mode}",
        "mode": mode,
      }
    )
  return found
