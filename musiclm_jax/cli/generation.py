# SPDX-License-Identifier: Apache-2.0
"""The generate job: prompts to WAV files with sidecars, batch by batch."""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from typing import Any

from musiclm_jax.audio import files
from musiclm_jax.cli import jobs, prompt_files
from musiclm_jax.core import errors, progress


@dataclasses.dataclass(frozen=True)
class _Item:
  """One file to make."""

  prompt: str
  seed: int
  path: pathlib.Path

  @property
  def sidecar(self) -> pathlib.Path:
    return self.path.with_suffix(".json")


def _temperatures(text: str) -> tuple[float, ...]:
  try:
    values = tuple(float(part) for part in text.split(","))
  except ValueError as error:
    raise errors.UserError(
      f"--temperatures={text}: expected three numbers, as 1.0,0.95,0.4"
    ) from error
  if len(values) != 3 or not all(v >= 0 and math.isfinite(v) for v in values):
    raise errors.UserError(
      f"--temperatures={text}: expected three numbers >= 0"
    )
  return values


def _slug(prompt: str) -> str:
  words = re.findall(r"[a-z0-9]+", prompt.lower())
  return "_".join(words)[:40].strip("_") or "prompt"


def _items(job: jobs.GenerateJob) -> list[_Item]:
  """What to make, checked before anything is loaded."""
  prompts = list(job.prompt)
  if job.prompts:
    prompts += prompt_files.read(job.prompts)
  if job.max_prompts:
    prompts = prompts[: job.max_prompts]
  if not prompts:
    raise errors.UserError("no prompt given: pass --prompt or --prompts")
  for prompt in prompts:
    if not prompt.strip():
      raise errors.UserError(f"--prompt={prompt!r}: expected a non-empty text")
  if not (math.isfinite(job.seconds) and job.seconds > 0):
    raise errors.UserError(
      f"--seconds={job.seconds}: expected a positive number"
    )
  if job.batch_size < 1:
    raise errors.UserError(f"--batch_size={job.batch_size}: expected >= 1")
  if bool(job.output) == bool(job.output_dir):
    raise errors.UserError("expected either --output or --output_dir")
  if job.output:
    if len(prompts) != 1:
      raise errors.UserError(
        f"--output={job.output} with {len(prompts)} prompts: use --output_dir"
      )
    return [_Item(prompts[0], job.seed, pathlib.Path(job.output))]
  folder = pathlib.Path(job.output_dir)
  return [
    _Item(
      prompt,
      job.seed + index,
      folder / f"{index:03d}_{job.seconds:g}s_{_slug(prompt)}.wav",
    )
    for index, prompt in enumerate(prompts)
  ]


def _settings(
  item: _Item, job: jobs.GenerateJob, system: Any, melody: dict[str, str]
) -> dict:
  from musiclm_jax.evaluation import summary

  return {
    "prompt": item.prompt,
    **melody,
    "seed": item.seed,
    "seconds": job.seconds,
    "temperatures": list(_temperatures(job.temperatures)),
    "sample_rate_hz": system.codec.sample_rate_hz,
    "fingerprints": system.fingerprints,
    "generated_by": "musiclm_jax",
    "versions": summary.versions(),
  }


def _is_done(item: _Item, settings: dict) -> bool:
  try:
    return item.path.is_file() and json.loads(item.sidecar.read_text()) == (
      settings
    )
  except (FileNotFoundError, json.JSONDecodeError):
    return False


def generate(job: jobs.GenerateJob) -> None:
  """Makes every file that is not there yet.

  Raises:
    UserError: for bad prompts, melodies, numbers or bundles; nothing is written
      then.
  """
  items = _items(job)
  temperatures = _temperatures(job.temperatures)
  melody, about_melody = None, {}
  if job.melody:
    from musiclm_jax.systems import melody_prompt

    melody = melody_prompt.read(job.melody)
    content = pathlib.Path(job.melody).read_bytes()
    about_melody = {
      "melody": job.melody,
      "melody_sha256": hashlib.sha256(content).hexdigest(),
    }
  from musiclm_jax.systems import musiclm

  system = musiclm.MusicLM.load(job.bundle)
  if melody is not None:
    system.check_melody()
  settings = {
    item: _settings(item, job, system, about_melody) for item in items
  }
  todo = [item for item in items if not _is_done(item, settings[item])]
  name = f"generate {job.seconds:g} s"
  with progress.Progress(
    name, len(items), len(items) - len(todo), "clip"
  ) as bar:
    for start in range(0, len(todo), job.batch_size):
      batch = todo[start : start + job.batch_size]
      made = system.generate(
        [item.prompt for item in batch],
        job.seconds,
        [item.seed for item in batch],
        temperatures,
        melody,
      )
      for item, waveform in zip(batch, made.waveform):
        item.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_wav(item.path, waveform, made.sample_rate_hz)
        # After the audio: a sidecar says that its file is whole.
        scratch = item.sidecar.with_suffix(f".{os.getpid()}.writing")
        scratch.write_text(json.dumps(settings[item], indent=2) + "\n")
        scratch.replace(item.sidecar)
        bar.update()
  for item in items:
    print(item.path)
