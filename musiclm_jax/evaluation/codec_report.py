# SPDX-License-Identifier: Apache-2.0
"""A codec on named sets of sounds: waveforms in; a table over codebooks out.

Held-out works say how well it does what it was trained for, recordings and
pure tones what it does beyond. `codec_report_page.py` shows the result.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.core import errors
from musiclm_jax.evaluation import (
  codec_metrics,
  log_mel,
  spectral_distances,
  visqol,
)

# Pure tones: octaves of A, and pitches between them.
TONES_HZ = (55, 110, 164.8, 220, 329.6, 440, 659.3, 880, 1760, 3520, 7040)
COLUMNS = (
  "num_codebooks",
  "bitrate_bps",
  "si_snr_db",
  "si_snr_middle_db",
  "si_snr_side_db",
  "log_mel_distance",
  "multi_scale_mel",
  "spectral_convergence",
  "log_stft",
  "visqol",
)


@dataclasses.dataclass(frozen=True)
class SoundSet:
  """Sounds of one kind.

  Attributes:
    name: of the set.
    names: of the sounds.
    waveforms: float32 `[samples]`, or `[samples, channels]`, in [-1, 1] at the
      codec's rate; of any lengths.
  """

  name: str
  names: Sequence[str]
  waveforms: Sequence[np.ndarray]

  def __post_init__(self):
    if not self.waveforms or len(self.names) != len(self.waveforms):
      raise ValueError(
        f"set {self.name!r} has {len(self.waveforms)} waveforms and "
        f"{len(self.names)} names: expected as many, at least 1"
      )


@dataclasses.dataclass(frozen=True)
class ReportConfig:
  """What is measured.

  Attributes:
    codebook_counts: first codebooks decoded, one row each.
    num_shown: sounds of each set that are kept to be listened to.
    shown_counts: codebooks they are decoded from.
    visqol: path of the ViSQOL program; by default the one on PATH, and
      nothing where there is none.
    visqol_model: its model, by default the one beside it.
  """

  codebook_counts: tuple[int, ...] = tuple(range(1, 13))
  num_shown: int = 3
  shown_counts: tuple[int, ...] = (1, 4, 8, 12)
  visqol: str | None = None
  visqol_model: str | None = None


def pure_tones(
  sample_rate_hz: int, secs: float = 2.0, num_channels: int = 1
) -> SoundSet:
  """Sines from 55 to 7040 Hz at half of full scale, with soft ends.

  Args:
    sample_rate_hz: of the codec; tones above half of it are left out.
    secs: of each.
    num_channels: the same tone in each.
  """
  time = np.arange(round(secs * sample_rate_hz)) / sample_rate_hz
  edge = np.minimum(time, secs - time) / 0.02
  gain = 0.5 * np.clip(edge, 0.0, 1.0)
  tones = [hz for hz in TONES_HZ if hz < 0.45 * sample_rate_hz]
  waveforms = []
  for hz in tones:
    sound = (gain * np.sin(2 * np.pi * hz * time)).astype(np.float32)
    if num_channels > 1:
      sound = np.repeat(sound[:, None], num_channels, axis=1)
    waveforms.append(sound)
  return SoundSet("pure tones", [f"{hz:g} Hz" for hz in tones], waveforms)


def _channels_first(waveform: np.ndarray) -> np.ndarray:
  """`[samples]` or `[samples, channels]` to `[channels, samples]`."""
  return np.atleast_2d(waveform.T)


def _distances(
  original: np.ndarray,
  decoded: np.ndarray,
  mel: log_mel.LogMelConfig,
  spectral: spectral_distances.SpectralConfig,
) -> dict[str, float]:
  """All distances of one sound, means over channels.

  Of two channels also the SI-SNR of their sum and of their difference: width
  that is lost hardly shows in left and right.
  """
  a, b = _channels_first(original), _channels_first(decoded)
  values = {
    "si_snr_db": codec_metrics.si_snr_db(a, b),
    "log_mel_distance": codec_metrics.log_mel_distance(a, b, mel),
    "multi_scale_mel": spectral_distances.multi_scale_mel(a, b, spectral),
    **spectral_distances.stft_distances(a, b, spectral),
  }
  if len(a) == 2:
    for name, sign in (("middle", 1), ("side", -1)):
      values[f"si_snr_{name}_db"] = codec_metrics.si_snr_db(
        a[0] + sign * a[1], b[0] + sign * b[1]
      )
  return {name: _mean(value) for name, value in values.items()}


def _mean(values: Any) -> float:
  """Mean without NaN; NaN of nothing."""
  values = np.asarray(values, np.float64).reshape(-1)
  values = values[~np.isnan(values)]
  return float(values.mean()) if values.size else math.nan


@dataclasses.dataclass(frozen=True)
class Listening:
  """A sound to compare by ear.

  Attributes:
    set_name: its set.
    name: of the sound.
    original: as it went in.
    decoded: by number of codebooks.
  """

  set_name: str
  name: str
  original: np.ndarray
  decoded: dict[int, np.ndarray]


def measure(
  codec: Any,
  sets: Sequence[SoundSet],
  config: ReportConfig,
  progress: Callable[[int], Any] = lambda count: None,
) -> tuple[dict[str, Any], list[Listening]]:
  """Encodes all sounds once and decodes them from every number of codebooks.

  Args:
    codec: a `SoundStreamTokenizer`, or what has its `encode`, `decode`,
      `stream`, `sample_rate_hz` and `fingerprint`.
    sets: what to measure.
    config: how.
    progress: called with the number of sounds done.

  Returns:
    The report, JSON-compatible but for NaN, and sounds to listen to.

  Raises:
    UserError: if a count of codebooks is not there, or ViSQOL fails.
  """
  most = codec.stream.num_codebooks
  counts = [n for n in config.codebook_counts if n <= most]
  if not counts or min(counts) < 1:
    raise errors.UserError(
      f"codebook_counts={config.codebook_counts}: expected numbers from 1 to "
      f"{most}, the codebooks of this codec"
    )
  rate_hz = codec.sample_rate_hz
  program = visqol.find(config.visqol)
  report: dict[str, Any] = {
    "codec": {
      "fingerprint": codec.fingerprint,
      "sample_rate_hz": rate_hz,
      "frame_rate_hz": codec.stream.frame_rate_hz,
      "num_codebooks": most,
      "codebook_size": codec.stream.codebook_size,
    },
    "definitions": _definitions(rate_hz),
    "visqol": program or visqol.missing(),
    "sets": {},
  }
  listening: list[Listening] = []
  for sounds in sets:
    report["sets"][sounds.name], heard = _measure_set(
      codec, sounds, counts, config, program, progress
    )
    listening += heard
  return report, listening


def _definitions(rate_hz: int) -> dict[str, str]:
  return {
    "bitrate_bps": "codebooks times log2 of their size times frames per second",
    "si_snr_db": "scale-invariant signal-to-noise ratio; sample-exact, so low "
    "where phase is free",
    "log_mel_distance": log_mel.LogMelConfig(rate_hz).describe(),
    **spectral_distances.SpectralConfig(rate_hz).describe(),
    "visqol": "ViSQOL in audio mode, MOS-LQO from 1 to about 4.75",
  }


def _measure_set(codec, sounds, counts, config, program, progress):
  """The entry of one set, and its first sounds to listen to."""
  rate_hz, stream = codec.sample_rate_hz, codec.stream
  mel = log_mel.LogMelConfig(rate_hz)
  spectral = spectral_distances.SpectralConfig(rate_hz)
  all_codes, listening = [], []
  values: dict[int, list[dict[str, float]]] = {n: [] for n in counts}
  kept: dict[int, list[np.ndarray]] = {n: [] for n in counts}
  for index, waveform in enumerate(sounds.waveforms):
    codes = np.asarray(codec.encode(waveform[None]))
    all_codes.append(codes[0])
    decoded = {}
    for count in counts:
      out = np.asarray(codec.decode(codes[..., :count]))[0]
      decoded[count] = out[: len(waveform)]
      values[count].append(_distances(waveform, decoded[count], mel, spectral))
      if program:
        kept[count].append(decoded[count])
    if index < config.num_shown:
      shown = {n: decoded[n] for n in config.shown_counts if n in decoded}
      listening.append(
        Listening(sounds.name, sounds.names[index], waveform, shown)
      )
    progress(1)
  flat = np.concatenate(all_codes)
  bits = math.log2(stream.codebook_size) * stream.frame_rate_hz
  rows = []
  for count in counts:
    row: dict[str, Any] = {"num_codebooks": count, "bitrate_bps": bits * count}
    for name in values[count][0]:
      row[name] = _mean([one[name] for one in values[count]])
    if program:
      row["visqol"] = _mean(_visqol(sounds, kept[count], rate_hz, config))
    rows.append(row)
  total_secs = sum(len(w) for w in sounds.waveforms) / rate_hz
  perplexity = codec_metrics.codebook_perplexity(flat, stream.codebook_size)
  entry = {
    "num_sounds": len(sounds.waveforms),
    "secs": total_secs,
    "num_frames": len(flat),
    "rows": rows,
    "codebook_usage": codec_metrics.codebook_usage(flat, stream.codebook_size),
    "codebook_perplexity": perplexity,
    # What an ideal code of each level by itself would need.
    "entropy_bps": [
      math.log2(value) * stream.frame_rate_hz for value in perplexity
    ],
  }
  return entry, listening


def _visqol(sounds, decoded, rate_hz, config):
  def mono(waveform):
    return waveform if waveform.ndim == 1 else waveform.mean(-1)

  return visqol.mos_lqo(
    [mono(waveform) for waveform in sounds.waveforms],
    [mono(waveform) for waveform in decoded],
    rate_hz,
    config.visqol,
    config.visqol_model,
  )


def to_csv(report: Mapping[str, Any]) -> str:
  """One line per set and number of codebooks."""
  out = io.StringIO()
  writer = csv.DictWriter(
    out, ("set", *COLUMNS), restval="", lineterminator="\n"
  )
  writer.writeheader()
  for name, entry in report["sets"].items():
    for row in entry["rows"]:
      writer.writerow({"set": name, **row})
  return out.getvalue()
