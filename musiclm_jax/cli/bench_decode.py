# SPDX-License-Identifier: Apache-2.0
"""Stages alone: prefill and every token of one crop, random weights."""

import argparse
import time
from typing import Any

import jax
import numpy as np

from musiclm_jax.cli import bench_stages, benchmarking, checking
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.models import token_lm
from musiclm_jax.systems import musiclm, stage_lm, stage_weights

# Tables of which a step reads a row per token, and no more.
_TABLES = ("token_embed", "aligned_embed")


# Those of the experiments are chosen by size.
HAS_GIN_FILES = True


def load(args: argparse.Namespace) -> bench_stages.Request:
  """The request of a command line."""
  return bench_stages.load(args)


def bytes_per_step(
  trainable: token_lm.TokenLM, stage: stage_lm.StageLM, batch: int
) -> dict[str, float]:
  """What one decode step has to move at least, as the mean over a crop.

  Args:
    trainable: of the stage.
    stage: whose weights are counted.
    batch: rows.

  Returns:
    'weight_bytes': of all layers and the output kernel of one level;
    'cache_bytes': keys and values of the positions there are.
  """
  layout, config = trainable.layout, trainable.config.transformer
  itemsize = stage.compute_dtype.itemsize
  steps = layout.num_target_frames * layout.num_target_levels
  length = 1 + layout.target_start + (steps + 1) / 2
  per_position = 2 * config.num_layers * config.kv_heads * config.kv_dim
  return {
    "weight_bytes": stage_weights.num_bytes(
      stage.variables, layout.num_target_levels, _TABLES
    ),
    "cache_bytes": batch * length * per_position * itemsize,
  }


def _time_stage(
  name: str,
  request: bench_stages.Request,
  timing: benchmarking.Timing,
  bandwidth: float,
) -> dict[str, Any]:
  """One stage; times are of `StageLM.generate`, host work included."""
  trainable = checking.load_stage(request, name)
  stage = bench_stages.random_stage(trainable, request.weights)
  layout: stages_lib.StageLayout = trainable.layout
  batch = request.batch_size
  spec = stage.spec
  told = bench_stages.random_codes(
    stage.streams, spec.conditioning_streams, batch, spec.crop_secs
  )
  keys = jax.random.split(jax.random.key(0), batch)
  temperature = musiclm.TEMPERATURES[bench_stages.STAGES.index(name)]
  frames = layout.num_target_frames

  def work() -> np.ndarray:
    return stage.generate(told, None, frames, temperature, keys)

  started = time.perf_counter()
  work()
  first_secs = time.perf_counter() - started
  found = benchmarking.rates(work, timing)
  steps = frames * layout.num_target_levels
  rate = found["calls_per_second"]
  moved = bytes_per_step(trainable, stage, batch)
  bound = bandwidth / moved["weight_bytes"]
  return {
    "stage": name,
    "weights": stage.weights,
    "num_parameters": sum(
      leaf.size for leaf in jax.tree.leaves(stage.variables["params"])
    ),
    "prefix_tokens": 1 + layout.target_start,
    "new_tokens": steps,
    "tokens_per_second": rate * steps * batch,
    "steps_per_second": rate * steps,
    "real_time_factor": rate * batch * spec.crop_secs,
    "compile_secs": max(0.0, first_secs - 1 / rate),
    "weight_bytes_per_token": moved["weight_bytes"] / batch,
    "cache_bytes_per_token": moved["cache_bytes"] / batch,
    "bytes_per_token": sum(moved.values()) / batch,
    "bytes_per_second": rate * steps * sum(moved.values()),
    # How many steps the memory would allow if it moved nothing but weights.
    "weight_bound_steps_per_second": bound,
    "fraction_of_weight_bound": rate * steps / bound,
    "fraction_of_copy": rate * steps * sum(moved.values()) / bandwidth,
    **bench_stages.peak_memory_bytes(),
    **found,
  }


def run(
  request: bench_stages.Request, timing: benchmarking.Timing
) -> dict[str, Any]:
  """Rates of each stage, and the bandwidth of a copy in the same run."""
  bandwidth = bench_stages.copy_bytes_per_second(timing)
  cases = [
    _time_stage(name, request, timing, bandwidth) for name in request.stages
  ]
  return {
    "size": request.size,
    "batch_size": request.batch_size,
    "copy_bytes_per_second": bandwidth,
    "stages": cases,
  }
