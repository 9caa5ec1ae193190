# SPDX-License-Identifier: Apache-2.0
"""The codec alone: encoding and decoding 10 s of audio, random parameters.

The network of a gin experiment, without its data; speed does not depend on
what the parameters are.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.cli import benchmarking, experiment, gin_config
from musiclm_jax.core import errors
from musiclm_jax.networks import soundstream
from musiclm_jax.partitioning import axes
from musiclm_jax.systems import codec_streams

_WITHOUT = ("experiment.Experiment.data", "experiment.Experiment.exporter")
# Required of a training; no bench depends on them.
_FILL = {"TRAIN_STEPS": 1000, "LEARNING_RATE": 1e-4}
_AUDIO_SECS = 10.0
_BATCH_SIZES = (1, 4)
_GEMM_SIZE = 2048


def load(args: argparse.Namespace) -> experiment.Experiment:
  """The experiment of a command line, without its data."""
  paths = [path for path in args.gin_search_paths.split(",") if path]
  gin_config.resolve(
    args.gin_file,
    args.gin_overrides,
    paths,
    without=_WITHOUT,
    fill=_FILL,
  )
  return gin_config.build(experiment.Experiment)


def codec_config(built: experiment.Experiment) -> soundstream.SoundStreamConfig:
  """The codec of an experiment.

  Raises:
    UserError: if it trains something else.
  """
  config = getattr(getattr(built.trainable, "config", None), "codec", None)
  if not isinstance(config, soundstream.SoundStreamConfig):
    raise errors.UserError(
      f"the experiment trains a {type(built.trainable).__name__}: expected a "
      "CodecGAN, as of experiments/musiclm_soundstream_paper_audio_folder.gin"
    )
  return config


def random_variables(config: soundstream.SoundStreamConfig) -> dict[str, Any]:
  """Parameters that keep signals at a usual level: nothing overflows."""
  network = soundstream.SoundStream(config)
  shape = (1, config.hop_length)
  if config.num_channels > 1:
    shape += (config.num_channels,)
  shapes = axes.unbox(
    jax.eval_shape(
      network.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
    )
  )
  generator = np.random.default_rng(0)

  def draw(x):
    scale = 0.7 * max(np.prod(x.shape[:-1]), 1) ** -0.5
    values = generator.standard_normal(x.shape, dtype=np.float32) * scale
    return jnp.asarray(values, x.dtype)

  return jax.tree.map(draw, shapes)


def gemm_gflops(timing: benchmarking.Timing) -> float:
  """GFLOP/s of a float32 product of large squares: the machine's ceiling."""
  matrix = jnp.ones((_GEMM_SIZE, _GEMM_SIZE), jnp.float32)
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(matrix, matrix))
  found = benchmarking.rates(
    lambda: jax.block_until_ready(product(matrix, matrix)), timing
  )
  return 2 * _GEMM_SIZE**3 * found["calls_per_second"] / 1e9


def _gflops(
  config: soundstream.SoundStreamConfig, variables: Any, frames: int
) -> dict[str, float]:
  """Of one row of `frames` frames, by method, as XLA counts them."""
  network = soundstream.SoundStream(config)
  shape = (1, frames * config.hop_length)
  if config.num_channels > 1:
    shape += (config.num_channels,)
  inputs = {
    "latents": jax.ShapeDtypeStruct(shape, jnp.float32),
    "decode": jax.ShapeDtypeStruct(
      (1, frames, config.num_codebooks), jnp.int32
    ),
  }
  flops = {}
  for method, x in inputs.items():
    call = jax.jit(lambda v, x, m=method: network.apply(v, x, method=m))
    flops[method] = call.lower(variables, x).cost_analysis()["flops"] / 1e9
  # XLA counts the body of a loop over levels once: counted here instead.
  search = 2 * frames * _num_entries(config) * config.code_dim
  return {
    "encode": flops["latents"] + search / 1e9,
    "decode": flops["decode"],
  }


def _num_entries(config: soundstream.SoundStreamConfig) -> int:
  """Of all codebooks; an FSQ has none."""
  if config.quantizer_kind != "rvq":
    return 0
  return config.num_codebooks * config.codebook_size


def _whole(
  config: soundstream.SoundStreamConfig, variables: Any, method: str
) -> Callable[[np.ndarray], np.ndarray]:
  """All of a batch in one call."""
  network = soundstream.SoundStream(config)
  call = jax.jit(lambda v, x: network.apply(v, x, method=method))
  return lambda x: np.asarray(call(variables, x))


def _pieces(
  codec: codec_streams.StreamingCodec, method: str, batch_size: int
) -> Callable[[np.ndarray], np.ndarray]:
  """A batch in pieces that fit the caches."""
  make = {
    "encode": codec_streams.StreamEncoder,
    "decode": codec_streams.StreamDecoder,
  }[method]

  def work(x: np.ndarray) -> np.ndarray:
    stream = make(codec, batch_size, codec_streams.MAX_CALL_FRAMES)
    return np.concatenate([stream.push(x), stream.flush()], axis=1)

  return work


def _inputs(
  config: soundstream.SoundStreamConfig, batch_size: int, frames: int
) -> dict[str, np.ndarray]:
  """Random audio and codes by method."""
  generator = np.random.default_rng(0)
  shape = (batch_size, frames * config.hop_length)
  if config.num_channels > 1:
    shape += (config.num_channels,)
  codes = generator.integers(
    0, config.codebook_size, (batch_size, frames, config.num_codebooks)
  )
  sound = 0.1 * generator.standard_normal(shape, dtype=np.float32)
  return {"encode": sound, "decode": codes.astype(np.int32)}


def _timed(
  work: Callable[[np.ndarray], np.ndarray],
  x: np.ndarray,
  timing: benchmarking.Timing,
) -> dict[str, float]:
  """Time of a call, and how many times faster than real time it is."""
  work(x)
  found = benchmarking.rates(lambda: work(x), timing)
  audio_secs = len(x) * _AUDIO_SECS
  return {
    "secs": 1.0 / found["calls_per_second"],
    "x_real_time": found["calls_per_second"] * audio_secs,
    "x_real_time_per_cpu": found["calls_per_cpu_second"] * audio_secs,
  }


def run(
  built: experiment.Experiment, timing: benchmarking.Timing
) -> dict[str, Any]:
  """Times real time of encoding and decoding, at batch 1 and 4."""
  config = codec_config(built)
  variables = random_variables(config)
  frames = round(_AUDIO_SECS * config.frame_rate_hz)
  ceiling = gemm_gflops(timing)
  gflops = _gflops(config, variables, frames)
  codec = codec_streams.StreamingCodec(config, variables)
  cases = []
  for batch_size in _BATCH_SIZES:
    for method, x in _inputs(config, batch_size, frames).items():
      ways = {
        "whole": _whole(config, variables, method),
        "pieces": _pieces(codec, method, batch_size),
      }
      for way, work in ways.items():
        case = {"method": method, "way": way, "batch_size": batch_size}
        cases.append({**case, **_timed(work, x, timing)})
        rate = cases[-1]["x_real_time"] * gflops[method] / _AUDIO_SECS
        cases[-1]["gflops_per_second"] = rate
        cases[-1]["fraction_of_gemm"] = rate / ceiling
  count = sum(x.size for x in jax.tree.leaves(variables["params"]))
  entries = _num_entries(config) * config.code_dim
  return {
    "num_parameters": count,
    "num_parameters_with_codebooks": count + entries,
    "sample_rate_hz": config.sample_rate_hz,
    "num_channels": config.num_channels,
    "hop_length": config.hop_length,
    "num_codebooks": config.num_codebooks,
    "latency_ms": config.latency_ms,
    "audio_secs": _AUDIO_SECS,
    "gflops_per_audio_sec": {
      name: value / _AUDIO_SECS for name, value in gflops.items()
    },
    "gemm_gflops_per_second": ceiling,
    "cases": cases,
  }
