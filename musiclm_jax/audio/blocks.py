# SPDX-License-Identifier: Apache-2.0
"""Audio files block by block: for files of any length in constant memory."""

import os
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

from musiclm_jax.audio import files
from musiclm_jax.core import errors

BLOCK_SECS = 2.0
# A WAV header counts bytes in 32 bits.
_WAV_MAX_BYTES = 2**32 - 4096
FORMATS = {".wav": "WAV", ".flac": "FLAC"}


class BlockReader:
  """A WAV, FLAC, OGG or MP3 file as blocks at a wanted rate.

  What `files.read_audio` gives in one piece: the same checks, the same
  mixing, the same resampler.

  Attributes:
    sample_rate_hz: of the blocks.
    num_channels: of the blocks.
    num_samples: of all blocks together; of an MP3 an estimate until all of it
      has been read.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    sample_rate_hz: int = 0,
    num_channels: int = 1,
  ):
    """Looks at the header.

    Args:
      path: the file.
      sample_rate_hz: rate to resample to; 0 keeps the file's own.
      num_channels: 1 averages the channels; 2 doubles a single one and keeps
        a pair (more than two are averaged, then doubled).

    Raises:
      UserError: if the file is missing, empty or not audio.
    """
    self._path = pathlib.Path(path)
    if not self._path.exists():
      raise errors.UserError(f"no audio file at {path}")
    if not self._path.is_file():
      raise errors.UserError(f"{path} is not a file: expected an audio file")
    if self._path.stat().st_size == 0:
      raise errors.UserError(f"{path} is empty (0 bytes): expected audio")
    with self._open() as file:
      self._file_rate_hz, self._frames = file.samplerate, file.frames
      self._is_estimate = file.format in ("MP3", "MPEG")
    if self._frames == 0:
      raise errors.UserError(f"{path} holds no samples: expected at least 1")
    self.sample_rate_hz = sample_rate_hz or self._file_rate_hz
    self.num_channels = num_channels
    self.num_samples = self._resampled(self._frames)

  def _open(self) -> soundfile.SoundFile:
    try:
      return soundfile.SoundFile(self._path)
    except (RuntimeError, OSError) as error:
      raise self._unreadable(error) from error

  def _unreadable(self, error: Exception) -> errors.UserError:
    reason = str(error).split(": ")[-1].strip(" .")
    return errors.UserError(
      f"{self._path} cannot be read as audio ({reason}): expected an intact "
      "WAV, FLAC, OGG or MP3 file"
    )

  def _resampled(self, samples: int) -> int:
    return round(samples * self.sample_rate_hz / self._file_rate_hz)

  def _mix(self, block: np.ndarray) -> np.ndarray:
    """`[samples, any channels]` to `[samples, channels]`."""
    if block.shape[1] != self.num_channels:
      block = block.mean(-1, keepdims=True)
      block = np.repeat(block, self.num_channels, axis=1)
    return block

  def _blocks(self) -> Iterator[np.ndarray]:
    """At the file's rate, checked."""
    size, place = max(1, int(BLOCK_SECS * self._file_rate_hz)), 0
    with self._open() as file:
      while True:
        try:
          block = file.read(size, dtype="float32", always_2d=True)
        except (RuntimeError, OSError) as error:
          raise self._unreadable(error) from error
        if not len(block):
          break
        finite = np.isfinite(block).all(-1)
        if not finite.all():
          raise errors.UserError(
            f"{self._path} holds NaN or infinite samples (first at sample "
            f"{place + int(np.argmin(finite))}): expected finite values"
          )
        place += len(block)
        yield self._mix(block)
    # The frame count of an MP3 is an estimate; elsewhere it is a promise.
    if place < self._frames and not self._is_estimate:
      raise errors.UserError(
        f"{self._path} is truncated: it holds {place} of {self._frames} samples"
      )
    if place == 0:
      raise errors.UserError(
        f"{self._path} holds no samples: expected at least 1"
      )
    self.num_samples = self._resampled(place)

  def __iter__(self) -> Iterator[np.ndarray]:
    """float32 blocks `[samples, channels]`.

    Raises:
      UserError: if the file is truncated or holds NaN or infinite samples.
    """
    if self.sample_rate_hz == self._file_rate_hz:
      yield from self._blocks()
      return
    resampler = soxr.ResampleStream(
      self._file_rate_hz,
      self.sample_rate_hz,
      self.num_channels,
      dtype="float32",
      quality="HQ",
    )
    count = 0
    for block in self._blocks():
      out = resampler.resample_chunk(np.ascontiguousarray(block))
      count += len(out)
      yield out
    end = resampler.resample_chunk(
      np.zeros((0, self.num_channels), np.float32), last=True
    )
    # Rounding may leave a sample too many or too few.
    wanted = max(self.num_samples - count, 0)
    end = end[:wanted]
    yield np.pad(end, ((0, wanted - len(end)), (0, 0)))


class BlockWriter:
  """A 16-bit WAV or FLAC file from blocks; it appears whole or not at all.

  A context manager: leaving it by an error leaves nothing.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    sample_rate_hz: int,
    num_channels: int,
    num_samples: int,
  ):
    """Starts a file beside its target.

    Args:
      path: target, `.wav` or `.flac`; its folder is made when missing.
      sample_rate_hz: rate.
      num_channels: of the blocks.
      num_samples: in all; a WAV of more than 4 GB is written as RF64.

    Raises:
      UserError: for another suffix, or if nothing can be written there.
    """
    self._path = pathlib.Path(path)
    suffix = self._path.suffix.lower()
    if suffix not in FORMATS:
      raise errors.UserError(
        f"{path}: expected a name that ends in {' or '.join(FORMATS)}"
      )
    kind = FORMATS[suffix]
    if kind == "WAV" and 2 * num_channels * num_samples > _WAV_MAX_BYTES:
      kind = "RF64"
    self._scratch = None
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      handle, self._scratch = tempfile.mkstemp(
        dir=self._path.parent, prefix=f".{self._path.name}.", suffix=".writing"
      )
      os.close(handle)
      self._file = soundfile.SoundFile(
        self._scratch,
        "w",
        sample_rate_hz,
        num_channels,
        subtype="PCM_16",
        format=kind,
      )
    except (OSError, soundfile.SoundFileError) as error:
      self._remove()
      raise errors.UserError(f"cannot write {path}: {error}") from error

  def write(self, block: np.ndarray) -> None:
    """Appends float32 `[samples]` or `[samples, channels]`, clipped.

    Raises:
      ValueError: if a value is NaN or infinite.
      UserError: if it cannot be written.
    """
    pcm = files.to_pcm16(block)
    try:
      self._file.write(pcm)
    except (OSError, soundfile.SoundFileError) as error:
      raise errors.UserError(f"cannot write {self._path}: {error}") from error

  def _remove(self) -> None:
    if self._scratch is not None and os.path.exists(self._scratch):
      os.unlink(self._scratch)

  def __enter__(self) -> "BlockWriter":
    return self

  def __exit__(self, kind: type | None, *unused) -> None:
    try:
      self._file.close()
      if kind is None:
        os.chmod(self._scratch, 0o644)  # mkstemp makes files private
        os.replace(self._scratch, self._path)
    except (OSError, soundfile.SoundFileError) as error:
      raise errors.UserError(f"cannot write {self._path}: {error}") from error
    finally:
      self._remove()
