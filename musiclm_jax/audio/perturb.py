# SPDX-License-Identifier: Apache-2.0
"""Changes to a recording that leave its melody: numpy waveforms in and out.

For training on pairs (`data/melody_pairs.py`) and for scoring what a change
costs. Every function is one of its arguments and generator.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class PerturbConfig:
  """What is changed, how often and how much.

  Attributes:
    jitter_secs: standard deviation of a shift in time.
    detune_cents: standard deviation of a change of speed, that is of pitch
      and tempo together.
    noise_probability: of noise.
    min_snr_db: loudest noise.
    max_snr_db: softest noise.
    reverb_probability: of an echoing room.
    max_reverb_secs: longest time in which its echo falls by 60 dB.
    band_probability: of a limited band.
    min_high_hz: lowest upper edge of the band.
    max_low_hz: highest lower edge of the band.
    gain_db: largest change of level, up or down.
  """

  jitter_secs: float = 0.15
  detune_cents: float = 15.0
  noise_probability: float = 0.4
  min_snr_db: float = 5.0
  max_snr_db: float = 30.0
  reverb_probability: float = 0.3
  max_reverb_secs: float = 0.8
  band_probability: float = 0.3
  min_high_hz: float = 2000.0
  max_low_hz: float = 300.0
  gain_db: float = 6.0

  def __post_init__(self):
    for name in ("noise", "reverb", "band"):
      value = getattr(self, f"{name}_probability")
      if not 0 <= value <= 1:
        raise ValueError(f"{name}_probability={value}: expected in [0, 1]")
    for name in ("jitter_secs", "detune_cents", "gain_db"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)}: expected >= 0")
    if self.min_snr_db > self.max_snr_db:
      raise ValueError(
        f"min_snr_db={self.min_snr_db}: expected at most max_snr_db="
        f"{self.max_snr_db}"
      )


def excerpt(
  waveform: np.ndarray, first: float, num_samples: int, speed: float = 1.0
) -> np.ndarray:
  """Plays part of a recording at another speed.

  Args:
    waveform: float32 `[samples]`; silence is assumed around it.
    first: sample at which the part begins.
    num_samples: length of the result.
    speed: 2 is an octave higher and twice as fast. Nothing keeps what rises
      above half the sample rate from folding back: for small changes.

  Returns:
    float32 `[num_samples]`.
  """
  if speed == 1.0:
    start = round(first)
    before, after = max(-start, 0), max(start, 0)
    part = waveform[after : max(start + num_samples, 0)]
    part = np.pad(part, (min(before, num_samples), 0))[:num_samples]
    return np.pad(part, (0, num_samples - len(part))).astype(np.float32)
  places = first + speed * np.arange(num_samples)
  start = min(max(int(places[0]) - 1, 0), len(waveform))
  part = waveform[start : max(int(places[-1]) + 2, start)]
  if not len(part):
    return np.zeros(num_samples, np.float32)
  numbers = np.arange(start, start + len(part))
  return np.interp(places, numbers, part, left=0.0, right=0.0).astype(
    np.float32
  )


def add_noise(
  waveform: np.ndarray, snr_db: float, generator: np.random.Generator
) -> np.ndarray:
  """Adds white noise so many dB below the waveform."""
  level = np.sqrt(np.mean(waveform**2)) * np.float32(10 ** (-snr_db / 20))
  noise = generator.standard_normal(len(waveform), np.float32)
  return waveform + level * noise


def room(
  sample_rate_hz: int, secs: float, generator: np.random.Generator
) -> np.ndarray:
  """Impulse response of a room: a click, then noise that dies away.

  Args:
    sample_rate_hz: of the response.
    secs: in which the echo falls by 60 dB.
    generator: of the echo.

  Returns:
    float32 `[round(secs * sample_rate_hz)]`, with as much energy in the echo
    as in the click.
  """
  length = max(round(secs * sample_rate_hz), 2)
  echo = generator.standard_normal(length, np.float32)
  echo *= np.exp(-6.9 * np.arange(length, dtype=np.float32) / length)
  echo[: length // 50] = 0.0
  echo /= max(float(np.linalg.norm(echo)), 1e-9)
  echo[0] = 1.0
  return echo


def band(
  sample_rate_hz: int, num_samples: int, low_hz: float, high_hz: float
) -> np.ndarray:
  """Gain of each bin of a DFT: a band with edges of 24 dB per octave."""
  hz = np.fft.rfftfreq(num_samples, 1 / sample_rate_hz)
  low = (hz / max(low_hz, 1e-6)) ** 4
  high = (hz / high_hz) ** 4
  return (low / (1 + low) / (1 + high)).astype(np.float32)


def perturb(
  waveform: np.ndarray,
  sample_rate_hz: int,
  config: PerturbConfig,
  generator: np.random.Generator,
) -> np.ndarray:
  """Room, band, noise and level, each by chance.

  Args:
    waveform: float32 `[samples]` in [-1, 1].
    sample_rate_hz: its rate.
    config: how often and how much.
    generator: of all that is drawn.

  Returns:
    float32 `[samples]` in [-1, 1].
  """
  samples = len(waveform)
  has_noise, has_room, has_band = generator.random(3) < (
    config.noise_probability,
    config.reverb_probability,
    config.band_probability,
  )
  if has_room or has_band:
    length = _fast_length(2 * samples if has_room else samples)
    spectrum = np.fft.rfft(waveform, length)
    if has_room:
      secs = generator.uniform(0.1, max(config.max_reverb_secs, 0.1))
      response = room(sample_rate_hz, secs, generator)
      spectrum = spectrum * np.fft.rfft(response, length)
    if has_band:
      highest = max(0.45 * sample_rate_hz, config.min_high_hz)
      spectrum = spectrum * band(
        sample_rate_hz,
        length,
        generator.uniform(20.0, max(config.max_low_hz, 20.0)),
        generator.uniform(config.min_high_hz, highest),
      )
    changed = np.fft.irfft(spectrum, length)[:samples]
    # Neither is to change the level, which has its own draw.
    before, after = np.linalg.norm(waveform), np.linalg.norm(changed)
    waveform = changed * (before / max(after, 1e-9))
  if has_noise:
    snr_db = generator.uniform(config.min_snr_db, config.max_snr_db)
    waveform = add_noise(waveform, snr_db, generator)
  gain = 10 ** (generator.uniform(-config.gain_db, config.gain_db) / 20)
  return np.clip(waveform * gain, -1.0, 1.0).astype(np.float32)


def _fast_length(length: int) -> int:
  """A length from `length` up that is a power of two or 1.5 of one."""
  power = 1 << (length - 1).bit_length()
  return power * 3 // 4 if power * 3 // 4 >= length else power
