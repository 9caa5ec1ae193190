# SPDX-License-Identifier: Apache-2.0
"""Clips of a listening test: folders of audio in, clips that look alike out.

Files are matched by their texts. What is written has one length, rate, number
of channels and (unless asked otherwise) loudness, and no metadata.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import soundfile

from musiclm_jax.audio import files, loudness, uploads
from musiclm_jax.core import errors
from musiclm_jax.systems import provenance

CAPTIONS_NAME = "captions.jsonl"
LIMITS = uploads.Limits(max_bytes=256 << 20, max_secs=600.0)
# A codec may give back some samples less than it got; they become silence.
_SLACK_SECS = 0.1
_FADE_SECS = 0.02
_MAX_PEAK_DB = -1.0


def read_captions(path: str | os.PathLike) -> dict[str, str]:
  """Texts by the file they belong to, and by its stem.

  Args:
    path: JSON lines with `file` and `prompt`.

  Returns:
    By `file` as it is written; by its stem as well, unless files of one stem
    have different texts.

  Raises:
    UserError: if it is missing or a line is not so.
  """
  path = pathlib.Path(path)
  try:
    lines = path.read_text(encoding="utf-8").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(f"{path} cannot be read: {error}") from error
  by_file: dict[str, str] = {}
  stems: dict[str, set[str]] = {}
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
      name, prompt = record["file"], record["prompt"]
      if not (isinstance(name, str) and isinstance(prompt, str) and prompt):
        raise TypeError
    except (ValueError, KeyError, TypeError) as error:
      raise errors.UserError(
        f'{path}:{number}: expected a JSON object with texts "file", "prompt"'
      ) from error
    text, file = prompt.strip(), pathlib.PurePath(name)
    by_file[file.as_posix()] = text
    stems.setdefault(file.stem, set()).add(text)
  by_stem = {
    one: texts.pop() for one, texts in stems.items() if len(texts) == 1
  }
  return by_stem | by_file


def _sidecar_prompt(path: pathlib.Path) -> str | None:
  """The text that `musiclm generate` wrote beside a file."""
  prompt = (provenance.read_sidecar(path) or {}).get("prompt")
  return prompt.strip() if isinstance(prompt, str) else None


def find(
  folder: str | os.PathLike, captions: Mapping[str, str]
) -> tuple[dict[str, pathlib.Path], list[pathlib.Path]]:
  """Files of a system by their texts.

  A text comes from the sidecar that `musiclm generate` wrote, else from
  `captions.jsonl` in the folder, else from `captions`; in both by the name in
  the folder, else by the file's stem.

  Args:
    folder: with WAV, FLAC, OGG or MP3 files.
    captions: of `read_captions`.

  Returns:
    The first file by name of each text, and the files that are left over.

  Raises:
    UserError: if there is no such folder, or no file with a text.
  """
  root = pathlib.Path(folder)
  if not root.is_dir():
    raise errors.UserError(f"no folder at {root}: expected one with audio")
  tables = [captions]
  if (root / CAPTIONS_NAME).is_file():
    tables.insert(0, read_captions(root / CAPTIONS_NAME))
  found: dict[str, pathlib.Path] = {}
  unused = []
  for name in files.list_names(root):
    path = root / name
    prompt = _sidecar_prompt(path)
    for table in tables:
      prompt = prompt or table.get(name) or table.get(path.stem)
    if not prompt or prompt in found:
      unused.append(path)
    else:
      found[prompt] = path
  if not found:
    raise errors.UserError(
      f"{root} has no audio with a text: expected files of `musiclm generate`, "
      f"{CAPTIONS_NAME} in the folder, or --captions"
    )
  return found, unused


def _decode(path: pathlib.Path) -> tuple[np.ndarray, int]:
  """float32 `[samples, channels]` and its rate; UserError names the path."""
  try:
    if path.stat().st_size > LIMITS.max_bytes:
      raise errors.UserError(
        f"it is larger than {LIMITS.max_bytes / (1 << 20):g} MB"
      )
    return uploads.decode(path.read_bytes(), LIMITS, path.name)
  except OSError as error:
    raise errors.UserError(f"{path} cannot be read: {error}") from error
  except errors.UserError as error:
    raise errors.UserError(f"{path}: {error}") from error


def _header(path: pathlib.Path) -> tuple[int, int]:
  """Rate and channels, without decoding."""
  try:
    info = soundfile.info(str(path))
  except Exception as error:  # libsndfile and its wrapper raise several kinds
    raise errors.UserError(f"{path} cannot be read as audio") from error
  return info.samplerate, info.channels


@dataclasses.dataclass(frozen=True)
class Form:
  """What all clips of a test have in common.

  Attributes:
    seconds: length.
    sample_rate_hz: rate.
    num_channels: 1, or 2 where all sources have two.
    lufs: loudness; None keeps that of the sources.
  """

  seconds: float
  sample_rate_hz: int
  num_channels: int
  lufs: float | None

  @property
  def num_samples(self) -> int:
    """Length in samples."""
    return round(self.seconds * self.sample_rate_hz)

  def cut(self, path: pathlib.Path) -> np.ndarray:
    """The begin of a file in this form, at its own loudness.

    Returns:
      float32 `[samples, channels]`, faded at both ends.

    Raises:
      UserError: if it is too short, or no audio within the limits.
    """
    waveform, rate_hz = _decode(path)
    if len(waveform) / rate_hz < self.seconds - _SLACK_SECS:
      raise errors.UserError(
        f"{path} has {len(waveform) / rate_hz:.2f} s: expected at least "
        f"--seconds={self.seconds:g}"
      )
    waveform = waveform[: math.ceil(self.seconds * rate_hz)]
    waveform = files.as_channels(waveform, self.num_channels)
    waveform = waveform.reshape(len(waveform), -1)
    waveform = files.resample(waveform, rate_hz, self.sample_rate_hz)
    out = np.zeros((self.num_samples, self.num_channels), np.float32)
    kept = waveform[: self.num_samples]
    out[: len(kept)] = kept
    return self._faded(out)

  def _faded(self, waveform: np.ndarray) -> np.ndarray:
    length = min(round(_FADE_SECS * self.sample_rate_hz), len(waveform) // 2)
    rise = np.sin(0.5 * np.pi * np.arange(length) / max(length, 1)) ** 2
    waveform[:length] *= rise[:, None].astype(np.float32)
    waveform[len(waveform) - length :] *= rise[::-1, None].astype(np.float32)
    return waveform

  def noise(self, generator: np.random.Generator) -> np.ndarray:
    """Pink noise for an attention check, `[samples, channels]`."""
    length = self.num_samples
    spectrum = np.fft.rfft(generator.normal(size=length))
    falling = 1.0 / np.sqrt(np.maximum(np.arange(len(spectrum)), 1.0))
    one = np.fft.irfft(spectrum * falling, length).astype(np.float32)
    return self._faded(
      np.repeat(loudness.normalize_peak(one)[:, None], self.num_channels, 1)
    )


def common_form(
  paths: Sequence[pathlib.Path],
  seconds: float,
  sample_rate_hz: int | None,
  lufs: float | None,
) -> Form:
  """The form that hides most: the lowest rate, the fewest channels.

  Args:
    paths: all sources.
    seconds: length of the clips.
    sample_rate_hz: None for the lowest of the sources.
    lufs: loudness to aim at; None to keep that of the sources.
  """
  headers = {path: _header(path) for path in paths}
  rate_hz = sample_rate_hz or min(rate for rate, _ in headers.values())
  num_channels = min(min(number, 2) for _, number in headers.values())
  return Form(seconds, rate_hz, num_channels, lufs)


@dataclasses.dataclass(frozen=True)
class Level:
  """Loudness and peak of a clip before its gain.

  Attributes:
    lufs: loudness; minus infinity for silence.
    peak_db: largest sample, in dB of full scale.
  """

  lufs: float
  peak_db: float

  @property
  def reachable_lufs(self) -> float:
    """The loudness at which its peak is as high as allowed."""
    return self.lufs + _MAX_PEAK_DB - self.peak_db

  def gain(self, lufs: float | None) -> float:
    """Factor that brings a clip to a loudness; 1 for silence."""
    if lufs is None or not math.isfinite(self.lufs):
      return 1.0
    return 10.0 ** ((lufs - self.lufs) / 20.0)


def measure(waveform: np.ndarray, sample_rate_hz: int) -> Level:
  """The level of a clip `[samples, channels]`."""
  return Level(
    loudness.integrated_lufs(waveform, sample_rate_hz),
    float(loudness.peak_db(waveform.ravel())),
  )


def common_lufs(levels: Sequence[Level], lufs: float | None) -> float | None:
  """The loudness wanted, or a lower one that no peak forbids.

  No limiter is used: it would change the loud systems' sound alone.
  """
  if lufs is None:
    return None
  heard = [one.reachable_lufs for one in levels if math.isfinite(one.lufs)]
  return min([lufs, *heard])


def write_clip(
  path: pathlib.Path, waveform: np.ndarray, sample_rate_hz: int
) -> str:
  """Writes a WAV file of samples alone; its SHA-256."""
  shape = waveform[:, 0] if waveform.shape[1] == 1 else waveform
  files.write_wav(path, shape, sample_rate_hz)
  # The order of writing would show in listings.
  os.utime(path, (0, 0))
  return hashlib.sha256(path.read_bytes()).hexdigest()
