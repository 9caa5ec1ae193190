# SPDX-License-Identifier: Apache-2.0
"""Stages with random weights for benches of generation, and the memory's speed.

Speed does not depend on what the weights are.
"""

import argparse
import dataclasses
import math
import resource
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.cli import benchmarking, check_serving
from musiclm_jax.core import errors
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.models import token_lm
from musiclm_jax.systems import (
  acoustic_backends,
  stage_lm,
  stage_sampling,
  stage_weights,
  stage_windows,
)

STAGES = stage_sampling.STAGES
_COPY_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Request:
  """What a bench of generation is asked for.

  Attributes:
    size: of `gin/sizes/stage_SIZE.gin`.
    stages: of `STAGES`.
    batch_size: items at once.
    seconds: of each item; read where whole items are made.
    acoustic: what makes acoustic codes, see `Cascade.with_acoustic`; read where
      whole items are made.
    codec: of `gin/sizes/soundstream_CODEC.gin`.
    bundle: in place of random weights; '' for none.
    weights: of the stages, of `stage_weights.CHOICES`.
    gin_files: after those of experiment and size.
    overrides: 'NAME=value' of the command line.
    search_paths: folders of gin files.
  """

  size: str
  stages: tuple[str, ...]
  batch_size: int
  seconds: float
  acoustic: str
  codec: str
  bundle: str
  weights: str
  gin_files: tuple[str, ...]
  overrides: tuple[str, ...]
  search_paths: tuple[str, ...]


def load(args: argparse.Namespace) -> Request:
  """The request of a command line.

  Raises:
    UserError: if a number or a name does not fit.
  """
  stages = tuple(one.strip() for one in args.stages.split(",") if one.strip())
  for name in stages:
    if name not in STAGES:
      raise errors.UserError(
        f"--stages={args.stages}: expected some of {', '.join(STAGES)}"
        f"{errors.nearest(name, STAGES)}"
      )
  if args.batch_size < 1:
    raise errors.UserError(f"--batch_size={args.batch_size}: expected >= 1")
  if not (math.isfinite(args.seconds) and args.seconds > 0):
    raise errors.UserError(f"--seconds={args.seconds}: expected > 0")
  return Request(
    args.size,
    stages or STAGES,
    args.batch_size,
    args.seconds,
    args.acoustic,
    args.codec,
    args.bundle,
    args.weights,
    tuple(args.gin_file),
    tuple(args.gin_overrides),
    tuple(path for path in args.gin_search_paths.split(",") if path),
  )


def random_stage(
  trainable: Any, weights: str = stage_weights.COMPUTE
) -> stage_windows.StageWindows:
  """The frozen stage or back end of a trainable, with random weights."""
  config = trainable.config
  generator = np.random.default_rng(0)

  def draw(leaf: Any) -> np.ndarray:
    scale = max(leaf.shape[-2] if leaf.ndim > 1 else 1, 1) ** -0.5
    values = generator.standard_normal(leaf.shape, dtype=np.float32)
    return scale * values

  params = jax.tree.map(draw, check_serving.variables(trainable)["params"])
  streams = list(trainable.layout.streams.values())
  if not isinstance(trainable, token_lm.TokenLM):
    kind = acoustic_backends.kind_of(config.network)
    build = acoustic_backends.BY_KIND[kind]
    return build(config.spec, streams, config.network, params, config.precision)
  return stage_lm.StageLM(
    config.spec,
    streams,
    config.transformer,
    params,
    config.precision,
    config.aligned_conditioning,
    weights=weights,
  )


def copy_bytes_per_second(timing: benchmarking.Timing) -> float:
  """What the memory moves, reading and writing counted, at its best.

  The bound that decoding is compared with: a step reads all weights once.
  """
  source = np.ones(_COPY_BYTES // 4, np.float32)
  target = np.empty_like(source)
  add = jax.jit(lambda x: x + 1)
  on_device = jnp.asarray(source)
  works = [lambda: jax.block_until_ready(add(on_device))]
  if jax.default_backend() == "cpu":
    works.append(lambda: np.copyto(target, source))
  best = 0.0
  for work in works:
    work()
    rate = max(benchmarking.rates(work, timing)["calls_per_second_runs"])
    best = max(best, 2 * _COPY_BYTES * rate)
  return best


def peak_memory_bytes() -> dict[str, int]:
  """The most this process held so far, on the host and on the first device."""
  found = {
    "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  }
  stats = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    found["peak_device_bytes"] = stats["peak_bytes_in_use"]
  return found


def random_codes(
  streams: Mapping[str, streams_lib.TokenStream],
  names: Sequence[str],
  batch: int,
  seconds: float,
) -> dict[str, np.ndarray]:
  """Codes of the streams `names`, int32 `[batch, frames, codebooks]`."""
  generator = np.random.default_rng(1)
  codes = {}
  for name in names:
    stream = streams[name]
    frames = stream.num_frames(seconds)
    shape = (batch, frames, stream.num_codebooks)
    drawn = generator.integers(0, stream.codebook_size, shape)
    codes[name] = drawn.astype(np.int32)
  return codes
