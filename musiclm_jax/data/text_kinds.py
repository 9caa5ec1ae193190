# SPDX-License-Identifier: Apache-2.0
"""Which text a clip is shown with: one of several kinds, by weight.

What is written about a clip flows in, one text flows out. MuLan mixes titles,
descriptions, playlist names and labels (arXiv 2208.12415); a corpus that
stores no title or playlist name gets such texts made of its aspects.
"""

import itertools
import random
from collections.abc import Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from musiclm_jax.core import errors, vocabularies
from musiclm_jax.data import features

KINDS = ("caption", "aspects", "title", "playlist")
_FEWEST_ASPECTS = 2

Texts = Mapping[str, Sequence[str]]


def check_weights(
  weights: Mapping[str, float],
) -> tuple[tuple[str, float], ...]:
  """Weights in the order of `KINDS`, those of 0 left out.

  Raises:
    ValueError: if a kind is unknown, a weight negative, or all are 0.
  """
  for kind, weight in weights.items():
    if kind not in KINDS:
      raise ValueError(
        f"text_weights: kind {kind!r}: expected some of {KINDS}"
        f"{errors.nearest(kind, KINDS)}"
      )
    if not (weight >= 0 and np.isfinite(weight)):
      raise ValueError(
        f"text_weights: {kind}={weight}: expected at least 0, and finite"
      )
  chosen = [(kind, float(weights.get(kind, 0.0))) for kind in KINDS]
  chosen = tuple((kind, weight) for kind, weight in chosen if weight > 0)
  if not chosen:
    raise ValueError(f"text_weights={dict(weights)}: expected one above 0")
  return chosen


def available(texts: Texts, kind: str) -> bool:
  """Whether a clip has, or its aspects can make, a text of a kind."""
  made = kind != "caption" and len(texts["aspects"]) > 0
  return made or len(texts[kind]) > 0


def draw(
  texts: Texts, weights: Sequence[tuple[str, float]], seed: str
) -> tuple[str, str]:
  """Draws a kind among those a clip has, then a text of it.

  - 'caption': one of the captions.
  - 'aspects': two or more of the aspects, in random order, with commas.
  - 'title': one of the titles; where there are none, the first aspect and
    another one: short, and about this clip.
  - 'playlist': one of the playlist names; where there are none, one aspect:
    true of many clips.

  Args:
    texts: captions, aspects, titles and playlist names by kind, maybe empty.
    weights: from `check_weights`; a kind that the clip has not leaves its
      share to the others.
    seed: the same seed gives the same text.

  Returns:
    The kind and the text, or two empty strings where there is no text.
  """
  weights = [pair for pair in weights if available(texts, pair[0])]
  if not weights:
    return "", ""
  # Only `random()` is sure to stay the same in other versions of Python.
  rng = random.Random(seed)

  def below(count: int) -> int:
    return int(rng.random() * count)

  shares = itertools.accumulate(weight for _, weight in weights)
  place = rng.random() * sum(weight for _, weight in weights)
  # The last one also where rounding makes the place no share's.
  passed = sum(share <= place for share in shares)
  kind = weights[min(passed, len(weights) - 1)][0]
  stored, aspects = texts[kind], texts["aspects"]
  if kind == "aspects":
    count = min(len(aspects), _FEWEST_ASPECTS)
    count += below(len(aspects) - count + 1)
    rest = list(aspects)
    return kind, ", ".join(rest.pop(below(len(rest))) for _ in range(count))
  if stored:
    return kind, stored[below(len(stored))]
  if kind == "title" and len(aspects) > 1:
    return kind, f"{aspects[0]}, {aspects[1 + below(len(aspects) - 1)]}"
  return kind, aspects[below(len(aspects))]


def tokenize_drawn(
  dataset: tf.data.Dataset,
  vocabulary: vocabularies.TextVocabulary,
  text_length: int,
  weights: Sequence[tuple[str, float]],
) -> tf.data.Dataset:
  """Adds `text_tokens` int32 `[text_length]`, all 0 where there is no text.

  Args:
    dataset: examples with `features.TEXTS` and a `crop_seed`, of which alone
      the drawn text depends.
    vocabulary: of the text tower.
    text_length: in ids.
    weights: from `check_weights`.
  """

  def encode(seed: np.ndarray, *texts: np.ndarray) -> np.ndarray:
    by_kind = {
      kind: [text.decode() for text in of] for kind, of in zip(KINDS, texts)
    }
    seed = "/".join(str(int(part)) for part in seed)
    text = draw(by_kind, weights, f"{seed}/text")[1]
    return vocabulary.encode(text, text_length)

  def add(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    texts = [example[features.TEXT_FEATURES[kind]] for kind in KINDS]
    tokens = tf.numpy_function(
      encode, [example[features.CROP_SEED], *texts], tf.int32
    )
    tokens.set_shape([text_length])
    return {**example, "text_tokens": tokens}

  return seqio.map_over_dataset(add)(dataset)
