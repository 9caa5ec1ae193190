# SPDX-License-Identifier: Apache-2.0
"""Timed notes to a waveform, and a waveform to FLAC bytes.

Sound comes from symusic's synthesizer and the General MIDI SoundFont that
lies inside the pretty_midi wheel; nothing is downloaded.
"""

import functools
import importlib.util
import io
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import arrange, soundfont

SAMPLE_RATE_HZ = 24_000
_TICKS_PER_QUARTER = 480
_QPM = 120.0
_TICKS_PER_SEC = _TICKS_PER_QUARTER * _QPM / 60.0
# Root mean square of a whole clip, in dB below full scale.
RMS_DB = {"soft": -26.0, "medium": -20.0, "loud": -14.5}
# Root mean square of each role beside the lead's: SoundFont levels differ by
# 20 dB between instruments, and what a caption names must be heard.
_MIX = {"lead": 1.0, "accompaniment": 0.5, "drums": 0.7}
_KNEE, _CEILING = 0.7, 0.98
_FADE_SECS = 0.02


@functools.cache
def soundfont_path() -> pathlib.Path:
  """The SoundFont inside the pretty_midi wheel.

  Raises:
    ModuleNotFoundError: if pretty_midi is not installed.
  """
  spec = importlib.util.find_spec("pretty_midi")
  if spec is None or spec.origin is None:
    raise ModuleNotFoundError(
      "pretty_midi is not installed: pip install pretty_midi"
    )
  return pathlib.Path(spec.origin).parent / "TimGM6mb.sf2"


@functools.cache
def _synthesizer() -> Any:
  import symusic

  with tempfile.NamedTemporaryFile(suffix=".sf2") as file:
    content = soundfont_path().read_bytes()
    file.write(soundfont.with_tuned_headers(content))
    file.flush()
    # It is read here, and not again.
    return symusic.Synthesizer(
      sf_path=file.name, sample_rate=SAMPLE_RATE_HZ, quality=4
    )


def synthesize(tracks: Sequence[arrange.Track], secs: float) -> np.ndarray:
  """Plays tracks, each role at its level.

  Args:
    tracks: at least one note in all.
    secs: the part that counts for the levels.

  Returns:
    float32 `[samples]`, mono at `SAMPLE_RATE_HZ`, any level.
  """
  stems = []
  for role, level in _MIX.items():
    played = [track for track in tracks if track.role == role and track.notes]
    if played:
      stem = _play(played)
      heard = stem[: round(secs * SAMPLE_RATE_HZ)]
      stems.append(stem * (level / max(rms(heard), 1e-6)))
  mix = np.zeros(max(map(len, stems), default=0), np.float32)
  for stem in stems:
    mix[: len(stem)] += stem
  return mix


def rms(waveform: np.ndarray) -> float:
  """Root mean square of float `[samples]`."""
  return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def _play(tracks: Sequence[arrange.Track]) -> np.ndarray:
  import symusic

  score = symusic.Score(_TICKS_PER_QUARTER)
  score.tempos.append(symusic.Tempo(0, qpm=_QPM))
  for track in tracks:
    played = symusic.Track(program=track.program, is_drum=track.role == "drums")
    for onset, duration, pitch, velocity in track.notes:
      played.notes.append(
        symusic.Note(
          round(onset * _TICKS_PER_SEC),
          max(round(duration * _TICKS_PER_SEC), 1),
          pitch,
          velocity,
        )
      )
    score.tracks.append(played)
  stereo = np.asarray(_synthesizer().render(score, stereo=True))
  return stereo.mean(axis=0, dtype=np.float32)


def _limit(waveform: np.ndarray) -> np.ndarray:
  """Bends what exceeds the knee so that nothing reaches full scale."""
  over = np.abs(waveform) - _KNEE
  room = _CEILING - _KNEE
  bent = _KNEE + room * np.tanh(np.maximum(over, 0.0) / room)
  return np.where(over > 0, np.sign(waveform) * bent, waveform)


def set_level(waveform: np.ndarray, rms_db: float) -> np.ndarray:
  """Scales a waveform that is not silent, and bends what gets too loud.

  Args:
    waveform: float32 `[samples]`, any level.
    rms_db: root mean square wanted, in dB below full scale.

  Returns:
    float32 `[samples]` in (-1, 1).
  """
  return _limit(waveform * (10.0 ** (rms_db / 20.0) / rms(waveform)))


def finish(waveform: np.ndarray, secs: float, loudness: str) -> np.ndarray:
  """Cuts to length, sets the level and fades the cut end.

  Args:
    waveform: float32 `[samples]`, at least `secs` long, or padded.
    secs: length wanted.
    loudness: a key of `RMS_DB`.

  Returns:
    float32 `[round(secs * SAMPLE_RATE_HZ)]` in (-1, 1).

  Raises:
    ValueError: if nothing sounds.
  """
  num_samples = round(secs * SAMPLE_RATE_HZ)
  peak = float(np.abs(waveform).max(initial=0.0))
  if peak == 0.0:
    raise ValueError("rendered waveform is silent: expected sounding notes")
  # Slow attacks start below hearing: the clip begins where sound does.
  first = int(np.argmax(np.abs(waveform) > 0.01 * peak))
  waveform = waveform[first : first + num_samples].astype(np.float32)
  waveform = np.pad(waveform, (0, num_samples - len(waveform)))
  waveform = set_level(waveform, RMS_DB[loudness])
  fade = round(_FADE_SECS * SAMPLE_RATE_HZ)
  waveform[-fade:] *= np.linspace(1.0, 0.0, fade)
  return waveform.astype(np.float32)


def to_flac(
  waveform: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> bytes:
  """float32 `[samples]` in [-1, 1] to 16 bit FLAC bytes."""
  import soundfile

  buffer = io.BytesIO()
  soundfile.write(
    buffer, waveform, sample_rate_hz, format="FLAC", subtype="PCM_16"
  )
  return buffer.getvalue()
