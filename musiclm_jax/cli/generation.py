# SPDX-License-Identifier: Apache-2.0
"""The generate job: prompts to WAV files with sidecars, batch by batch."""

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from musiclm_jax.audio import files
from musiclm_jax.cli import jobs, prompt_flags, sampling_flags
from musiclm_jax.core import errors, progress
from musiclm_jax.decoding import sampling as sampling_lib
from musiclm_jax.systems import prompts as prompts_lib
from musiclm_jax.systems import stage_sampling


@dataclasses.dataclass(frozen=True)
class _Item:
  """What is made from one prompt.

  Attributes:
    prompt: what to make.
    seed: of its first candidate.
    paths: WAV files to write, one per kept candidate.
  """

  prompt: prompts_lib.Prompt
  seed: int
  paths: tuple[pathlib.Path, ...]


def _slug(prompt: str) -> str:
  words = re.findall(r"[a-z0-9]+", prompt.lower())
  return "_".join(words)[:40].strip("_") or "prompt"


def _items(job: jobs.GenerateJob) -> list[_Item]:
  """What to make, checked before anything is loaded."""
  sampling_flags.check(job)
  prompts = prompt_flags.prompts(job)
  if not (math.isfinite(job.seconds) and job.seconds > 0):
    raise errors.UserError(
      f"--seconds={job.seconds}: expected a positive number"
    )
  for name in ("batch_size", "num_candidates", "keep"):
    if getattr(job, name) < 1:
      raise errors.UserError(f"--{name}={getattr(job, name)}: expected >= 1")
  if job.keep > job.num_candidates:
    raise errors.UserError(
      f"--keep={job.keep}: expected at most --num_candidates="
      f"{job.num_candidates}"
    )
  if bool(job.output) == bool(job.output_dir):
    raise errors.UserError("expected either --output or --output_dir")
  if job.output:
    if len(prompts) != 1:
      raise errors.UserError(
        f"--output={job.output} with {len(prompts)} prompts: use --output_dir"
      )
    return [_Item(prompts[0], job.seed, _paths(job.output, job.keep))]
  folder = pathlib.Path(job.output_dir)
  return [
    _Item(
      prompt,
      job.seed + index,
      _paths(
        folder / f"{index:03d}_{job.seconds:g}s_{_slug(prompt.label)}.wav",
        job.keep,
      ),
    )
    for index, prompt in enumerate(prompts)
  ]


def _paths(path: str | os.PathLike, keep: int) -> tuple[pathlib.Path, ...]:
  """The path itself, or with the rank of each candidate in its name."""
  path = pathlib.Path(path)
  if keep == 1:
    return (path,)
  return tuple(
    path.with_name(f"{path.stem}_{rank}{path.suffix}")
    for rank in range(1, keep + 1)
  )


def _settings(
  item: _Item,
  job: jobs.GenerateJob,
  system: Any,
  sampling: Sequence[sampling_lib.SamplingConfig],
  about: dict[str, Any],
) -> dict:
  """All that decides what an item sounds like."""
  from musiclm_jax.evaluation import summary
  from musiclm_jax.systems import bundle, provenance

  choice = {}
  if job.num_candidates > 1:
    choice = {"num_candidates": job.num_candidates, "keep": job.keep}
  return {
    **item.prompt.describe(),
    **about,
    "seed": item.seed,
    **choice,
    "seconds": job.seconds,
    "acoustic": job.acoustic,
    "sampling": stage_sampling.describe(sampling),
    "sample_rate_hz": system.codec.sample_rate_hz,
    "bundle_fingerprint": bundle.combined_fingerprint(system.fingerprints),
    "fingerprints": system.fingerprints,
    "generated_by": provenance.GENERATED_BY,
    "versions": summary.versions(),
  }


def _sidecar(path: pathlib.Path) -> pathlib.Path:
  return path.with_suffix(".json")


def _is_done(item: _Item, settings: dict) -> bool:
  """Whether all files are there and were made with these settings."""
  for path in item.paths:
    try:
      found = json.loads(_sidecar(path).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
      return False
    if not isinstance(found, dict) or not path.is_file():
      return False
    found.pop("candidate", None)
    if found != settings:
      return False
  return True


def _write(
  path: pathlib.Path,
  candidate: Any,
  sample_rate_hz: int,
  title: str,
  settings: dict,
) -> None:
  """Writes audio and sidecar."""
  from musiclm_jax.systems import provenance

  if candidate.score is not None:
    settings = settings | {
      "candidate": {
        "index": candidate.index,
        "seed": candidate.seed,
        "mulan_score": candidate.score,
      }
    }
  path.parent.mkdir(parents=True, exist_ok=True)
  tags = provenance.tags(settings, title)
  files.write_wav(path, candidate.waveform, sample_rate_hz, tags)
  # After the audio: a sidecar says that its file is whole.
  scratch = _sidecar(path).with_suffix(f".{os.getpid()}.writing")
  scratch.write_text(json.dumps(settings, indent=2) + "\n")
  scratch.replace(_sidecar(path))


def generate(job: jobs.GenerateJob) -> None:
  """Makes every file that is not there yet.

  Raises:
    UserError: for bad prompts, melodies, numbers or bundles; nothing is written
      then.
  """
  items = _items(job)
  melody, about = None, {}
  negative = prompt_flags.negative(job)
  if negative is not None:
    about["negative_prompt"] = negative.describe()
  if job.melody:
    from musiclm_jax.systems import melody_prompt

    melody = melody_prompt.read(job.melody)
    about |= {"melody": job.melody, "melody_sha256": melody.sha256}
  from musiclm_jax.systems import candidates, musiclm

  system = musiclm.MusicLM.load(job.bundle).with_acoustic(job.acoustic)
  stages = system.stages_for(melody is not None)
  sampling = sampling_flags.sampling(job, stages)
  settings = {
    item: _settings(item, job, system, sampling, about) for item in items
  }
  todo = [item for item in items if not _is_done(item, settings[item])]
  name = f"generate {job.seconds:g} s"
  # Whole items, so that what is scored together is written together.
  per_call = max(1, job.batch_size // job.num_candidates)
  with progress.Progress(
    name, len(items), len(items) - len(todo), "clip"
  ) as bar:
    for start in range(0, len(todo), per_call):
      batch = todo[start : start + per_call]
      made = candidates.generate(
        system,
        [item.prompt for item in batch],
        job.seconds,
        [item.seed for item in batch],
        job.num_candidates,
        job.keep,
        job.batch_size,
        melody,
        sampling=sampling,
        negative=negative,
      )
      for item, kept in zip(batch, made):
        for path, candidate in zip(item.paths, kept):
          _write(
            path,
            candidate,
            system.codec.sample_rate_hz,
            item.prompt.label,
            settings[item],
          )
        bar.update()
  for item in items:
    for path in item.paths:
      print(path)
