# SPDX-License-Identifier: Apache-2.0
"""Metrics of generated clips: what was heard of them in, numbers out.

Each listener gives those it can: an embedder the distances to the reference
set and the spread of the clips, one with a text tower the fit of clips to
their texts, a classifier the divergence from paired reference clips.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from musiclm_jax.core import errors, protocols
from musiclm_jax.evaluation import (
  bootstrap,
  diversity,
  frechet_distance,
  kernel_distance,
  kl_divergence,
  metric_card,
  mulan_consistency,
  prompt_results,
  set_distances,
  text_score,
)

# By the name a person asks for.
METRICS = (
  "fad",
  "fad_infinity",
  "kad",
  "text",
  "kld",
  "diversity",
  "song_fad",
)
DEFAULT = ("fad", "fad_infinity", "kad", "text", "kld", "diversity")
_SEED = 0
_Results = Iterator[prompt_results.Result]
_CHUNK = 256
_MAX_DIVERSITY_CLIPS = 2_000


def check_names(names: Sequence[str]) -> None:
  """Raises UserError for a metric that is not known."""
  for name in names:
    if name not in METRICS:
      raise errors.UserError(
        f"metric {name!r}: expected some of {', '.join(METRICS)}"
        f"{errors.nearest(name, METRICS)}"
      )


def embedded(
  listener: protocols.Embedder,
  store: set_distances.Store,
  material: prompt_results.Material,
  metrics: Sequence[str],
  notes: list[str],
) -> _Results:
  """Metrics of an embedder, those of `metrics` that can be computed.

  Args:
    listener: what the store has heard with.
    store: has all clips of `material`.
    material: to compare.
    metrics: of `METRICS`.
    notes: gets why one could not be computed, a sentence each.

  Yields:
    Results, in the order of `METRICS`.
  """
  with_reference = {
    "fad": _fad,
    "fad_infinity": _fad_infinity,
    "kad": _kad,
    "song_fad": _song_fad,
  }
  for name in METRICS:
    if name not in metrics:
      continue
    if name in with_reference and material.reference_keys:
      compute = with_reference[name]
    elif name == "diversity":
      compute = _diversity
    elif name == "text" and isinstance(listener, protocols.TextEmbedder):
      compute = _text
    else:
      continue
    yield from _timed(compute, name, listener, store, material, notes)


def classified(
  listener: protocols.Classifier,
  store: set_distances.Store,
  material: prompt_results.Material,
  metrics: Sequence[str],
  notes: list[str],
) -> _Results:
  """KLD, where there are pairs; arguments as `embedded`."""
  if "kld" in metrics and material.pairs:
    yield from _timed(_kld, "kld", listener, store, material, notes)


class _NotComputed(ValueError):
  """A part of a metric that has a name of its own."""

  def __init__(self, name: str, error: ValueError):
    super().__init__(f"{name} was not computed: {error}")


def _timed(
  compute: Callable[..., _Results],
  metric: str,
  listener: protocols.Listener,
  store: set_distances.Store,
  material: prompt_results.Material,
  notes: list[str],
) -> _Results:
  """Results with their times; what cannot be computed is noted."""
  # Outside the block: a false name is a fault, not a number that is missing.
  name = prompt_results.title(listener, metric)
  begun = time.monotonic()
  try:
    for result in compute(listener, store, material):
      yield dataclasses.replace(result, secs=time.monotonic() - begun)
      begun = time.monotonic()
  except errors.UserError:
    raise
  except _NotComputed as error:
    notes.append(str(error))
  except ValueError as error:
    notes.append(f"{name} was not computed: {error}")


def _is_diagonal(listener: protocols.Embedder) -> bool:
  return listener.embedding_dim > set_distances.DIAGONAL_ABOVE


def _fad(listener, store, material) -> _Results:
  diagonal = _is_diagonal(listener)
  reference = set_distances.moments(store, material.reference_keys, diagonal)
  keys = material.evaluated_keys
  num_vectors = set_distances.moments(store, keys, True).count
  yield prompt_results.make(
    listener,
    material,
    "fad",
    prompt_results.title(listener, "fad"),
    set_distances.frechet(store, reference, keys),
    len(keys),
    {
      "covariance": "diagonal" if diagonal else "full",
      "interval": "jackknife over 20 groups of clips",
    },
    num_vectors=min(reference.count, num_vectors),
    # Of variances alone nothing is singular.
    embedding_dim=None if diagonal else listener.embedding_dim,
  )


def _fad_infinity(listener, store, material) -> _Results:
  keys = material.evaluated_keys
  reference, _ = set_distances.sample(store, material.reference_keys)
  evaluated, _ = set_distances.sample(store, keys)
  diagonal = _is_diagonal(listener)
  found = frechet_distance.extrapolated(
    reference, evaluated, _SEED, diagonal=diagonal
  )
  reach = 1.96 * found.standard_error
  yield prompt_results.make(
    listener,
    material,
    "fad_infinity",
    prompt_results.title(listener, "fad_infinity"),
    bootstrap.Interval(found.value, found.value - reach, found.value + reach),
    len(keys),
    {
      "covariance": "diagonal" if diagonal else "full",
      "interval": "1.96 standard errors of the line: too narrow",
      "most_vectors": set_distances.MAX_VECTORS,
      "seed": _SEED,
    },
    warnings=(
      f"R^2 of the line {found.r_squared:.3f}, sizes {found.sizes[0]:,} to "
      f"{found.sizes[-1]:,}",
    ),
  )


def _kad(listener, store, material) -> _Results:
  keys = material.evaluated_keys
  most = set_distances.MAX_KERNEL_VECTORS
  reference, owners = set_distances.sample(store, material.reference_keys, most)
  evaluated, clips = set_distances.sample(store, keys, most)
  found = kernel_distance.estimate(
    reference, evaluated, None, owners.tolist(), clips.tolist()
  )
  yield prompt_results.make(
    listener,
    material,
    "kad",
    prompt_results.title(listener, "kad"),
    found.interval(),
    len(keys),
    {
      "interval": "1.96 standard errors",
      # It follows from listener and reference but for its last digits, by
      # which cards must not differ.
      "bandwidth": "median distance of the reference",
      "most_vectors": most,
    },
    is_kernel=True,
  )


def _song_fad(listener, store, material) -> _Results:
  diagonal = _is_diagonal(listener)
  reference = set_distances.moments(store, material.reference_keys, diagonal)
  values: list[float] = []
  for songs in set_distances.chunks(store, material.evaluated_keys):
    values += frechet_distance.per_song(reference, songs, diagonal).tolist()
  scores = dict(zip(material.names, values))
  scores = {name: value for name, value in scores.items() if value == value}
  if not scores:
    raise ValueError("no clip has the 2 windows that a covariance needs")
  yield prompt_results.make(
    listener,
    material,
    "song_fad",
    prompt_results.title(listener, "song_fad"),
    bootstrap.mean_interval(list(scores.values())),
    len(scores),
    {"covariance": "diagonal" if diagonal else "full"},
    scores,
  )


def _diversity(listener, store, material) -> _Results:
  count = len(material.names)
  # All pairs are compared: a bounded number of clips, evenly spread.
  number = min(count, _MAX_DIVERSITY_CLIPS)
  places = np.arange(number) * count // number
  keys = material.evaluated_keys
  vectors = set_distances.means(store, [keys[place] for place in places])
  found = diversity.diversity(diversity.cosine_distances(vectors))
  yield prompt_results.make(
    listener,
    material,
    "diversity",
    prompt_results.title(listener, "diversity"),
    found.distance,
    number,
    {
      "distance": "1 - cosine of the mean embeddings of two clips",
      "most_clips": _MAX_DIVERSITY_CLIPS,
    },
    better=metric_card.NEITHER,
    with_reference=False,
  )


def _text(listener, store, material) -> _Results:
  texts = [material.texts[name] for name in material.names]
  vectors = _text_vectors(listener, texts)
  pooled = np.concatenate(
    [
      text_score.pooled_audio(rows)
      for rows in set_distances.chunks(store, material.evaluated_keys)
    ]
  )
  scores = np.einsum("id,id->i", vectors, pooled)
  name = prompt_results.title(listener, "text")

  def result(part, name, interval, per_clip=None):
    settings = {"pooling": text_score.MEAN_OF_COSINES}
    return prompt_results.make(
      listener,
      material,
      part,
      name,
      interval,
      len(texts),
      settings,
      per_clip,
      better=metric_card.HIGHER,
      with_reference=False,
    )

  per_clip = dict(zip(material.names, scores.tolist()))
  yield result("text", name, bootstrap.mean_interval(scores), per_clip)
  difference = f"{name} above that of other prompts"
  try:
    both = mulan_consistency.matched_and_shuffled(
      lambda order: np.einsum("id,id->i", vectors[order], pooled), texts
    )
  except ValueError as error:
    # Most clips share a text: they cannot get another's.
    raise _NotComputed(difference, error) from error
  yield result(
    "text_difference",
    difference,
    bootstrap.Interval(**both["difference"]),
  )


def _text_vectors(
  listener: protocols.TextEmbedder, texts: Sequence[str]
) -> np.ndarray:
  """Unit vectors, each different text embedded once."""
  different = list(dict.fromkeys(texts))
  vectors = text_score.unit(np.asarray(listener.embed_text(different), float))
  places = {text: index for index, text in enumerate(different)}
  return vectors[[places[text] for text in texts]]


def _kld(listener, store, material) -> _Results:
  names = [name for name in material.names if name in material.pairs]
  scores = {}
  # Two readers, each of which goes through its own clips in order.
  for start in range(0, len(names), _CHUNK):
    some = names[start : start + _CHUNK]
    evaluated = list(store.read([material.keys[name] for name in some]))
    reference = list(store.read([material.pairs[name] for name in some]))
    for name, made, wanted in zip(some, evaluated, reference):
      count = min(len(made), len(wanted))
      divergence = kl_divergence.kl_divergence(
        wanted[None, :count], made[None, :count], listener.multi_label
      )
      scores[name] = float(divergence[0])
  yield prompt_results.make(
    listener,
    material,
    "kld",
    prompt_results.title(listener, "kld"),
    bootstrap.mean_interval(list(scores.values())),
    len(scores),
    {
      "direction": "KL(reference || generated)",
      "probabilities": kl_divergence.normalization(listener.multi_label),
      "windows": "compared in pairs, as many as both clips have",
    },
    scores,
    unit="nats",
  )
