# SPDX-License-Identifier: Apache-2.0
"""The codec's train step, generator and critics, on random audio."""

import argparse
from typing import Any

import numpy as np

from musiclm_jax.cli import (
  bench_codec,
  bench_train_step,
  benchmarking,
  experiment,
)


def load(args: argparse.Namespace) -> experiment.Experiment:
  """The experiment of a command line, without its data."""
  return bench_codec.load(args)


def run(
  built: experiment.Experiment, timing: benchmarking.Timing
) -> dict[str, Any]:
  """Steps and seconds of audio per second, after one call that compiles."""
  config = bench_codec.codec_config(built)
  generator = np.random.default_rng(0)
  batch_size = built.loop.global_batch_size
  batch = {
    name: (0.1 * generator.standard_normal(x.shape)).astype(x.dtype)
    for name, x in built.trainable.input_shapes(batch_size).items()
  }
  found = bench_train_step.time_step(built, timing, batch)
  samples = batch["waveform"].shape[0] * batch["waveform"].shape[1]
  secs = samples / config.sample_rate_hz
  return {**found, "audio_secs_per_second": secs / found["step_secs"]}
