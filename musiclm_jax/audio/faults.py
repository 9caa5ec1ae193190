# SPDX-License-Identifier: Apache-2.0
"""Known faults, from slight to strong, to put into recordings that are whole.

Numpy waveforms in and out, of one length. A metric that is to be trusted has
to get worse with each of them (`evaluation/fault_response.py`).
"""

import math
from collections.abc import Mapping

import numpy as np

from musiclm_jax.audio import perturb

NOISE, LOW_PASS = "noise", "low-pass"
SLOWER, SHUFFLED = "slower", "shuffled"
# The slightest first. Of noise dB below the music, where -inf leaves nothing
# but noise; of a low-pass its edge in Hz; of slower playing at the same pitch
# its factor; of shuffled pieces their length in seconds.
LEVELS: Mapping[str, tuple[float, ...]] = {
  NOISE: (30.0, 20.0, 10.0, 0.0, -math.inf),
  LOW_PASS: (4000.0, 2000.0, 1000.0),
  SLOWER: (1.15, 1.4, 1.8),
  SHUFFLED: (1.0, 0.3, 0.1),
}
# Pieces fade in and out, or their joints would be clicks.
_FADE_SECS = 0.005


def label(kind: str, level: float) -> str:
  """A fault in words, such as 'noise 20 dB below'.

  Raises:
    ValueError: if there is no such kind.
  """
  if kind == NOISE:
    return "noise alone" if math.isinf(level) else f"noise {level:g} dB below"
  if kind == LOW_PASS:
    return f"low-pass at {level:g} Hz"
  if kind == SLOWER:
    return f"{level:g} times slower"
  if kind == SHUFFLED:
    return f"pieces of {level:g} s shuffled"
  raise ValueError(f"kind={kind!r}: expected one of {', '.join(LEVELS)}")


def apply(
  kind: str,
  level: float,
  waveform: np.ndarray,
  sample_rate_hz: int,
  generator: np.random.Generator,
) -> np.ndarray:
  """Puts a fault into a waveform.

  Args:
    kind: of `LEVELS`.
    level: how strong; any number of the kind's unit.
    waveform: float32 `[samples]` in [-1, 1].
    sample_rate_hz: its rate.
    generator: of the noise, or of the order of pieces.

  Returns:
    float32 `[samples]` in [-1, 1]. What is played slower is cut.

  Raises:
    ValueError: if there is no such kind, or the level means nothing.
  """
  if kind not in LEVELS:
    raise ValueError(f"kind={kind!r}: expected one of {', '.join(LEVELS)}")
  if kind != NOISE and not 0 < level < math.inf:
    raise ValueError(f"level={level} of {kind!r}: expected > 0, finite")
  if kind == SLOWER and level < 1:
    raise ValueError(f"level={level} of {kind!r}: expected at least 1")
  waveform = np.asarray(waveform, np.float32)
  if kind == NOISE:
    changed = _with_noise(waveform, level, generator)
  elif kind == LOW_PASS:
    gains = perturb.band(sample_rate_hz, len(waveform), 0.0, level)
    changed = np.fft.irfft(np.fft.rfft(waveform) * gains, len(waveform))
  elif kind == SLOWER:
    import librosa

    slow = librosa.effects.time_stretch(waveform, rate=1.0 / level)
    changed = slow[: len(waveform)]
  else:
    changed = _shuffled(waveform, round(level * sample_rate_hz), generator)
    changed = changed * _fades(
      len(waveform),
      round(level * sample_rate_hz),
      round(_FADE_SECS * sample_rate_hz),
    )
  return np.clip(changed, -1.0, 1.0).astype(np.float32)


def _with_noise(
  waveform: np.ndarray, snr_db: float, generator: np.random.Generator
) -> np.ndarray:
  if math.isinf(snr_db):
    noise = generator.standard_normal(len(waveform), np.float32)
    return noise * np.sqrt(np.mean(waveform**2))
  return perturb.add_noise(waveform, snr_db, generator)


def _shuffled(
  waveform: np.ndarray, piece: int, generator: np.random.Generator
) -> np.ndarray:
  """Whole pieces in another order; what is left of the end stays there."""
  num_pieces = len(waveform) // max(piece, 1)
  whole = num_pieces * piece
  pieces = waveform[:whole].reshape(num_pieces, piece)
  return np.concatenate(
    [pieces[generator.permutation(num_pieces)].reshape(-1), waveform[whole:]]
  )


def _fades(num_samples: int, piece: int, fade: int) -> np.ndarray:
  """Gains that fall to 0 at every joint of two pieces."""
  places = np.arange(num_samples)
  joints = np.arange(piece, num_samples, max(piece, 1))
  if not len(joints) or fade < 1:
    return np.ones(num_samples, np.float32)
  after = np.searchsorted(joints, places, "right")
  near = np.minimum(
    np.abs(places - joints[np.maximum(after - 1, 0)]),
    np.abs(places - joints[np.minimum(after, len(joints) - 1)]),
  )
  return np.sin(np.pi / 2 * np.minimum(near / fade, 1.0)).astype(np.float32)
