# SPDX-License-Identifier: Apache-2.0
"""Audio files and encoded bytes in, float32 waveforms out, and back."""

import io
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import soundfile
import soxr

from musiclm_jax.audio import wav_tags
from musiclm_jax.core import atomic_files, errors

ENDINGS = (".wav", ".flac", ".ogg", ".mp3")
_PCM_MAX = 32767.0
_EIGHT_BITS = ("PCM_S8", "PCM_U8", "ULAW", "ALAW")


def has_ending(name: str, endings: Sequence[str] = ENDINGS) -> bool:
  """Whether a name ends so, in small or capital letters."""
  return os.path.splitext(name)[1].lower() in endings


def list_names(
  folder: str | os.PathLike, endings: Sequence[str] = ENDINGS
) -> list[str]:
  """Names below a local folder by ending, relative, sorted.

  Folders and broken links that are named like files are listed as well.

  Args:
    folder: root of the tree.
    endings: in small letters, with the dot.

  Returns:
    Names with forward slashes.
  """
  root = pathlib.Path(folder)
  return sorted(
    path.relative_to(root).as_posix()
    for path in root.rglob("*")
    if has_ending(path.name, endings)
  )


def read_audio(
  path: str | os.PathLike,
  sample_rate_hz: int | None = None,
  mono: bool = True,
) -> tuple[np.ndarray, int]:
  """Reads a WAV, FLAC, OGG or MP3 file.

  Args:
    path: the file.
    sample_rate_hz: rate to resample to; None keeps the file's own.
    mono: average the channels.

  Returns:
    The waveform, float32 in about [-1, 1], `[samples]` if `mono`, else
    `[samples, channels]`; and its rate in Hz.

  Raises:
    UserError: if the file is missing, empty, not audio, truncated, without
      samples, or holds NaN or infinite samples.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise errors.UserError(f"no audio file at {path}")
  if not path.is_file():
    raise errors.UserError(f"{path} is not a file: expected an audio file")
  if path.stat().st_size == 0:
    raise errors.UserError(f"{path} is empty (0 bytes): expected audio")
  return _read(path, str(path), sample_rate_hz, mono)


def decode_audio(
  content: bytes,
  sample_rate_hz: int | None = None,
  mono: bool = True,
  name: str = "audio bytes",
) -> tuple[np.ndarray, int]:
  """Decodes the bytes of an audio file; see `read_audio`.

  Args:
    content: bytes of a WAV, FLAC, OGG or MP3 file.
    sample_rate_hz: rate to resample to; None keeps the content's own.
    mono: average the channels.
    name: what the content is, for error messages.

  Returns:
    The waveform and its rate in Hz.

  Raises:
    UserError: as `read_audio`.
  """
  if not content:
    raise errors.UserError(f"{name} is empty (0 bytes): expected audio")
  return _read(io.BytesIO(content), name, sample_rate_hz, mono)


def _read(source, name, sample_rate_hz, mono):
  """Decodes, checks, mixes down and resamples one source."""
  try:
    with soundfile.SoundFile(source) as file:
      expected, rate, channels = file.frames, file.samplerate, file.channels
      is_mp3 = file.format in ("MP3", "MPEG")
      waveform = file.read(dtype="float32", always_2d=True)
  except Exception as error:  # libsndfile and its wrapper raise several kinds
    reason = str(error).split(": ")[-1].strip(" .")
    raise errors.UserError(
      f"{name} cannot be read as audio ({reason}): expected an intact WAV, "
      "FLAC, OGG or MP3 file"
    ) from error
  # The frame count of an MP3 is an estimate; elsewhere it is a promise.
  if not is_mp3 and len(waveform) < expected:
    raise errors.UserError(
      f"{name} is truncated: it holds {len(waveform)} of {expected} samples"
    )
  if len(waveform) == 0:
    raise errors.UserError(
      f"{name} holds no samples: expected at least 1 ({rate} Hz, "
      f"{channels} channels)"
    )
  if not np.isfinite(waveform).all():
    index = int(np.argmin(np.isfinite(waveform).all(-1)))
    raise errors.UserError(
      f"{name} holds NaN or infinite samples (first at sample {index}): "
      "expected finite values"
    )
  if mono:
    waveform = waveform.mean(-1) if channels > 1 else waveform[:, 0]
  if sample_rate_hz is not None and sample_rate_hz != rate:
    waveform, rate = resample(waveform, rate, sample_rate_hz), sample_rate_hz
  return np.ascontiguousarray(waveform, np.float32), int(rate)


def has_eight_bits(audio: bytes | str | os.PathLike) -> bool:
  """Whether samples are stored in 8 bits, linear or by mu-law or A-law.

  Args:
    audio: bytes or path of an audio file.

  Raises:
    UserError: if it is not audio.
  """
  source = io.BytesIO(audio) if isinstance(audio, bytes) else audio
  try:
    return soundfile.info(source).subtype in _EIGHT_BITS
  except Exception as error:  # as in `_read`
    raise errors.UserError(f"cannot be read as audio ({error})") from error


def as_channels(waveform: np.ndarray, num_channels: int) -> np.ndarray:
  """A waveform with as many channels as wanted.

  Args:
    waveform: `[samples]` or `[samples, channels]`.
    num_channels: 1 averages the channels; 2 keeps a pair (left and right, as
      in the file) and doubles a single one; more than two are averaged first.

  Returns:
    `[samples]` for one channel, else `[samples, num_channels]`.
  """
  if waveform.ndim == 2 and num_channels == 1:
    return waveform.mean(-1)
  if num_channels == 1 or waveform.shape[1:] == (num_channels,):
    return waveform
  mono = waveform if waveform.ndim == 1 else waveform.mean(-1)
  return np.stack([mono] * num_channels, axis=-1)


def resample(waveform: np.ndarray, from_hz: float, to_hz: float) -> np.ndarray:
  """High-quality resampling (soxr HQ).

  Args:
    waveform: float32 `[samples]` or `[samples, channels]`.
    from_hz: its rate.
    to_hz: the wanted rate.

  Returns:
    float32 of `round(samples * to_hz / from_hz)` samples.
  """
  if from_hz == to_hz:
    return np.asarray(waveform, np.float32)
  out = soxr.resample(np.asarray(waveform, np.float32), from_hz, to_hz, "HQ")
  return np.ascontiguousarray(out, np.float32)


def to_pcm16(waveform: np.ndarray) -> np.ndarray:
  """Clipped 16-bit samples of a waveform or of a part of one.

  Raises:
    ValueError: if a value is NaN or infinite.
  """
  waveform = np.asarray(waveform, np.float32)
  if not np.isfinite(waveform).all():
    raise ValueError("waveform holds NaN or infinite samples: expected finite")
  return np.round(np.clip(waveform, -1.0, 1.0) * _PCM_MAX).astype(np.int16)


def _pcm16(waveform: np.ndarray) -> np.ndarray:
  """As `to_pcm16`; refuses what is no whole waveform."""
  waveform = np.asarray(waveform, np.float32)
  if waveform.ndim not in (1, 2) or waveform.size == 0:
    raise ValueError(
      f"waveform has shape {waveform.shape}: expected [samples] or "
      "[samples, channels], not empty"
    )
  return to_pcm16(waveform)


def encode_flac(waveform: np.ndarray, sample_rate_hz: int) -> bytes:
  """16-bit FLAC bytes of a waveform `[samples]` or `[samples, channels]`.

  Raises:
    ValueError: if the waveform is empty, not finite or of another rank.
  """
  buffer = io.BytesIO()
  soundfile.write(
    buffer, _pcm16(waveform), sample_rate_hz, format="FLAC", subtype="PCM_16"
  )
  return buffer.getvalue()


def write_wav(
  path: str | os.PathLike,
  waveform: np.ndarray,
  sample_rate_hz: int,
  tags: Mapping[str, str] | None = None,
) -> None:
  """Writes 16-bit PCM WAV; the file appears whole or not at all.

  Args:
    path: target; its folder is made when missing.
    waveform: `[samples]` or `[samples, channels]`, clipped to [-1, 1].
    sample_rate_hz: rate.
    tags: texts for the RIFF INFO chunk (`wav_tags.read` gives them).

  Raises:
    ValueError: if the waveform is empty, not finite or of another rank.
    UserError: if the file cannot be written.
  """
  pcm = _pcm16(waveform)
  path = pathlib.Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files.written(path) as file:
      soundfile.write(file, pcm, sample_rate_hz, format="WAV", subtype="PCM_16")
      if tags:
        wav_tags.append(file, tags)
  except (OSError, soundfile.SoundFileError) as error:
    raise errors.UserError(f"cannot write {path}: {error}") from error
