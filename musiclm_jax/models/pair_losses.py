# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses of paired embeddings, a chunk of similarities at a time.

Embeddings of both sides of a batch flow in, the loss of each pair and what
retrieval within the batch finds flow out. Every pair is compared with the
whole batch, but no device holds `[batch, batch]`: it keeps its own rows,
gathers the embeddings (`[batch, dim]`), and goes over them in chunks with a
running logsumexp. The backward pass computes the chunks again.

Each device walks over the texts for its audio and over the audio for its
texts. That is each product twice, but then its gradients are complete: they
need no sum over devices, and do not depend on the mesh but for rounding.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from musiclm_jax.partitioning import axes

LOSSES = ("mulan", "infonce", "sigmoid")
_LOWEST = -1e30
# exp(x - _HIGHEST) is 0 for every similarity x.
_HIGHEST = 1e30
# Nearer than this share of the positive's similarity is a tie: an encoder
# that gives all inputs one vector has equal similarities but for rounding.
_TIE = 1e-6


class PairLosses(NamedTuple):
  """Per pair of the batch; only `loss` has a gradient.

  Of a row without a partner all are 0 or False.

  Attributes:
    loss: float32 `[batch]`.
    num_negatives: float32 `[batch]`, pairs with other ids.
    hit_text: bool `[batch]`, True where the text most similar to the audio is
      one of its own (that of this pair, or one with equal ids).
    hit_audio: the same of the audio most similar to the text.
    rank_text: float32 `[batch]`, negative texts more similar to the audio
      than its own; a tie counts half.
    rank_audio: the same of audio, by similarity to the text.
    nearest_text: int32 `[batch]`, row of the text most similar to the audio
      (the first of several).
    nearest_audio: the same of the audio most similar to the text.
  """

  loss: jax.Array
  num_negatives: jax.Array
  hit_text: jax.Array
  hit_audio: jax.Array
  rank_text: jax.Array
  rank_audio: jax.Array
  nearest_text: jax.Array
  nearest_audio: jax.Array


class _Walk(NamedTuple):
  """What a row has seen of the other side; `[rows]` each.

  Attributes:
    highest: largest similarity among negatives.
    total: of exp(similarity - highest) over negatives; with 'sigmoid' of
      softplus(similarity).
    best: largest similarity of all.
    hit: whether that was one of the row's own.
    rank: negatives above the positive, ties half.
    count: negatives.
    nearest: where that largest similarity of all is.
  """

  highest: jax.Array
  total: jax.Array
  best: jax.Array
  hit: jax.Array
  rank: jax.Array
  count: jax.Array
  nearest: jax.Array


def _over_chunks(
  body: Callable[[Any, Any], Any], carry: Any, columns: Any, chunk: int
) -> Any:
  """Folds `body(carry, (columns of a chunk, bool [width] which are real))`."""
  size = len(jax.tree.leaves(columns)[0])
  num_chunks = -(-size // chunk)
  width = -(-size // num_chunks)
  spare = num_chunks * width - size

  def cut(x):
    x = jnp.pad(x, ((0, spare),) + ((0, 0),) * (x.ndim - 1))
    return x.reshape(num_chunks, width, *x.shape[1:])

  parts = jax.tree.map(cut, (columns, jnp.ones(size, bool)))
  if num_chunks == 1:
    return body(carry, jax.tree.map(lambda x: x[0], parts))
  return jax.lax.scan(lambda c, part: (body(c, part), None), carry, parts)[0]


def _similarity(x: jax.Array, y: jax.Array, bias: jax.Array) -> jax.Array:
  """float32 `[rows, columns]`."""
  return bias + jnp.einsum(
    "id,jd->ij", x, y, precision=jax.lax.Precision.HIGHEST
  )


def _present(ids: jax.Array) -> jax.Array:
  """bool `[rows]`: the last column of ids, by `pair_losses`."""
  return ids[:, -1] > 0


def _equal(ids: jax.Array, others: jax.Array) -> jax.Array:
  """bool `[rows, columns]`, True where all numbers are equal."""
  same = ids[:, None, 0] == others[None, :, 0]
  for k in range(1, ids.shape[1]):
    same &= ids[:, None, k] == others[None, :, k]
  return same


def _negatives(ids: jax.Array, others: jax.Array, real: jax.Array) -> jax.Array:
  """bool `[rows, columns]`: of which columns a row is to be told apart."""
  both = _present(ids)[:, None] & _present(others) & real
  return both & ~_equal(ids, others)


def _walk(loss, chunk, x, ids, positive, others, other_ids, bias) -> _Walk:
  """Rows `x` against all `others`."""

  def body(seen: _Walk, part):
    (y, y_ids, places), real = part
    similarity = _similarity(x, y, bias)
    own = _equal(ids, y_ids)
    negative = _negatives(ids, y_ids, real)
    masked = jnp.where(negative, similarity, _LOWEST)
    highest = jnp.maximum(seen.highest, masked.max(1))
    if loss == "sigmoid":
      more = jnp.where(negative, jax.nn.softplus(similarity), 0.0).sum(1)
      total = seen.total + more
    else:
      above = jnp.where(negative, similarity - highest[:, None], _LOWEST)
      shrunk = seen.total * jnp.exp(seen.highest - highest)
      total = shrunk + jnp.exp(above).sum(1)
    among = jnp.where(real & _present(y_ids), similarity, _LOWEST)
    first = among.argmax(1)[:, None]
    best = jnp.take_along_axis(among, first, 1)[:, 0]
    hit = jnp.take_along_axis(own, first, 1)[:, 0]
    tie = _TIE * jnp.abs(positive - bias)
    gap = masked - positive[:, None]
    above = (gap > tie[:, None]).sum(1) + (gap >= -tie[:, None]).sum(1)
    is_nearer = best > seen.best
    return _Walk(
      highest,
      total,
      jnp.maximum(seen.best, best),
      jnp.where(is_nearer, hit, seen.hit),
      seen.rank + 0.5 * above,
      seen.count + negative.sum(1, dtype=jnp.float32),
      jnp.where(is_nearer, places[first[:, 0]], seen.nearest),
    )

  zeros = jnp.zeros(len(x), jnp.float32)
  lowest = jnp.full_like(zeros, _LOWEST)
  nowhere = jnp.zeros(len(x), jnp.int32)
  start = _Walk(lowest, zeros, lowest, zeros > 0, zeros, zeros, nowhere)
  columns = (others, other_ids, jnp.arange(len(others), dtype=jnp.int32))
  return _over_chunks(body, start, columns, chunk)


def _forward_rows(loss, chunk, x, y, ids, all_x, all_y, all_ids, bias):
  """Losses of own rows, and for each side the log of what they divide by."""
  positive = (x * y).sum(-1) + bias
  walks = [
    _walk(loss, chunk, x, ids, positive, all_y, all_ids, bias),
    _walk(loss, chunk, y, ids, positive, all_x, all_ids, bias),
  ]
  count = walks[0].count
  if loss == "sigmoid":
    negatives = (walks[0].total + walks[1].total) / 2
    losses = jax.nn.softplus(-positive) + negatives
    logs = [jnp.zeros_like(positive)] * 2
  else:
    some = count > 0
    logs = [
      jnp.where(some, w.highest + jnp.log(jnp.where(some, w.total, 1.0)), 0.0)
      for w in walks
    ]
    if loss == "mulan":
      log = jnp.where(some, jnp.logaddexp(*logs), _HIGHEST)
      losses = jnp.where(some, log - positive, 0.0)
      logs = [log, log]
    else:
      logs = [
        jnp.where(some, jnp.logaddexp(log, positive), positive) for log in logs
      ]
      losses = (logs[0] + logs[1]) / 2 - positive
  present = _present(ids)
  out = PairLosses(
    jnp.where(present, losses, 0.0),
    count,
    *(w.hit & present for w in walks),
    *(w.rank for w in walks),
    *(jnp.where(present, w.nearest, 0) for w in walks),
  )
  return out, tuple(logs)


def _backward_rows(
  loss, chunk, x, y, ids, own, all_x, all_y, all_ids, every, bias
):
  """Gradients of own rows `x` and `y`, and their share of the bias's.

  Args:
    own: gradient of the loss and both logs, `[rows]` each.
    every: the same of the whole batch.
  """
  positive = (x * y).sum(-1) + bias
  half = 1.0 if loss == "mulan" else 0.5

  def one_side(x, log, others, other_logs):
    def body(carry, part):
      (y, y_ids, y_gradient, y_log), real = part
      negative = _negatives(ids, y_ids, real)
      similarity = _similarity(x, y, bias)
      if loss == "sigmoid":
        slope = jax.nn.sigmoid(similarity)
        slope = jnp.where(negative, slope, 0.0)
        slope *= gradient[:, None] + y_gradient
      else:
        # Masked before exp: of a pair that is no negative it may overflow.
        above = jnp.where(negative, similarity - log[:, None], -jnp.inf)
        beside = jnp.where(negative, similarity - y_log, -jnp.inf)
        slope = gradient[:, None] * jnp.exp(above)
        slope += y_gradient * jnp.exp(beside)
      slope *= half
      back = jnp.einsum(
        "ij,jd->id", slope, y, precision=jax.lax.Precision.HIGHEST
      )
      return carry[0] + back, carry[1] + slope.sum(1)

    start = (jnp.zeros_like(x), jnp.zeros(len(x), x.dtype))
    columns = (others, all_ids, every[0], other_logs)
    return _over_chunks(body, start, columns, chunk)

  gradient = own[0]
  # Row i of one side is column i of the other, with the other side's log.
  x_back, slopes = one_side(x, own[1], all_y, every[2])
  y_back, _ = one_side(y, own[2], all_x, every[1])
  if loss == "mulan":
    pull = -jnp.ones_like(positive)
  elif loss == "infonce":
    pull = (jnp.exp(positive - own[1]) + jnp.exp(positive - own[2])) / 2 - 1
  else:
    pull = -jax.nn.sigmoid(-positive)
  pull = (pull * gradient)[:, None]
  return x_back + pull * y, y_back + pull * x, slopes + pull[:, 0]


_ROWS = ("batch", None)
_ALL = (None, None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _losses(loss, chunk, x, y, ids, bias):
  return _forward(loss, chunk, x, y, ids, bias)[0]


def _forward(loss, chunk, x, y, ids, bias):
  run = axes.on_each_device(
    functools.partial(_forward_rows, loss, chunk),
    (_ROWS,) * 3 + (_ALL,) * 3 + ((),),
    ("batch",),
  )
  out, logs = run(x, y, ids, x, y, ids, bias)
  return out, (x, y, ids, bias, *logs)


def _backward(loss, chunk, saved, out):
  x, y, ids, bias, *logs = saved
  gradient = jnp.where(_present(ids), out.loss, 0.0)
  if loss == "mulan":
    # A pair without negatives has no loss at all.
    gradient = jnp.where(logs[0] < _HIGHEST, gradient, 0.0)

  def rows(x, y, ids, *rest):
    own, (all_x, all_y, all_ids), every = rest[:3], rest[3:6], rest[6:9]
    return _backward_rows(
      loss, chunk, x, y, ids, own, all_x, all_y, all_ids, every, rest[9]
    )

  vectors = (gradient, *logs)
  run = axes.on_each_device(
    rows,
    (_ROWS,) * 3 + (("batch",),) * 3 + (_ALL,) * 3 + ((None,),) * 3 + ((),),
    ("batch",),
  )
  dx, dy, slopes = run(x, y, ids, *vectors, x, y, ids, *vectors, bias)
  return dx, dy, None, slopes.sum()


_losses.defvjp(_forward, _backward)


def pair_losses(
  audio: jax.Array,
  text: jax.Array,
  ids: jax.Array,
  scale: jax.Array,
  bias: jax.Array | float = 0.0,
  loss: str = "mulan",
  chunk: int = 1024,
  present: jax.Array | None = None,
) -> PairLosses:
  """Compares every audio of the global batch with every text.

  With `s[i, j] = scale * audio[i] . text[j] + bias`, the negatives of pair i
  being all j with other ids, in both directions:

  - 'mulan' (arXiv 2208.12415 sec. 3.2): `-s[i, i] + log(sum_j exp(s[i, j]) +
    sum_j exp(s[j, i]))` over negatives; 0 for a pair that has none.
  - 'infonce': mean of the two softmax cross-entropies over `i` and negatives.
  - 'sigmoid' (arXiv 2303.15343): `softplus(-s[i, i])` plus the mean of
    `sum_j softplus(s[i, j])` and `sum_j softplus(s[j, i])`. Its mean over
    pairs is the published loss where no ids repeat.

  Inside a `Partitioner`'s context each device computes its rows of the batch;
  mesh axes that do not split the batch (or do not divide it) do the same work
  twice. Elsewhere one device computes all.

  Args:
    audio: float32 `[batch, dim]` of unit length.
    text: float32 `[batch, dim]` of unit length.
    ids: integers `[batch, k]`; pairs all of whose k are equal are no negatives
      of each other.
    scale: float32 scalar, one over the temperature.
    bias: float32 scalar; moves nothing but 'sigmoid'.
    loss: one of `LOSSES`.
    chunk: at most so many columns of similarities are held at a time.
    present: bool `[batch]`, None for all. A row that is not there, such as
      audio without a text, is nobody's positive and nobody's negative: the
      others have the loss and gradients of a batch without it, and it has
      none. What its embeddings hold does not matter, so long as it is finite.

  Raises:
    ValueError: if `loss` is none of them, or shapes do not fit.
  """
  if loss not in LOSSES:
    raise ValueError(f"loss={loss!r}: expected one of {LOSSES}")
  if chunk < 1:
    raise ValueError(f"chunk={chunk}: expected >= 1")
  if audio.shape != text.shape or ids.shape[:1] != audio.shape[:1]:
    raise ValueError(
      f"audio {audio.shape}, text {text.shape}, ids {ids.shape}: expected "
      "[batch, dim], the same, and [batch, k]"
    )
  if present is None:
    present = jnp.ones(len(ids), bool)
  ids = jnp.concatenate(
    [jnp.asarray(ids), present[:, None].astype(ids.dtype)], axis=1
  )
  audio = audio.astype(jnp.float32) * scale
  return _losses(
    loss, chunk, audio, text.astype(jnp.float32), ids, jnp.float32(bias)
  )


def chance_losses(
  num_negatives: jax.Array, loss: str, present: jax.Array | None = None
) -> jax.Array:
  """float32 `[batch]`: what an encoder gets that gives all inputs one vector.

  For 'sigmoid' with the bias that is best for the batch.

  Args:
    num_negatives: float32 `[batch]`.
    loss: one of `LOSSES`.
    present: bool `[batch]`, see `pair_losses`; None for all.
  """
  if loss == "mulan":
    some = num_negatives > 0
    chance = jnp.log(2.0 * jnp.maximum(num_negatives, 1.0))
    return jnp.where(some, chance, 0.0)
  if loss == "infonce":
    return jnp.log(num_negatives + 1.0)
  if present is None:
    present = jnp.ones(len(num_negatives), bool)
  # Rows that are not there have no negatives.
  share = 1.0 / (1.0 + num_negatives.sum() / jnp.maximum(present.sum(), 1))
  # Not log(1 - share), of which none is left where there are no negatives.
  no = jnp.log1p(-jnp.minimum(share, 1.0 - 1e-7))
  return jnp.where(present, -jnp.log(share) - num_negatives * no, 0.0)
