# SPDX-License-Identifier: Apache-2.0
"""The generate job: prompts to WAV files with sidecars, one or many."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from musiclm_jax.audio import wav_tags
from musiclm_jax.cli import (
  bulk,
  generated_files,
  generation_modes,
  jobs,
  prompt_flags,
  sampling_flags,
  streamed_output,
)
from musiclm_jax.core import errors
from musiclm_jax.decoding import sampling as sampling_lib
from musiclm_jax.systems import candidates, stage_sampling
from musiclm_jax.systems import prompts as prompts_lib


def _slug(prompt: str, otherwise: str) -> str:
  words = re.findall(r"[a-z0-9]+", prompt.lower())
  return "_".join(words)[:40].strip("_") or otherwise


# Beyond these a list of what is to be made would fill the memory before the
# first of it is: a day of music, a million of anything.
_MAX_SECS = 86400.0
_MAX_COUNT = 1_000_000
# What a random key takes, with room for counting up.
_MAX_SEED = 1 << 62


def _check(job: jobs.GenerateJob) -> None:
  """Raises UserError for numbers and flags that do not fit."""
  sampling_flags.check(job)
  if not (math.isfinite(job.seconds) and job.seconds > 0):
    raise errors.UserError(
      f"--seconds={job.seconds}: expected a positive number"
    )
  if job.seconds > _MAX_SECS:
    raise errors.UserError(
      f"--seconds={job.seconds}: expected at most {_MAX_SECS:g}"
    )
  for name in ("batch_size", "num_samples", "num_candidates", "keep"):
    if getattr(job, name) < 1:
      raise errors.UserError(f"--{name}={getattr(job, name)}: expected >= 1")
    if getattr(job, name) > _MAX_COUNT:
      raise errors.UserError(
        f"--{name}={getattr(job, name)}: expected at most {_MAX_COUNT}"
      )
  if job.max_prompts < 0:
    raise errors.UserError(f"--max_prompts={job.max_prompts}: expected >= 0")
  if abs(job.seed) > _MAX_SEED:
    raise errors.UserError(
      f"--seed={job.seed}: expected at most {_MAX_SEED} from 0"
    )
  if job.keep > job.num_candidates:
    raise errors.UserError(
      f"--keep={job.keep}: expected at most --num_candidates="
      f"{job.num_candidates}"
    )
  if sum(map(bool, (job.output, job.output_dir, job.stream))) != 1:
    raise errors.UserError(
      "expected one of --output, --output_dir and --stream"
    )
  if job.stream and job.num_codebooks:
    raise errors.UserError(
      f"--stream with --num_codebooks={job.num_codebooks}: expected all"
    )
  if job.stream and job.num_candidates > 1:
    raise errors.UserError(
      f"--stream with --num_candidates={job.num_candidates}: expected 1, for "
      "a choice needs whole items"
    )


def _items(
  job: jobs.GenerateJob,
  asked: Sequence[prompt_flags.Asked],
  mode: generation_modes.Mode,
) -> list[generated_files.Item]:
  """What to make."""
  if not asked and mode.needs_text:
    raise errors.UserError(
      "no prompt given: pass --prompt, --prompts, --audio_prompt or --mix"
    )
  if not asked and job.num_candidates > 1:
    raise errors.UserError(
      f"--num_candidates={job.num_candidates} without a prompt: MuLan has "
      "nothing to compare with"
    )
  told = [(one, one.prompt.label) for one in asked]
  told = told or [(None, mode.default_text)]
  # The same names, however many of the prompts are taken.
  width = max(3, len(str(len(told) - 1)))
  if job.max_prompts:
    told = told[: job.max_prompts]
  flag = "output" if job.output else "stream" if job.stream else ""
  if flag and len(told) * job.num_samples != 1:
    raise errors.UserError(
      f"--{flag}={getattr(job, flag)} with {len(told) * job.num_samples} "
      f"{'prompts' if job.num_samples == 1 else 'items'}: use --output_dir"
    )
  items = []
  for index, (one, label) in enumerate(told):
    of_row = one or prompt_flags.Asked(None)
    seed = job.seed + index if of_row.seed is None else of_row.seed
    seconds = job.seconds if of_row.seconds is None else of_row.seconds
    if abs(seed) > _MAX_SEED or seconds > _MAX_SECS:
      raise errors.UserError(
        f"{label!r}: seed={seed}, seconds={seconds:g}: expected at most "
        f"{_MAX_SEED} and {_MAX_SECS:g}"
      )
    for sample in range(job.num_samples):
      if flag:
        path = pathlib.Path(getattr(job, flag))
      else:
        number = f"{index:0{width}d}"
        number += f"_{sample}" if job.num_samples > 1 else ""
        slug = _slug(label, mode.name)
        path = pathlib.Path(job.output_dir) / (
          f"{number}_{seconds:g}s_{slug}.wav"
        )
      items.append(
        generated_files.Item(
          of_row.prompt,
          label,
          candidates.sample_seed(seed, sample),
          seconds,
          generated_files.paths(path, job.keep),
          of_row.source,
        )
      )
  return items


def all_settings(
  items: Sequence[generated_files.Item],
  job: jobs.GenerateJob,
  system: Any,
  sampling: Sequence[sampling_lib.SamplingConfig],
  about: dict[str, Any],
) -> dict[generated_files.Item, dict[str, Any]]:
  """All that decides what each item sounds like, as its sidecar has it."""
  from musiclm_jax.evaluation import summary
  from musiclm_jax.systems import bundle, provenance

  choice = {}
  if job.num_candidates > 1:
    choice = {"num_candidates": job.num_candidates, "keep": job.keep}
  shared = {
    **system.describe_acoustic(),
    "weights": system.stages["semantic"].weights,
    "sampling": stage_sampling.describe(sampling),
    "sample_rate_hz": system.codec.sample_rate_hz,
    "bundle_fingerprint": bundle.combined_fingerprint(system.fingerprints),
    "fingerprints": system.fingerprints,
    "generated_by": provenance.GENERATED_BY,
    "versions": summary.versions(),
  }

  def settings(item: generated_files.Item) -> dict[str, Any]:
    told = {"prompt": item.label}
    return {
      **(told if item.prompt is None else item.prompt.describe()),
      **({"source": dict(item.source)} if item.source else {}),
      **about,
      "seed": item.seed,
      **choice,
      "seconds": item.seconds,
      **shared,
    }

  return {item: settings(item) for item in items}


def _stream(
  system: Any, request: Any, item: generated_files.Item, settings: dict
) -> None:
  """Streams the one item; a file gets its metadata behind the last sample."""
  from musiclm_jax.systems import provenance

  (path,) = item.paths
  if str(path) != streamed_output.STANDARD_OUTPUT:
    generated_files.forget(path)
  streamed_output.write(system, request, str(path))
  if str(path) == streamed_output.STANDARD_OUTPUT:
    return
  with path.open("r+b") as file:
    wav_tags.append(file, provenance.tags(settings, item.label))
  generated_files.write_sidecar(path, settings)


def _requests(
  job: jobs.GenerateJob,
  system: Any,
  mode: generation_modes.Mode,
  sampling: Sequence[sampling_lib.SamplingConfig],
) -> Callable[[generated_files.Item, Sequence[int]], Any]:
  """A function that gives what `system.run` makes of an item, for seeds."""
  told = prompt_flags.negative(job)
  negative = {}
  if told is not None:
    stream = system.mulan.stream.name
    negative[stream] = prompts_lib.encode(system.mulan, [told])

  def request(item: generated_files.Item, seeds: Sequence[int]) -> Any:
    prompts = [item.prompt] * len(seeds)
    made = mode.request(system, prompts, item.seconds, seeds, sampling)
    return dataclasses.replace(
      made,
      negative={
        name: np.repeat(codes, len(seeds), axis=0)
        for name, codes in negative.items()
      },
    )

  return request


def generate(job: jobs.GenerateJob) -> None:
  """Makes every file that is not there yet, and prints their names.

  Raises:
    UserError: for bad prompts, melodies, numbers or bundles; nothing is written
      then.
  """
  for path in make(job):
    print(path)


def make(job: jobs.GenerateJob) -> list[pathlib.Path]:
  """Makes every file that is not there yet.

  Returns:
    The files, in the order of the prompts; none of a stream.

  Raises:
    UserError: as `generate`.
  """
  _check(job)
  asked = prompt_flags.asked(job)
  negative = prompt_flags.negative(job)
  mode = generation_modes.read(job)
  items = _items(job, asked, mode)
  about = dict(mode.about)
  if negative is not None:
    about["negative_prompt"] = negative.describe()
  from musiclm_jax.systems import audiolm

  system = audiolm.load(job.bundle, job.weights).with_acoustic(job.acoustic)
  if job.num_codebooks:
    system = system.with_codebooks(job.num_codebooks)
    about["num_codebooks"] = job.num_codebooks
  if job.melody:
    system.check_melody()
  sampling = sampling_flags.sampling(
    job, system.stages_for(bool(job.melody)), system.temperatures
  )
  settings = all_settings(items, job, system, sampling, about)
  devices = jax.local_devices()
  system.spread(devices)
  request = _requests(job, system, mode, sampling)
  if job.stream:
    (item,) = items
    _stream(system, request(item, [item.seed]), item, settings[item])
    return []
  if job.output:
    (item,) = items
    _make_one(job, system, request, item, settings[item])
  else:
    bulk.generate(job, system, request, items, settings, len(devices))
  return [path for item in items for path in item.paths]


def _make_one(
  job: jobs.GenerateJob,
  system: Any,
  request: Callable[[generated_files.Item, Sequence[int]], Any],
  item: generated_files.Item,
  settings: dict[str, Any],
) -> None:
  """One item, its candidates in batches."""
  if generated_files.is_done(item, settings):
    return
  (made,) = candidates.choose(
    lambda rows, seeds: system.run(request(item, seeds)),
    [item.prompt],
    [item.seed],
    system.mulan,
    job.num_candidates,
    job.keep,
    job.batch_size,
  )
  rate_hz = system.codec.sample_rate_hz
  for path, candidate in zip(item.paths, made):
    generated_files.write(path, candidate, rate_hz, item.label, settings)
