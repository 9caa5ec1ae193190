# SPDX-License-Identifier: Apache-2.0
"""Starting a codec as a transform codec: kernels that split into subbands.

From random kernels a waveform codec spends thousands of steps to learn that
an output sample should resemble the input sample at all. The strided
convolutions can start as orthogonal subband splits instead (block DCTs, each
level splitting the bands of the one before) and the transposed ones as their
inverses, with residual branches at zero: the untrained codec then passes the
lowest bands through, and training goes on from there. The papers do not give
an initialization; this one is a choice of this project, measured in
docs/quickstart_results.md.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Init = Callable[..., Any]
# What flows through the network, relative to the waveform: small enough that
# the negative half of ELU is nearly straight.
GAIN = 0.5
# Latents, relative to what flows through the network.
LATENT_GAIN = 8.0
# Overlap of blocks in the upsampling ones, from the waveform on; then none.
OVERLAPS = (0.5, 0.4)
# Standard deviation of kernels that no band uses, relative to the usual one.
NOISE = 0.1


def num_bands(strides: tuple[int, ...], max_bands: tuple[int, ...]) -> list:
  """Bands in use at each level: the first entry is the waveform's single one.

  Args:
    strides: of the levels, from the waveform on.
    max_bands: channels behind each level.
  """
  bands = [1]
  for stride, channels in zip(strides, max_bands):
    bands.append(min(bands[-1] * stride, channels))
  return bands


def _dct(size: int) -> np.ndarray:
  """Orthonormal DCT-II, `[frequency, time]`."""
  time, frequency = np.meshgrid(np.arange(size) + 0.5, np.arange(size))
  basis = np.cos(np.pi * frequency * time / size) * np.sqrt(2.0 / size)
  basis[0] /= np.sqrt(2.0)
  return basis


def _splits(bands_in: int, stride: int) -> list[tuple[int, int]]:
  """(band, frequency) by rising frequency; odd bands are mirrored."""
  order = []
  for band in range(bands_in):
    inside = range(stride) if band % 2 == 0 else reversed(range(stride))
    order += [(band, frequency) for frequency in inside]
  return order


def _plus_noise(kernel: np.ndarray, used: np.ndarray) -> Init:
  """`kernel`, with small random numbers outside of the `used` entries."""
  noise = nn.initializers.variance_scaling(NOISE**2, "fan_in", "uniform")

  def init(key: jax.Array, shape, dtype=jnp.float32):
    if tuple(shape) != kernel.shape:
      raise ValueError(f"{shape=}: expected {kernel.shape}")
    return jnp.where(used, kernel, noise(key, shape, dtype)).astype(dtype)

  return init


def split(stride: int, channels: int, features: int, bands: int) -> Init:
  """Of a strided convolution `[2 * stride, channels, features]`.

  Each of the first `bands` channels is split into `stride` bands, over the
  newest `stride` inputs; the lowest `features` of them are kept.
  """
  kernel = np.zeros((2 * stride, channels, features), np.float32)
  basis = _dct(stride) / np.sqrt(stride)
  kept = _splits(bands, stride)[:features]
  for index, (band, frequency) in enumerate(kept):
    kernel[stride:, band, index] = basis[frequency]
  used = np.zeros(kernel.shape, bool)
  used[:, :, : len(kept)] = True
  return _plus_noise(kernel, used)


def join(
  stride: int, channels: int, features: int, bands: int, overlap: float = 0.0
) -> Init:
  """Of a transposed convolution `[2 * stride, channels, features]`.

  The inverse of `split(stride, features, channels, bands)`, but for `overlap`.

  Args:
    stride: outputs per input.
    channels: in.
    features: out.
    bands: in use among `features`.
    overlap: share of a block's first output that comes from the end of the
      block before. Blocks that are coded with errors do not meet at their
      edges; without overlap each edge is a click, heard as noise in all bands.
  """
  kernel = np.zeros((2 * stride, channels, features), np.float32)
  basis = _dct(stride) * np.sqrt(stride)
  kept = _splits(bands, stride)[:channels]
  for index, (band, frequency) in enumerate(kept):
    kernel[:stride, index, band] = basis[frequency]
    kernel[0, index, band] *= 1.0 - overlap
    kernel[stride, index, band] = overlap * basis[frequency][-1]
  used = np.zeros(kernel.shape, bool)
  used[:, :, :bands] = True
  return _plus_noise(kernel, used)


def passing(
  kernel_size: int, channels: int, features: int, bands: int, gain: float
) -> Init:
  """Of a plain convolution: the first `bands` channels pass, times `gain`.

  Bands that `channels` has no room for start silent.
  """
  kernel = np.zeros((kernel_size, channels, features), np.float32)
  count = min(bands, channels, features)
  kernel[-1, np.arange(count), np.arange(count)] = gain
  used = np.zeros(kernel.shape, bool)
  used[:, :, :bands] = True
  return _plus_noise(kernel, used)
