# SPDX-License-Identifier: Apache-2.0
"""The embed job: audio files and texts in, MuLan vectors in files out."""

import csv
import io
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from musiclm_jax.audio import blocks, files
from musiclm_jax.cli import artifact_paths
from musiclm_jax.core import atomic_files, errors, progress
from musiclm_jax.systems import audio_index, tokenizers

TABLES = (".npz", ".csv")
# The most work that a killed job repeats.
_FLUSH_FILES = 256
_FLUSH_SECS = 60.0


def load_mulan(directory: str) -> tokenizers.MuLanTokenizer:
  """The MuLan in an artefact, in a bundle or in a folder of artefacts.

  Raises:
    UserError: if there is none, or it is not the one its bundle names.
  """
  part, expected = artifact_paths.find(directory, "mulan", "mulan")
  mulan = tokenizers.MuLanTokenizer.load(part)
  artifact_paths.check(directory, "mulan", mulan.fingerprint, expected)
  return mulan


def list_audio(inputs: Sequence[str]) -> list[pathlib.Path]:
  """Audio files named, and those in folders named, each once.

  Raises:
    UserError: if a path is missing, or a folder has no audio file.
  """
  found: dict[pathlib.Path, None] = {}
  for name in inputs:
    path = pathlib.Path(name)
    if not path.exists():
      raise errors.UserError(f"no file or folder at {name}")
    names = [path]
    if path.is_dir():
      names = [path / one for one in files.list_names(path)]
      names = [one for one in names if one.is_file()]
      if not names:
        raise errors.UserError(
          f"no file in {name} ends in {', '.join(files.ENDINGS)}: nothing to "
          "embed"
        )
    found.update(dict.fromkeys(names))
  return list(found)


def embed_file(
  mulan: tokenizers.MuLanTokenizer, path: str | os.PathLike, by_window: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Vectors of one file of any length, in constant memory.

  The result depends on the file alone.

  Args:
    mulan: the towers.
    path: audio, any rate, any number of channels.
    by_window: a vector per window (one starts every second), or the mean of
      them at unit length.

  Returns:
    float32 `[rows]`, where each starts in seconds, and float32 `[rows, dim]`.

  Raises:
    UserError: for a file that is missing, damaged or not audio.
  """
  reader = blocks.BlockReader(path, mulan.config.mel.sample_rate_hz)
  windows, total, count = [], 0.0, 0
  for part in mulan.embed_stream(block[:, 0] for block in reader):
    count += len(part)
    if by_window:
      windows.append(part)
    else:
      total = total + part.sum(0, dtype=np.float64)
  if by_window:
    return np.arange(count, dtype=np.float32), np.concatenate(windows)
  mean = total / max(np.linalg.norm(total), 1e-12)
  return np.zeros(1, np.float32), mean[None].astype(np.float32)


def _each(
  paths: Sequence[pathlib.Path],
  embed: Callable[[pathlib.Path], tuple[np.ndarray, np.ndarray]],
  skipped: list[dict[str, str]],
) -> Iterator[tuple[pathlib.Path, np.ndarray, np.ndarray]]:
  """Embeds file after file; bad ones are told of and noted in `skipped`."""
  with progress.Progress("embed", len(paths), unit="file") as bar:
    for path in paths:
      try:
        yield path, *embed(path)
      except errors.UserError as error:
        skipped.append({"path": str(path), "reason": str(error)})
        print(f"musiclm: {error}", file=sys.stderr)
      bar.update()


def _to_index(
  mulan: tokenizers.MuLanTokenizer,
  paths: Sequence[pathlib.Path],
  target: pathlib.Path,
  by_window: bool,
) -> list[dict[str, str]]:
  """Adds files to an index; returns those that were skipped."""
  index = audio_index.AudioIndex.create(
    target,
    audio_index.IndexConfig(
      mulan.fingerprint,
      mulan.config.output_dim,
      by_window,
      mulan.config.window_secs,
    ),
  )
  known = index.known()
  wanted = list(dict.fromkeys(path.resolve() for path in paths))
  new = [path for path in wanted if str(path) not in known]
  if len(new) < len(wanted):
    print(f"{len(wanted) - len(new)} of {len(wanted)} files are there already")
  skipped: list[dict[str, str]] = []
  held: list[audio_index.FileEmbedding] = []
  # Looked at before the file is read: a change meanwhile is then found.
  states = {}

  def embed(path):
    states[path] = path.stat()
    return embed_file(mulan, path, by_window)

  flushed = time.monotonic()
  try:
    for path, starts, vectors in _each(new, embed, skipped):
      state = states.pop(path)
      held.append(
        audio_index.FileEmbedding(
          str(path), state.st_size, state.st_mtime_ns, starts, vectors
        )
      )
      late = time.monotonic() - flushed > _FLUSH_SECS
      if late or len(held) >= _FLUSH_FILES:
        index.add(held)
        held, flushed = [], time.monotonic()
  finally:
    index.add(held)  # What an interrupt finds is kept too.
  tried = {str(path) for path in wanted}
  before = [one for one in index.skipped if one["path"] not in tried]
  index.skipped = before + skipped
  index.write_header()
  numbers = audio_index.describe(index)
  print(
    f"{target}: {numbers['num_files']} files, {numbers['num_vectors']} "
    f"vectors, MuLan {numbers['fingerprint']}"
  )
  return skipped


def _write_table(
  target: pathlib.Path,
  audio: Sequence[tuple[pathlib.Path, np.ndarray, np.ndarray]],
  texts: Sequence[str],
  text_vectors: np.ndarray,
  fingerprint: str,
) -> None:
  """Writes an .npz or a .csv; it appears whole or not at all."""
  target.parent.mkdir(parents=True, exist_ok=True)
  dim = text_vectors.shape[1]
  paths = [str(path) for path, starts, _ in audio for _ in starts]
  starts = np.concatenate([np.zeros(0, np.float32), *(one[1] for one in audio)])
  vectors = np.concatenate(
    [np.zeros((0, dim), np.float32), *(one[2] for one in audio)]
  )
  with atomic_files.written(target) as file:
    if target.suffix.lower() == ".npz":
      np.savez(
        file,
        paths=np.array(paths, np.str_),
        starts_secs=starts,
        embeddings=vectors,
        texts=np.array(texts, np.str_),
        text_embeddings=text_vectors,
        fingerprint=np.array(fingerprint),
      )
    else:
      lines = io.TextIOWrapper(file, encoding="utf-8", newline="")
      writer = csv.writer(lines)
      names = [f"e{index}" for index in range(dim)]
      writer.writerow(["kind", "source", "start_secs", *names])
      for name, start, row in zip(paths, starts, vectors):
        writer.writerow(["audio", name, f"{start:g}", *row.tolist()])
      for text, row in zip(texts, text_vectors):
        writer.writerow(["text", text, "", *row.tolist()])
      lines.detach()  # written out; the file is closed by who opened it


def run(
  inputs: Sequence[str],
  texts: Sequence[str],
  output: str,
  mulan_dir: str,
  by_window: bool,
) -> int:
  """Embeds audio files and texts.

  Args:
    inputs: audio files and folders.
    texts: texts, only where the output is a table.
    output: .npz, .csv or a folder.
    mulan_dir: see `load_mulan`.
    by_window: a vector per window of audio.

  Returns:
    The exit code: 1 if a file failed; the others are done then.

  Raises:
    UserError: if an input is missing, a text is blank or the output is of
      another kind.
  """
  target = pathlib.Path(output)
  is_table = target.suffix.lower() in TABLES
  if texts and not is_table:
    raise errors.UserError(
      f"--output={output} is a folder, for audio: expected a name in "
      f"{' or '.join(TABLES)} for texts"
    )
  paths = list_audio(inputs)
  mulan = load_mulan(mulan_dir)
  # First, so that a blank text costs nothing.
  dim = mulan.config.output_dim
  text_vectors = np.zeros((0, dim), np.float32)
  if texts:
    text_vectors = mulan.embed_text(texts)
  if not is_table:
    skipped = _to_index(mulan, paths, target, by_window)
  else:
    skipped = []
    audio = list(
      _each(paths, lambda path: embed_file(mulan, path, by_window), skipped)
    )
    if audio or texts:
      _write_table(target, audio, texts, text_vectors, mulan.fingerprint)
      count = sum(len(one[1]) for one in audio)
      print(
        f"{target}: {count} vectors of {len(audio)} files, {len(texts)} of "
        f"texts, MuLan {mulan.fingerprint}"
      )
  if skipped and len(paths) > 1:
    print(
      f"musiclm: {len(skipped)} of {len(paths)} files failed", file=sys.stderr
    )
  return 1 if skipped else 0
