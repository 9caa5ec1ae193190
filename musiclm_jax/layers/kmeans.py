# SPDX-License-Identifier: Apache-2.0
"""K-means in jax: vectors `[n, dim]` in, centroids `[clusters, dim]` out.

Every pass over the data runs in chunks, so memory is bounded by
`chunk_size * clusters` and not by `n * clusters`. The result is a pure
function of data and key.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Distances decide codes: TPU's default bfloat16 products would move them.
PRECISION = jax.lax.Precision.HIGHEST


class KMeansResult(NamedTuple):
  """What `fit` returns.

  Attributes:
    centroids: float32 `[clusters, dim]`.
    inertia: float32 scalar, mean squared distance to the nearest centroid
      before the last update.
    num_iterations: int32 scalar, Lloyd iterations run.
  """

  centroids: jax.Array
  inertia: jax.Array
  num_iterations: jax.Array


def _chunk(data: jax.Array, chunk_size: int) -> tuple[jax.Array, jax.Array]:
  """Splits rows into equal chunks, with 0/1 weights that mark filling."""
  num_points = data.shape[0]
  chunk_size = min(chunk_size, num_points)
  num_chunks = -(-num_points // chunk_size)
  fill = num_chunks * chunk_size - num_points
  chunks = jnp.pad(data, ((0, fill), (0, 0)))
  weights = jnp.pad(jnp.ones(num_points, jnp.float32), (0, fill))
  return (
    chunks.reshape(num_chunks, chunk_size, -1),
    weights.reshape(num_chunks, chunk_size),
  )


def squared_distances(points: jax.Array, centroids: jax.Array) -> jax.Array:
  """Squared distances `[n, clusters]` of `[n, dim]` to `[clusters, dim]`."""
  products = jnp.einsum("nd,kd->nk", points, centroids, precision=PRECISION)
  norms = (points**2).sum(-1)[:, None] + (centroids**2).sum(-1)[None, :]
  return jnp.maximum(norms - 2.0 * products, 0.0)


@functools.partial(jax.jit, static_argnames=("chunk_size",))
def assign(
  data: jax.Array, centroids: jax.Array, chunk_size: int = 4096
) -> tuple[jax.Array, jax.Array]:
  """Nearest centroid of each point.

  Args:
    data: float32 `[n, dim]`.
    centroids: float32 `[clusters, dim]`.
    chunk_size: points whose distances are held at once.

  Returns:
    Codes int32 `[n]` and squared distances float32 `[n]`.
  """
  chunks, _ = _chunk(data, chunk_size)

  def nearest(points):
    distances = squared_distances(points, centroids)
    return distances.argmin(-1).astype(jnp.int32), distances.min(-1)

  codes, distances = jax.lax.map(nearest, chunks)
  num_points = data.shape[0]
  return codes.reshape(-1)[:num_points], distances.reshape(-1)[:num_points]


def seed(data: jax.Array, num_clusters: int, key: jax.Array) -> jax.Array:
  """K-means++ seeding: points drawn by squared distance to those before.

  Args:
    data: float32 `[n, dim]`.
    num_clusters: centroids to draw.
    key: typed key.

  Returns:
    float32 `[clusters, dim]`, rows of `data`.
  """
  first = data[jax.random.randint(jax.random.fold_in(key, 0), (), 0, len(data))]
  centroids = jnp.zeros((num_clusters, data.shape[1]), data.dtype)

  def draw(index, carry):
    centroids, distances = carry
    # Points that coincide with a centroid have log 0 = -inf: never drawn
    # again, unless nothing else is left.
    point = jax.random.categorical(
      jax.random.fold_in(key, index), jnp.log(distances)
    )
    chosen = data[point]
    distances = jnp.minimum(distances, ((data - chosen) ** 2).sum(-1))
    return centroids.at[index].set(chosen), distances

  distances = ((data - first) ** 2).sum(-1)
  centroids, _ = jax.lax.fori_loop(
    1, num_clusters, draw, (centroids.at[0].set(first), distances)
  )
  return centroids


def _update(
  data: jax.Array, centroids: jax.Array, chunk_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """One Lloyd iteration: new centroids, inertia, number of empty clusters."""
  num_clusters = centroids.shape[0]

  def accumulate(carry, chunk):
    sums, counts = carry
    points, weights = chunk
    distances = squared_distances(points, centroids)
    member = jax.nn.one_hot(distances.argmin(-1), num_clusters)
    member = member * weights[:, None]
    sums += jnp.einsum("nk,nd->kd", member, points, precision=PRECISION)
    return (sums, counts + member.sum(0)), distances.min(-1)

  start = (jnp.zeros_like(centroids), jnp.zeros(num_clusters, jnp.float32))
  (sums, counts), distances = jax.lax.scan(
    accumulate, start, _chunk(data, chunk_size)
  )
  distances = distances.reshape(-1)[: data.shape[0]]
  empty = counts == 0
  # The i-th empty cluster moves to the i-th worst represented point.
  num_far = min(num_clusters, data.shape[0])
  far = data[jax.lax.top_k(distances, num_far)[1]]
  rank = jnp.clip(jnp.cumsum(empty) - 1, 0, num_far - 1)
  moved = jnp.where(
    empty[:, None], far[rank], sums / jnp.maximum(counts, 1.0)[:, None]
  )
  return moved, distances.mean(), empty.sum()


@functools.partial(
  jax.jit, static_argnames=("num_clusters", "num_iterations", "chunk_size")
)
def _fit(data, key, num_clusters, num_iterations, chunk_size, tolerance):
  def unfinished(carry):
    _, _, gain, num_empty, iteration = carry
    improving = (gain > tolerance) | (num_empty > 0)
    return (iteration < num_iterations) & improving

  def iterate(carry):
    centroids, before, _, _, iteration = carry
    centroids, inertia, num_empty = _update(data, centroids, chunk_size)
    gain = (before - inertia) / jnp.maximum(before, 1e-12)
    # The first inertia has nothing to be compared with.
    gain = jnp.where(iteration == 0, jnp.inf, gain)
    return centroids, inertia, gain, num_empty, iteration + 1

  start = (
    seed(data, num_clusters, key),
    jnp.float32(0.0),
    jnp.float32(jnp.inf),
    jnp.int32(0),
    jnp.int32(0),
  )
  centroids, inertia, _, _, iteration = jax.lax.while_loop(
    unfinished, iterate, start
  )
  return KMeansResult(centroids, inertia, iteration)


def fit(
  data: jax.Array,
  num_clusters: int,
  key: jax.Array,
  num_iterations: int = 50,
  chunk_size: int = 4096,
  tolerance: float = 1e-4,
) -> KMeansResult:
  """K-means++ seeding, then Lloyd iterations with repair of empty clusters.

  Args:
    data: float32 `[n, dim]`, `n >= num_clusters`.
    num_clusters: centroids to fit.
    key: typed key; the result is a function of data and key.
    num_iterations: most Lloyd iterations.
    chunk_size: points whose distances to all centroids are held at once.
    tolerance: stop when the inertia falls by less than this share.

  Returns:
    Centroids and how the fit went.

  Raises:
    ValueError: if there are fewer points than clusters, or bad sizes.
  """
  data = jnp.asarray(data, jnp.float32)
  if data.ndim != 2:
    raise ValueError(f"data has shape {data.shape}: expected [n, dim]")
  if not 1 <= num_clusters <= data.shape[0]:
    raise ValueError(
      f"num_clusters={num_clusters}: expected 1 to {data.shape[0]}, the "
      "number of points"
    )
  for name, value in (
    ("num_iterations", num_iterations),
    ("chunk_size", chunk_size),
  ):
    if value < 1:
      raise ValueError(f"{name}={value}: expected a positive number")
  return _fit(data, key, num_clusters, num_iterations, chunk_size, tolerance)
