# SPDX-License-Identifier: Apache-2.0
"""Whole items: stages one after the other and the codec, random or a bundle."""

import argparse
import time
from typing import Any

import jax
import numpy as np

from musiclm_jax.cli import bench_codec, bench_stages, benchmarking, checking
from musiclm_jax.core import artifacts, errors
from musiclm_jax.systems import (
  acoustic_backends,
  audiolm,
  cascade,
  musiclm,
  tokenizers,
)

# Those of the experiments are chosen by size.
HAS_GIN_FILES = True


def load(args: argparse.Namespace) -> bench_stages.Request:
  """The request of a command line."""
  return bench_stages.load(args)


def _random_codec(
  request: bench_stages.Request,
) -> tokenizers.SoundStreamTokenizer:
  """The codec of a size with random weights."""
  run = checking.load_without_data(
    (
      "experiments/musiclm_soundstream_paper_audio_folder.gin",
      f"sizes/soundstream_{request.codec}.gin",
    ),
    (),
    request.search_paths,
  )
  config = bench_codec.codec_config(run)
  arrays = jax.tree.map(np.asarray, bench_codec.random_variables(config))
  return tokenizers.SoundStreamTokenizer(
    artifacts.Artifact(
      "soundstream", artifacts.config_to_dict(config), arrays, "", {}, {}
    )
  )


def _system(request: bench_stages.Request) -> cascade.Cascade:
  """What makes the items.

  Raises:
    UserError: if the streams of codec and stages differ.
  """
  if request.bundle:
    system = audiolm.load(request.bundle, request.weights)
    return system.with_acoustic(request.acoustic)
  names = bench_stages.STAGES
  if request.acoustic != acoustic_backends.STAGES:
    names = (names[0], request.acoustic)
  made = {
    name: bench_stages.random_stage(
      checking.load_stage(request, name), request.weights
    )
    for name in names
  }
  stages = {name: made.get(name) for name in bench_stages.STAGES}
  backends = {n: s for n, s in made.items() if n not in stages}
  system = cascade.Cascade(_random_codec(request), stages, acoustic=backends)
  system.check_streams()
  return system.with_acoustic(request.acoustic)


def run(
  request: bench_stages.Request, timing: benchmarking.Timing
) -> dict[str, Any]:
  """Times a batch of items from MuLan codes to audio, and its parts.

  Raises:
    UserError: if only some of the stages are asked for.
  """
  if request.stages != bench_stages.STAGES:
    raise errors.UserError(
      f"--stages={','.join(request.stages)}: expected all for end_to_end"
    )
  if request.seconds != round(request.seconds):
    raise errors.UserError(
      f"--seconds={request.seconds}: expected whole seconds for end_to_end"
    )
  system = _system(request)
  first = system.stages["semantic"]
  told = bench_stages.random_codes(
    first.streams,
    first.spec.conditioning_streams,
    request.batch_size,
    request.seconds,
  )
  seeds = tuple(range(request.batch_size))
  asked = cascade.Request(request.seconds, seeds, musiclm.TEMPERATURES, told)
  started = time.perf_counter()
  codes = system.run(asked).codes
  first_secs = time.perf_counter() - started
  found = benchmarking.rates(lambda: system.run(asked), timing)
  secs = 1 / found["calls_per_second"]
  return {
    "size": request.size,
    **system.describe_acoustic(),
    "codec": request.codec,
    "bundle": request.bundle,
    "weights": system.stages["semantic"].weights,
    "batch_size": request.batch_size,
    "seconds": request.seconds,
    "secs": secs,
    "real_time_factor": request.seconds * request.batch_size / secs,
    "secs_by_part": _parts(system, asked, codes),
    "compile_secs": max(0.0, first_secs - secs),
    **bench_stages.peak_memory_bytes(),
    **found,
  }


def _parts(
  system: cascade.Cascade,
  asked: cascade.Request,
  codes: dict[str, np.ndarray],
) -> dict[str, float]:
  """Seconds of a call of each stage, told the codes made, and of the codec."""
  found = {}
  for name, stage, config in system.steps(asked):
    run = stage.generate_long
    if cascade.is_parallel(name):
      run = stage.generate_parallel
    keys = asked.stage_keys(name)
    started = time.perf_counter()
    run(codes, asked.num_frames(stage), config, keys)
    found[name] = time.perf_counter() - started
  started = time.perf_counter()
  system.decode(codes["acoustic"], asked.seconds)
  found["codec"] = time.perf_counter() - started
  return found
