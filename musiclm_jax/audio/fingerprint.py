# SPDX-License-Identifier: Apache-2.0
"""Waveforms in, audio fingerprints out, and how much two of them share.

A fingerprint knows a recording again after lossy coding, resampling, a change
of gain or a cut at its ends, and knows nothing of the music: the same tune on
another instrument is another recording. Two views of one band spectrogram:

- Bits, after Haitsma and Kalker (2002): per frame, whether neighbouring bands
  drew apart or together. Unlike theirs, a second word says which bits are
  clear enough to survive coding; only bits clear in both files are compared.
- Keys, after Wang (2003), but of three onsets and not two: they find which
  files may match, and at what offset, without comparing all with all.
"""

import dataclasses
import functools

import numpy as np

from musiclm_jax.audio import files

SAMPLE_RATE_HZ = 8000
FRAME_RATE_HZ = 31.25
_FRAME, _HOP = 3072, 256
# 65 bands of 0.8 semitone: 64 differences fill one word.
_NUM_BANDS, _LOW_HZ, _HIGH_HZ = 65, 180.0, 3800.0
# Frames between which a band's change is measured: a third of the window.
_LAG = 4
# Energy far below what sounds within half a second is coding noise.
_RELATIVE_FLOOR, _FLOOR_FRAMES = 1e-4, 16
# -80 dB below a full-scale tone.
_ABSOLUTE_FLOOR = 1e-8 * (_FRAME / 4) ** 2
# A bit is clear from this change of log energy on (nepers of power).
_CLEAR = 1.0
# An onset is a rise by 6 dB, the largest of 0.3 s and 7 bands.
_RISE, _PEAK_FRAMES, _PEAK_BANDS = 1.4, 5, 3
# Keys join an onset with two of the next ones.
_FAN_OUT, _MAX_SPAN = 5, 63
# Of which one in four is kept, chosen by value: the same ones in any file.
_KEPT_KEYS, _KEY_MIXER = 1 << 62, 0x9E3779B97F4A7C15
_CHUNK_FRAMES = 2048
# Matches are judged over windows of four seconds, in steps of half a second.
_BLOCK_FRAMES, _WINDOW_BLOCKS = 16, 8
# Lossy copies agree on 0.6 and more of all that is clear in either, other
# recordings on less than 0.3 (docs/preparing.md).
_MIN_AGREEMENT, _MIN_WINDOW_BITS = 0.45, 96


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprint:
  """One recording.

  Attributes:
    signs: uint64 `[frames]`, one bit per pair of neighbouring bands.
    clear: uint64 `[frames]`, which of these bits are clear.
    keys: int64 `[keys]`, of onsets.
    key_frames: int32 `[keys]`, where each begins.
  """

  signs: np.ndarray
  clear: np.ndarray
  keys: np.ndarray
  key_frames: np.ndarray

  @property
  def num_bytes(self) -> int:
    arrays = (self.signs, self.clear, self.keys, self.key_frames)
    return sum(array.nbytes for array in arrays)


@dataclasses.dataclass(frozen=True)
class Match:
  """What two recordings share at one offset.

  Attributes:
    offset_secs: time in the first minus time in the second.
    shared_secs: length of what is shared.
    share_a: of what is clear in the first, the part that is shared.
    share_b: likewise of the second.
    agreement: where it is shared, equal bits that are clear in both over all
      that are clear in either, in [0, 1].
  """

  offset_secs: float
  shared_secs: float
  share_a: float
  share_b: float
  agreement: float


@functools.cache
def _filters() -> np.ndarray:
  """Triangles on a logarithmic axis, float32 `[bins, bands]`."""
  edges = np.geomspace(_LOW_HZ, _HIGH_HZ, _NUM_BANDS + 2)
  bins_hz = np.arange(_FRAME // 2 + 1)[:, None] * SAMPLE_RATE_HZ / _FRAME
  low, centre, high = edges[:-2], edges[1:-1], edges[2:]
  # The lowest bands are narrower than two bins, and would see one or none.
  reach = SAMPLE_RATE_HZ / _FRAME
  rising = (bins_hz - low + reach) / (centre - low + reach)
  falling = (high + reach - bins_hz) / (high - centre + reach)
  return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def _log_bands(waveform: np.ndarray) -> np.ndarray:
  """Log band energies, float32 `[frames, bands]`."""
  num_frames = max(len(waveform) - _FRAME, 0) // _HOP + 1
  padded = np.pad(waveform, (0, max(_FRAME - len(waveform), 0)))
  frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]
  window = np.hanning(_FRAME).astype(np.float32)
  energy = np.empty((num_frames, _NUM_BANDS), np.float32)
  for start in range(0, num_frames, _CHUNK_FRAMES):
    part = slice(start, start + _CHUNK_FRAMES)
    spectrum = np.fft.rfft(frames[part] * window)
    energy[part] = (spectrum.real**2 + spectrum.imag**2) @ _filters()
  loudest = _running_max(energy.max(1), _FLOOR_FRAMES)
  floor = np.maximum(_RELATIVE_FLOOR * loudest, _ABSOLUTE_FLOOR)
  return np.log(energy + floor[:, None])


def _running_max(values: np.ndarray, reach: int) -> np.ndarray:
  """Largest of `[i - reach, i + reach]` along the first axis."""
  padding = [(reach, reach)] + [(0, 0)] * (values.ndim - 1)
  padded = np.pad(values, padding, mode="edge")
  width = 1
  # Windows double until one step short, then overlap.
  while 2 * width <= 2 * reach + 1:
    padded = np.maximum(padded[:-width], padded[width:])
    width *= 2
  rest = 2 * reach + 1 - width
  return np.maximum(padded[: len(padded) - rest], padded[rest:])


def make_fingerprint(waveform: np.ndarray, sample_rate_hz: int) -> Fingerprint:
  """Fingerprints a recording.

  Args:
    waveform: float32 `[samples]` or `[samples, channels]`, any level.
    sample_rate_hz: its rate.

  Returns:
    A fingerprint; without clear bits where nothing changes (silence, a tone).
  """
  waveform = np.asarray(waveform, np.float32)
  if waveform.ndim == 2:
    waveform = waveform.mean(-1)
  waveform = files.resample(waveform, sample_rate_hz, SAMPLE_RATE_HZ)
  bands = _log_bands(waveform)
  change = bands[_LAG:] - bands[:-_LAG]
  tilt = change[:, 1:] - change[:, :-1]
  keys, key_frames = _keys(change)
  return Fingerprint(
    _pack(tilt > 0), _pack(np.abs(tilt) > _CLEAR), keys, key_frames
  )


def _pack(bits: np.ndarray) -> np.ndarray:
  """bool `[frames, 64]` to uint64 `[frames]`."""
  if not len(bits):
    return np.zeros(0, np.uint64)
  return np.packbits(bits, axis=-1).view(np.uint64)[:, 0]


def _keys(change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Keys of onsets, and the frames of the first ones."""
  if not len(change):
    return np.zeros(0, np.int64), np.zeros(0, np.int32)
  around = _running_max(change, _PEAK_FRAMES)
  around = _running_max(around.T, _PEAK_BANDS).T
  frames, bands = np.nonzero((change == around) & (change > _RISE))
  frames, bands = frames.astype(np.int64), bands.astype(np.int64)
  found = []
  for second in range(1, _FAN_OUT):
    for third in range(second + 1, _FAN_OUT + 1):
      num_keys = max(len(frames) - third, 0)
      at = [slice(skip, skip + num_keys) for skip in (0, second, third)]
      gap = frames[at[1]] - frames[at[0]]
      span = frames[at[2]] - frames[at[0]]
      key = bands[at[0]]
      # A chord's onsets come in the order of their bands within a frame.
      for part in (bands[at[1]], bands[at[2]], gap, span):
        key = (key << 7) | part
      mixed = key.astype(np.uint64) * np.uint64(_KEY_MIXER)
      fits = (span <= _MAX_SPAN) & (span > 0) & (mixed < _KEPT_KEYS)
      found.append(np.stack([key[fits], frames[at[0]][fits]]))
  both = np.unique(np.concatenate(found, axis=1), axis=1)
  return both[0], both[1].astype(np.int32)


def compare(a: Fingerprint, b: Fingerprint, offset: int) -> Match | None:
  """What two recordings share near an offset.

  Args:
    a: the first.
    b: the second.
    offset: frame in `a` minus frame in `b`, give or take two.

  Returns:
    None if they share nothing there.
  """
  matches = [_compare_at(a, b, offset + step) for step in (-2, -1, 0, 1, 2)]
  found = [match for match in matches if match is not None]
  return max(
    found, key=lambda m: (round(m.shared_secs), m.agreement), default=None
  )


def _compare_at(a: Fingerprint, b: Fingerprint, offset: int) -> Match | None:
  start_a, start_b = max(offset, 0), max(-offset, 0)
  length = min(len(a.signs) - start_a, len(b.signs) - start_b)
  if length <= 0:
    return None
  at_a, at_b = (
    slice(start_a, start_a + length),
    slice(start_b, start_b + length),
  )
  both = a.clear[at_a] & b.clear[at_b]
  equal = _block_sums(both & ~(a.signs[at_a] ^ b.signs[at_b]))
  either = _block_sums(a.clear[at_a] | b.clear[at_b])
  kernel = np.ones(min(_WINDOW_BLOCKS, len(equal)))
  window_equal = np.convolve(equal, kernel, "same")
  window_bits = np.convolve(either, kernel, "same")
  is_shared = (window_bits >= _MIN_WINDOW_BITS) & (
    window_equal >= _MIN_AGREEMENT * window_bits
  )
  if not is_shared.any():
    return None
  num_frames = min(is_shared.sum() * _BLOCK_FRAMES, length)
  shared_a = _block_sums(a.clear[at_a])[is_shared].sum()
  shared_b = _block_sums(b.clear[at_b])[is_shared].sum()
  return Match(
    offset_secs=offset / FRAME_RATE_HZ,
    shared_secs=float(num_frames / FRAME_RATE_HZ),
    share_a=float(shared_a / _num_clear(a)),
    share_b=float(shared_b / _num_clear(b)),
    agreement=float(equal[is_shared].sum() / either[is_shared].sum()),
  )


def _num_clear(item: Fingerprint) -> int:
  return max(int(np.bitwise_count(item.clear).sum()), 1)


def _block_sums(words: np.ndarray) -> np.ndarray:
  """Set bits of each block of frames, float64 `[blocks]`."""
  counts = np.bitwise_count(words).astype(np.float64)
  starts = np.arange(0, len(counts), _BLOCK_FRAMES)
  return np.add.reduceat(counts, starts)
