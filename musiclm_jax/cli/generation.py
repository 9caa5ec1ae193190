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

from musiclm_jax.audio import files, wav_tags
from musiclm_jax.cli import (
  generation_modes,
  jobs,
  prompt_flags,
  sampling_flags,
  streamed_output,
)
from musiclm_jax.core import errors, progress
from musiclm_jax.decoding import sampling as sampling_lib
from musiclm_jax.systems import prompts as prompts_lib
from musiclm_jax.systems import stage_sampling


@dataclasses.dataclass(frozen=True)
class _Item:
  """What is made from one prompt.

  Attributes:
    prompt: what to make; None where the mode says it all.
    label: of the prompt or the mode, for people.
    seed: of its first candidate.
    paths: WAV files to write, one per kept candidate.
  """

  prompt: prompts_lib.Prompt | None
  label: str
  seed: int
  paths: tuple[pathlib.Path, ...]


def _slug(prompt: str, otherwise: str) -> str:
  words = re.findall(r"[a-z0-9]+", prompt.lower())
  return "_".join(words)[:40].strip("_") or otherwise


def _check(job: jobs.GenerateJob) -> None:
  """Raises UserError for numbers and flags that do not fit."""
  sampling_flags.check(job)
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
  if sum(map(bool, (job.output, job.output_dir, job.stream))) != 1:
    raise errors.UserError(
      "expected one of --output, --output_dir and --stream"
    )
  if job.stream and job.num_candidates > 1:
    raise errors.UserError(
      f"--stream with --num_candidates={job.num_candidates}: expected 1, for "
      "a choice needs whole items"
    )


def _items(
  job: jobs.GenerateJob,
  prompts: Sequence[prompts_lib.Prompt],
  mode: generation_modes.Mode,
) -> list[_Item]:
  """What to make."""
  if not prompts and mode.needs_text:
    raise errors.UserError(
      "no prompt given: pass --prompt, --prompts, --audio_prompt or --mix"
    )
  if not prompts and job.num_candidates > 1:
    raise errors.UserError(
      f"--num_candidates={job.num_candidates} without a prompt: MuLan has "
      "nothing to compare with"
    )
  told = [(prompt, prompt.label) for prompt in prompts]
  told = told or [(None, mode.default_text)]
  if job.output or job.stream:
    flag = "output" if job.output else "stream"
    path = getattr(job, flag)
    if len(told) != 1:
      raise errors.UserError(
        f"--{flag}={path} with {len(told)} prompts: use --output_dir"
      )
    return [_Item(*told[0], job.seed, _paths(path, job.keep))]
  folder = pathlib.Path(job.output_dir)
  return [
    _Item(
      prompt,
      label,
      job.seed + index,
      _paths(
        folder / f"{index:03d}_{job.seconds:g}s_{_slug(label, mode.name)}.wav",
        job.keep,
      ),
    )
    for index, (prompt, label) in enumerate(told)
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
  told = {"prompt": item.label}
  return {
    **(told if item.prompt is None else item.prompt.describe()),
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


def _write_sidecar(path: pathlib.Path, settings: dict) -> None:
  """After the audio: a sidecar says that its file is whole."""
  scratch = _sidecar(path).with_suffix(f".{os.getpid()}.writing")
  scratch.write_text(json.dumps(settings, indent=2) + "\n")
  scratch.replace(_sidecar(path))


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
  _write_sidecar(path, settings)


def _stream(system: Any, request: Any, item: _Item, settings: dict) -> None:
  """Streams the one item; a file gets its metadata behind the last sample."""
  from musiclm_jax.systems import provenance

  (path,) = item.paths
  streamed_output.write(system, request, str(path))
  if str(path) == streamed_output.STANDARD_OUTPUT:
    return
  with path.open("r+b") as file:
    wav_tags.append(file, provenance.tags(settings, item.label))
  _write_sidecar(path, settings)


def generate(job: jobs.GenerateJob) -> None:
  """Makes every file that is not there yet.

  Raises:
    UserError: for bad prompts, melodies, numbers or bundles; nothing is written
      then.
  """
  _check(job)
  prompts = prompt_flags.prompts(job)
  negative = prompt_flags.negative(job)
  mode = generation_modes.read(job)
  items = _items(job, prompts, mode)
  about = dict(mode.about)
  if negative is not None:
    about["negative_prompt"] = negative.describe()
  from musiclm_jax.systems import audiolm, candidates

  system = audiolm.load(job.bundle).with_acoustic(job.acoustic)
  if job.melody:
    system.check_melody()
  sampling = sampling_flags.sampling(
    job, system.stages_for(bool(job.melody)), system.temperatures
  )
  settings = {
    item: _settings(item, job, system, sampling, about) for item in items
  }

  def request(batch: Sequence[_Item], seeds: Sequence[int]) -> Any:
    told = [item.prompt for item in batch]
    made = mode.request(system, told, job.seconds, seeds, sampling)
    if negative is None:
      return made
    codes = prompts_lib.encode(system.mulan, [negative] * len(seeds))
    return dataclasses.replace(made, negative={system.mulan.stream.name: codes})

  if job.stream:
    (item,) = items
    _stream(system, request(items, [item.seed]), item, settings[item])
    return
  todo = [item for item in items if not _is_done(item, settings[item])]
  name = f"generate {job.seconds:g} s"
  # Whole items, so that what is scored together is written together.
  per_call = max(1, job.batch_size // job.num_candidates)
  with progress.Progress(
    name, len(items), len(items) - len(todo), "clip"
  ) as bar:
    for start in range(0, len(todo), per_call):
      batch = todo[start : start + per_call]

      def make(rows, seeds, batch=batch):
        return system.run(request([batch[row] for row in rows], seeds))

      made = candidates.choose(
        make,
        [item.prompt for item in batch],
        [item.seed for item in batch],
        system.mulan,
        job.num_candidates,
        job.keep,
        job.batch_size,
      )
      for item, kept in zip(batch, made):
        for path, candidate in zip(item.paths, kept):
          _write(
            path,
            candidate,
            system.codec.sample_rate_hz,
            item.label,
            settings[item],
          )
        bar.update()
  for item in items:
    for path in item.paths:
      print(path)
