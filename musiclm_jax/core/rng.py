# SPDX-License-Identifier: Apache-2.0
"""Randomness: one typed key, folded by step, then by name or item."""

import zlib

import jax


def root_key(seed: int) -> jax.Array:
  """The typed key everything random of a run is derived from."""
  return jax.random.key(seed)


def at_step(key: jax.Array, step) -> jax.Array:
  """The key of one optimizer step: a pure function of (seed, step)."""
  return jax.random.fold_in(key, step)


def named(key: jax.Array, name: str) -> jax.Array:
  """The key of one use ('dropout', 'mask', 'gumbel') within a step."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
