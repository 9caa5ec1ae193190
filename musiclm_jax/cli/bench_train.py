# SPDX-License-Identifier: Apache-2.0
"""The train step of each stage of a size, on random codes."""

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np

from musiclm_jax.cli import (
  bench_stages,
  bench_train_step,
  benchmarking,
  checking,
  experiment,
)
from musiclm_jax.core import precision
from musiclm_jax.core import stages as stages_lib

# Those of the experiments are chosen by size.
HAS_GIN_FILES = True


def load(args: argparse.Namespace) -> bench_stages.Request:
  """The request of a command line."""
  return bench_stages.load(args)


def random_batch(
  layout: stages_lib.StageLayout, batch_size: int
) -> dict[str, np.ndarray]:
  """Features of one crop per row: int32 tokens and float32 loss weights.

  Returns:
    By feature, `[batch_size, layout.length]`.
  """
  names = {segment.stream for segment in layout.spec.segments}
  codes = bench_stages.random_codes(
    layout.streams, sorted(names), batch_size, layout.spec.crop_secs
  )
  tokens = layout.encode(codes)
  bos = np.full_like(tokens[:, :1], stages_lib.BOS_ID)
  weights = np.zeros(tokens.shape, np.float32)
  weights[:, layout.target_start :] = 1
  return {
    "decoder_input_tokens": np.concatenate([bos, tokens[:, :-1]], axis=1),
    "decoder_target_tokens": tokens,
    "decoder_loss_weights": weights,
  }


def _in_fast_dtype(built: experiment.Experiment) -> experiment.Experiment:
  """The experiment in float32 on a CPU, which has no products of bfloat16."""
  if jax.default_backend() != "cpu":
    return built
  config = built.trainable.config
  in_float32 = dataclasses.replace(config, precision=precision.Precision())
  trainable = type(built.trainable)(in_float32)
  return dataclasses.replace(built, trainable=trainable)


def run(
  request: bench_stages.Request, timing: benchmarking.Timing
) -> dict[str, Any]:
  """Tokens per second of each stage's step: forward, backward and update.

  The optimizer, dropout, remat and the chunks of the loss are those of the
  experiment at the published size, unless a gin file or flag changes them.
  """
  cases = []
  for name in request.stages:
    built = _in_fast_dtype(checking.load_stage_experiment(request, name))
    built = dataclasses.replace(
      built,
      loop=dataclasses.replace(
        built.loop, global_batch_size=request.batch_size, num_microbatches=1
      ),
      rows_per_device=0,
    )
    batch = random_batch(built.trainable.layout, request.batch_size)
    found = bench_train_step.time_step(built, timing, batch)
    cases.append({"stage": name, **found, **bench_stages.peak_memory_bytes()})
  return {
    "size": request.size,
    "batch_size": request.batch_size,
    "stages": cases,
  }
