# SPDX-License-Identifier: Apache-2.0
"""The generate job: prompts to WAV files with sidecars, batch by batch."""

import dataclasses
import json
import math
import os
import pathlib
import re
from typing import Any

from musiclm_jax.audio import files
from musiclm_jax.cli import (
  generation_modes,
  jobs,
  prompt_files,
  streamed_output,
)
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
  """Three numbers, or none: those that the system was published with."""
  if not text:
    return ()
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


def _slug(prompt: str, otherwise: str) -> str:
  words = re.findall(r"[a-z0-9]+", prompt.lower())
  return "_".join(words)[:40].strip("_") or otherwise


def _items(job: jobs.GenerateJob, mode: generation_modes.Mode) -> list[_Item]:
  """What to make, checked before anything is loaded."""
  prompts = list(job.prompt)
  if job.prompts:
    prompts += prompt_files.read(job.prompts)
  if job.max_prompts:
    prompts = prompts[: job.max_prompts]
  if not prompts and mode.needs_text:
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
  if sum(map(bool, (job.output, job.output_dir, job.stream))) != 1:
    raise errors.UserError(
      "expected one of --output, --output_dir and --stream"
    )
  prompts = prompts or [mode.default_text]
  if job.output or job.stream:
    flag = "output" if job.output else "stream"
    path = getattr(job, flag)
    if len(prompts) != 1:
      raise errors.UserError(
        f"--{flag}={path} with {len(prompts)} prompts: use --output_dir"
      )
    return [_Item(prompts[0], job.seed, pathlib.Path(path))]
  folder = pathlib.Path(job.output_dir)
  return [
    _Item(
      prompt,
      job.seed + index,
      folder / f"{index:03d}_{job.seconds:g}s_{_slug(prompt, mode.name)}.wav",
    )
    for index, prompt in enumerate(prompts)
  ]


def _settings(
  item: _Item,
  job: jobs.GenerateJob,
  system: Any,
  temperatures: tuple[float, ...],
  about: dict[str, Any],
) -> dict:
  from musiclm_jax.evaluation import summary

  return {
    "prompt": item.prompt,
    **about,
    "seed": item.seed,
    "seconds": job.seconds,
    "temperatures": list(temperatures),
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


def _write_sidecar(item: _Item, settings: dict) -> None:
  """After the audio: a sidecar says that its file is whole."""
  scratch = item.sidecar.with_suffix(f".{os.getpid()}.writing")
  scratch.write_text(json.dumps(settings, indent=2) + "\n")
  scratch.replace(item.sidecar)


def generate(job: jobs.GenerateJob) -> None:
  """Makes every file that is not there yet.

  Raises:
    UserError: for bad prompts, melodies, numbers or bundles; nothing is written
      then.
  """
  mode = generation_modes.read(job)
  items = _items(job, mode)
  temperatures = _temperatures(job.temperatures)
  from musiclm_jax.systems import audiolm

  system = audiolm.load(job.bundle)
  if job.melody:
    system.check_melody()
  temperatures = temperatures or system.temperatures
  settings = {
    item: _settings(item, job, system, temperatures, mode.about)
    for item in items
  }

  def request(batch: list[_Item]) -> Any:
    prompts, seeds = zip(*((item.prompt, item.seed) for item in batch))
    return mode.request(system, prompts, job.seconds, seeds, temperatures)

  if job.stream:
    streamed_output.write(system, request(items), job.stream)
    if job.stream != streamed_output.STANDARD_OUTPUT:
      _write_sidecar(items[0], settings[items[0]])
    return
  todo = [item for item in items if not _is_done(item, settings[item])]
  name = f"generate {job.seconds:g} s"
  with progress.Progress(
    name, len(items), len(items) - len(todo), "clip"
  ) as bar:
    for start in range(0, len(todo), job.batch_size):
      batch = todo[start : start + job.batch_size]
      made = system.run(request(batch))
      for item, waveform in zip(batch, made.waveform):
        item.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_wav(item.path, waveform, made.sample_rate_hz)
        _write_sidecar(item, settings[item])
        bar.update()
  for item in items:
    print(item.path)
