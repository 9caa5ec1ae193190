# SPDX-License-Identifier: Apache-2.0
"""The long part of a memorization audit: examples to continuations and costs.

Part k holds examples `[k * part_size, (k + 1) * part_size)` and appears by one
rename, so a killed job goes on behind its parts and counts no example twice.
Processes that share the folder claim parts, as in a tokenize job.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from musiclm_jax.cli import stage_examples
from musiclm_jax.core import atomic_files, errors, progress
from musiclm_jax.data import shard_claims
from musiclm_jax.evaluation import memorization, optimal_transport
from musiclm_jax.systems import greedy_stage

SETTINGS_NAME = "settings.json"
_FOLDER, _CLAIMS = "parts", "claims"
_STALE_SECS = 120.0
_POLL_SECS = 0.5
_ARRAYS = (
  "clip_ids",
  "work_ids",
  "starts",
  "codes",
  "generated",
  "exact",
  "costs",
  "entropies",
  "too_short",
)


class Parts:
  """Parts of one audit on disk.

  Attributes:
    directory: of the audit.
    settings: that decide what is in the parts.
    total: examples asked for.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    settings: Mapping[str, Any],
    total: int,
  ):
    """Begins an audit, or goes on with the one that is there.

    Args:
      directory: of the audit.
      settings: JSON-compatible, with 'part_size' and 'prompt_tokens'.
      total: examples.

    Raises:
      UserError: if the folder holds an audit with other settings.
    """
    self.directory, self.settings, self.total = directory, settings, total
    self._folder = directory / _FOLDER
    self._folder.mkdir(parents=True, exist_ok=True)
    self._check_settings()
    size = settings["part_size"]
    self._spans = [
      (start, min(start + size, total)) for start in range(0, total, size)
    ]

  def _check_settings(self) -> None:
    path = self.directory / SETTINGS_NAME
    if not path.is_file():
      with atomic_files.written(path) as file:
        file.write((json.dumps(self.settings, indent=2) + "\n").encode())
      return
    try:
      found = json.loads(path.read_text())
    except ValueError as error:
      raise errors.UserError(f"damaged settings {path}: {error}") from error
    for name in (*self.settings, *found):
      if found.get(name) != self.settings.get(name):
        raise errors.UserError(
          f"{self.directory} holds an audit with {name}={found.get(name)}, "
          f"this one has {self.settings.get(name)}: name another --output_dir"
        )

  def _path(self, number: int) -> pathlib.Path:
    return self._folder / f"part-{number:06d}.npz"

  def _pending(self) -> list[int]:
    numbers = range(len(self._spans))
    return [number for number in numbers if not self._path(number).is_file()]

  def fill(
    self,
    examples: stage_examples.StageExamples,
    stage: greedy_stage.GreedyStage,
    transport: optimal_transport.Transport,
  ) -> None:
    """Writes what is missing, alone or among others."""
    # Of a killed process; one that is at work finds a new name.
    atomic_files.remove_abandoned(self._folder, _STALE_SECS)
    pending = self._pending()
    done = self.total - sum(self._num_examples(number) for number in pending)
    with (
      shard_claims.Claims(self.directory / _CLAIMS, _STALE_SECS) as claims,
      progress.Progress("memorization", self.total, done, "example") as bar,
    ):
      while pending := self._pending():
        count = 0
        for number in pending:
          name = self._path(number).name
          if self._path(number).is_file() or not claims.claim(name):
            continue
          try:
            if not self._path(number).is_file():
              self._write(number, examples, stage, transport)
              count += 1
              bar.update(self._num_examples(number))
          finally:
            claims.release(name)
        if not count:
          time.sleep(_POLL_SECS)
    with contextlib.suppress(OSError):  # others may still hold one
      (self.directory / _CLAIMS).rmdir()

  def _num_examples(self, number: int) -> int:
    start, end = self._spans[number]
    return end - start

  def _write(
    self,
    number: int,
    examples: stage_examples.StageExamples,
    stage: greedy_stage.GreedyStage,
    transport: optimal_transport.Transport,
  ) -> None:
    batch = examples.read(*self._spans[number])
    lengths = self.settings["prompt_tokens"]
    frames = self.settings["continuation_tokens"]
    shape = (len(batch.codes), len(lengths))
    generated = np.zeros((*shape, frames), np.int32)
    costs, entropies = np.zeros(shape), np.zeros(shape)
    targets = targets_of(batch.codes, lengths, frames)
    for column, length in enumerate(lengths if len(batch.codes) else ()):
      known = batch.codes[:, :length, np.newaxis]
      made = stage.go_on(batch.conditioning, known, frames)[..., 0]
      first = optimal_transport.histograms(made)
      second = optimal_transport.histograms(targets[:, column])
      generated[:, column] = made
      costs[:, column] = transport.costs(first, second)
      entropies[:, column] = optimal_transport.entropy_bits(first.weights)
    with atomic_files.written(self._path(number)) as file:
      np.savez(
        file,
        clip_ids=batch.clip_ids,
        work_ids=batch.work_ids,
        starts=batch.starts,
        codes=batch.codes,
        generated=generated,
        exact=memorization.exact_matches(generated, targets),
        costs=costs,
        entropies=entropies,
        too_short=np.array(batch.too_short, np.str_),
      )

  def read(self) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of each part, in order.

    Raises:
      UserError: if a part is damaged.
    """
    for number in range(len(self._spans)):
      path = self._path(number)
      try:
        with np.load(path, allow_pickle=False) as file:
          yield {name: file[name] for name in _ARRAYS}
      except Exception as error:  # numpy and zipfile raise many kinds
        raise errors.UserError(
          f"damaged part of an audit at {path}: {error}; delete it, and the "
          "same command makes it again"
        ) from error


def targets_of(
  codes: np.ndarray, prompt_frames: list[int], num_frames: int
) -> np.ndarray:
  """What follows each prompt.

  Args:
    codes: int `[rows, frames]`, the longest prompt and what follows it.
    prompt_frames: length of each prompt.
    num_frames: that follow.

  Returns:
    int `[rows, prompts, num_frames]`.
  """
  return np.stack(
    [codes[:, length : length + num_frames] for length in prompt_frames], axis=1
  )
