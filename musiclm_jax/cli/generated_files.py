# SPDX-License-Identifier: Apache-2.0
"""Files of the generate verb: a WAV for each kept candidate, with a sidecar."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from musiclm_jax.audio import files
from musiclm_jax.core import atomic_files, errors
from musiclm_jax.systems import prompts as prompts_lib
from musiclm_jax.systems import provenance

# Of a sidecar, what is found out while its item is made.
_FOUND = "candidate"


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
  """What is made from one prompt.

  Attributes:
    prompt: what to make; None where the mode says it all.
    label: of the prompt or the mode, for people.
    seed: of its first candidate.
    seconds: length.
    paths: WAV files to write, one per kept candidate.
    source: what the prompt was written for, by column.
  """

  prompt: prompts_lib.Prompt | None
  label: str
  seed: int
  seconds: float
  paths: tuple[pathlib.Path, ...]
  source: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def name(self) -> str:
    """Of its claim."""
    return self.paths[0].stem


def paths(path: str | os.PathLike, keep: int) -> tuple[pathlib.Path, ...]:
  """The path itself, or with the rank of each candidate in its name."""
  path = pathlib.Path(path)
  if keep == 1:
    return (path,)
  return tuple(
    path.with_name(f"{path.stem}_{rank}{path.suffix}")
    for rank in range(1, keep + 1)
  )


def is_done(item: Item, settings: Mapping[str, Any]) -> bool:
  """Whether all files are there and were made with these settings."""
  for path in item.paths:
    try:
      found = provenance.read_sidecar(path)
    except errors.UserError:  # it is written again
      return False
    if found is None:
      return False
    found.pop(_FOUND, None)
    if found != settings:
      return False
  return True


def write_sidecar(path: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """After the audio: a sidecar says that its file is whole."""
  with atomic_files.written(provenance.sidecar(path)) as file:
    file.write((json.dumps(settings, indent=2) + "\n").encode())


def forget(path: pathlib.Path) -> None:
  """Before the audio: no sidecar speaks for a file that is being written."""
  provenance.sidecar(path).unlink(missing_ok=True)


def write(
  path: pathlib.Path,
  candidate: Any,
  sample_rate_hz: int,
  title: str,
  settings: Mapping[str, Any],
) -> None:
  """Writes audio and sidecar of a `candidates.Candidate`."""
  settings = dict(settings)
  if candidate.score is not None:
    settings[_FOUND] = {
      "index": candidate.index,
      "seed": candidate.seed,
      "mulan_score": candidate.score,
    }
  path.parent.mkdir(parents=True, exist_ok=True)
  tags = provenance.tags(settings, title)
  forget(path)
  files.write_wav(path, candidate.waveform, sample_rate_hz, tags)
  write_sidecar(path, settings)
