# SPDX-License-Identifier: Apache-2.0
"""The codec job: audio files in, files of codes out, and back."""

import dataclasses
import math
import os
import pathlib
import sys
from typing import Any

import numpy as np

from musiclm_jax.audio import blocks, files
from musiclm_jax.cli import artifact_paths
from musiclm_jax.core import artifacts, atomic_files, errors, progress
from musiclm_jax.systems import codec_streams, tokenizers

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class CodeFile:
  """What a file of codes holds.

  Attributes:
    codes: `[frames, codebooks]`, in the file the smallest unsigned integers.
    sample_rate_hz: of the audio.
    num_samples: of the audio, exactly; the last frame may be part zeros.
    num_channels: of the audio.
    bitrate_bps: of the codes.
    fingerprint: of the codec they were made with.
  """

  codes: np.ndarray
  sample_rate_hz: int
  num_samples: int
  num_channels: int
  bitrate_bps: float
  fingerprint: str

  def save(self, path: str | os.PathLike) -> None:
    """Writes an .npz; it appears whole or not at all.

    Raises:
      UserError: if it cannot be written.
    """
    path = pathlib.Path(path)
    values = {
      field.name: np.asarray(getattr(self, field.name))
      for field in dataclasses.fields(self)
    }
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      with atomic_files.written(path) as file:
        np.savez(file, format_version=np.asarray(FORMAT_VERSION), **values)
    except OSError as error:
      raise errors.UserError(f"cannot write {path}: {error}") from error

  @classmethod
  def load(cls, path: str | os.PathLike) -> "CodeFile":
    """Reads what `save` wrote.

    Raises:
      UserError: if it is missing, damaged or something else.
    """
    path = pathlib.Path(path)
    if not path.is_file():
      raise errors.UserError(f"no file of codes at {path}")
    try:
      with np.load(path, allow_pickle=False) as file:
        version = int(file["format_version"])
        codes = file["codes"]
        rest = {
          field.name: file[field.name].item()
          for field in dataclasses.fields(cls)[1:]
        }
    except Exception as e:  # numpy and zipfile raise many kinds
      raise errors.UserError(
        f"{path} is no file of codes, or a damaged one ({_brief(e)}): expected "
        "what `musiclm codec encode` wrote"
      ) from e
    if version != FORMAT_VERSION:
      raise errors.UserError(
        f"{path} has format_version={version}: expected {FORMAT_VERSION}"
      )
    if codes.ndim != 2 or codes.dtype.kind != "u" or not codes.size:
      raise errors.UserError(
        f"{path} holds codes {codes.dtype} {codes.shape}: expected unsigned "
        "integers [frames, codebooks], not empty"
      )
    made = cls(codes, **rest)
    made._check(path)
    return made

  def _check(self, path: pathlib.Path) -> None:
    """Raises UserError for numbers that no encoder writes."""
    for name in ("sample_rate_hz", "num_samples", "num_channels"):
      value = getattr(self, name)
      if type(value) is not int or value < 1:
        raise errors.UserError(
          f"{path} has {name}={value!r}: expected a whole number from 1 on"
        )
    bitrate = self.bitrate_bps
    if not isinstance(bitrate, (int, float)) or not 0 <= bitrate < math.inf:
      raise errors.UserError(
        f"{path} has bitrate_bps={bitrate!r}: expected a number from 0 on"
      )


def _brief(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]


def load_codec(
  directory: str, denoise: bool = False
) -> tokenizers.SoundStreamTokenizer:
  """The codec in an artefact, in a bundle or in a folder of artefacts.

  Args:
    directory: the folder.
    denoise: sets the codec's switch.

  Raises:
    UserError: if there is none, it is not the one its bundle names, or it has
      no switch.
  """
  part, expected = artifact_paths.find(directory, "soundstream", "codec")
  codec = tokenizers.SoundStreamTokenizer.load(part, denoise)
  artifact_paths.check(
    directory,
    "soundstream",
    codec.fingerprint.removesuffix(tokenizers.DENOISE_SUFFIX),
    expected,
  )
  return codec


def _levels(num_codebooks: int, most: int, where: str) -> int:
  if not 0 <= num_codebooks <= most:
    raise errors.UserError(
      f"--num_codebooks={num_codebooks}: expected 1 to {most} ({where}), or 0 "
      "for all"
    )
  return num_codebooks or most


def encode(
  codec: tokenizers.SoundStreamTokenizer,
  source: str | os.PathLike,
  target: str | os.PathLike,
  num_codebooks: int = 0,
) -> CodeFile:
  """One audio file of any length to a file of codes.

  Only the codes are held in memory.

  Args:
    codec: which.
    source: audio; resampled and mixed to what the codec takes.
    target: .npz.
    num_codebooks: levels to keep, 0 for all.

  Returns:
    What was written.

  Raises:
    UserError: for bad input or output; nothing is written then.
  """
  target = pathlib.Path(target)
  if target.suffix != ".npz":
    raise errors.UserError(f"{target}: expected a name that ends in .npz")
  config = codec.config
  levels = _levels(num_codebooks, config.num_codebooks, "of the codec")
  reader = blocks.BlockReader(
    source, config.sample_rate_hz, config.num_channels
  )
  stream = codec.stream_encoder(
    chunk_frames=codec_streams.MAX_CALL_FRAMES, num_codebooks=levels
  )
  # Codebooks have a power of two of entries or fewer: the largest code fits.
  dtype = np.min_scalar_type(config.codebook_size - 1)
  parts, count = [], 0
  secs = reader.num_samples // config.sample_rate_hz
  with progress.Progress(f"encode {source}", secs, unit="sec") as bar:
    for block in reader:
      count += len(block)
      shaped = block[None, :, 0] if config.num_channels == 1 else block[None]
      parts.append(stream.push(shaped)[0].astype(dtype))
      _advance(bar, count - len(block), count, config.sample_rate_hz)
    parts.append(stream.flush()[0].astype(dtype))
  made = CodeFile(
    np.concatenate(parts),
    config.sample_rate_hz,
    count,
    config.num_channels,
    config.bitrate_bps(levels),
    codec.fingerprint,
  )
  made.save(target)
  return made


def _advance(bar: progress.Progress, before: int, now: int, rate: int) -> None:
  """Counts whole seconds."""
  if now // rate > before // rate:
    bar.update(now // rate - before // rate)


def _check_fits(
  made: CodeFile, codec: tokenizers.SoundStreamTokenizer, source: Any
) -> None:
  """Raises UserError if codes are not this codec's, or damaged."""
  artifacts.check_fingerprint(
    f"{source} needs another codec: the one given",
    codec.fingerprint,
    made.fingerprint,
  )
  config = codec.config
  for name in ("sample_rate_hz", "num_channels"):
    if getattr(made, name) != getattr(config, name):
      raise errors.UserError(
        f"{source} has {name}={getattr(made, name)}: expected "
        f"{getattr(config, name)}, the codec's"
      )
  frames = config.num_frames(made.num_samples)
  if len(made.codes) != frames or made.codes.max() >= config.codebook_size:
    raise errors.UserError(
      f"{source} holds {len(made.codes)} frames with codes up to "
      f"{made.codes.max()}: expected {frames} of {made.num_samples} samples, "
      f"below codebook_size={config.codebook_size}"
    )


def decode(
  codec: tokenizers.SoundStreamTokenizer,
  source: str | os.PathLike,
  target: str | os.PathLike,
  num_codebooks: int = 0,
) -> CodeFile:
  """One file of codes to audio of exactly the length that was encoded.

  Args:
    codec: the one that made the codes.
    source: .npz.
    target: .wav or .flac, 16 bit.
    num_codebooks: levels to use, 0 for all in the file.

  Returns:
    What was read.

  Raises:
    UserError: for bad input or output, and for codes of another codec (with
      both fingerprints); nothing is written then.
  """
  made = CodeFile.load(source)
  _check_fits(made, codec, source)
  levels = _levels(num_codebooks, made.codes.shape[1], f"in {source}")
  rate, step = made.sample_rate_hz, codec_streams.MAX_CALL_FRAMES
  stream = codec.stream_decoder(chunk_frames=step)
  writer = blocks.BlockWriter(target, rate, made.num_channels, made.num_samples)
  secs = made.num_samples // rate
  with writer, progress.Progress(f"decode {source}", secs, unit="sec") as bar:
    written = 0
    for start in range(0, len(made.codes), step):
      part = made.codes[None, start : start + step, :levels].astype(np.int32)
      sound = stream.push(part)[0]
      if start + step >= len(made.codes):
        sound = np.concatenate([sound, stream.flush()[0]])
      sound = sound[: made.num_samples - written]
      writer.write(sound)
      _advance(bar, written, written + len(sound), rate)
      written += len(sound)
  return made


def _pairs(
  action: str, source: pathlib.Path, target: pathlib.Path
) -> list[tuple[pathlib.Path, pathlib.Path]]:
  """Input and output files; all in a folder where the input is one."""
  if not source.is_dir():
    return [(source, target)]
  if source.resolve() == target.resolve():
    raise errors.UserError(
      f"{target} is the input folder too: expected another one for the output"
    )
  wanted = files.ENDINGS if action == "encode" else (".npz",)
  suffix = ".npz" if action == "encode" else ".wav"
  found = [source / name for name in files.list_names(source, wanted)]
  found = [path for path in found if path.is_file()]
  if not found:
    raise errors.UserError(
      f"no file in {source} ends in {', '.join(wanted)}: nothing to {action}"
    )
  pairs = [
    (path, (target / path.relative_to(source)).with_suffix(suffix))
    for path in found
  ]
  taken: dict[pathlib.Path, pathlib.Path] = {}
  for path, out in pairs:
    if taken.setdefault(out, path) != path:
      raise errors.UserError(f"{taken[out]} and {path} would both become {out}")
  return pairs


def _describe(target: pathlib.Path, made: CodeFile, levels: int) -> str:
  secs = made.num_samples / made.sample_rate_hz
  return (
    f"{target}: {secs:.3f} s at {made.sample_rate_hz} Hz, {levels} codebooks, "
    f"{made.bitrate_bps * levels / made.codes.shape[1] / 1000:.2f} kbit/s"
  )


def run(
  action: str,
  source: str,
  target: str,
  codec_dir: str,
  num_codebooks: int,
  denoise: bool = False,
) -> int:
  """Encodes or decodes a file, or each file of a folder.

  Args:
    action: 'encode' or 'decode'.
    source: file or folder.
    target: file or folder.
    codec_dir: see `load_codec`.
    num_codebooks: levels, 0 for all.
    denoise: sets the codec's switch.

  Returns:
    The exit code: 1 if a file of a folder failed; the others are done then.

  Raises:
    UserError: if a single file fails.
  """
  inputs = pathlib.Path(source)
  if not inputs.exists():
    raise errors.UserError(f"no file or folder at {source}")
  pairs = _pairs(action, inputs, pathlib.Path(target))
  codec = load_codec(codec_dir, denoise)
  work = encode if action == "encode" else decode
  failed = 0
  for path, out in pairs:
    try:
      made = work(codec, path, out, num_codebooks)
    except errors.UserError as error:
      if not inputs.is_dir():
        raise
      failed += 1
      print(f"musiclm: {error}", file=sys.stderr)
      continue
    print(_describe(out, made, num_codebooks or made.codes.shape[1]))
  if failed:
    print(f"musiclm: {failed} of {len(pairs)} files failed", file=sys.stderr)
  return 1 if failed else 0
