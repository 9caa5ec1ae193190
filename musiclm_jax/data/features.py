# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of features: what sources emit and tasks promise.

Every source emits, beside its own features, the four of `BOOKKEEPING`; every
batch ends with `example_ids` and, in evaluation, `example_weights`.
"""

import seqio
import tensorflow as tf

EXAMPLE_IDS = "example_ids"  # Position in the corpora of the task.
EXAMPLE_WEIGHTS = "example_weights"  # 0 on rows that only fill a batch.
CROP_SEED = "crop_seed"  # Hash of (seed, position in the run).

BOOKKEEPING = {
  EXAMPLE_IDS: tf.TensorSpec([], tf.int64),
  EXAMPLE_WEIGHTS: tf.TensorSpec([], tf.float32),
  CROP_SEED: tf.TensorSpec([2], tf.int32),
}

CLIP = {
  "waveform": tf.TensorSpec([None], tf.float32),  # [samples] in [-1, 1]
  "captions": tf.TensorSpec([None], tf.string),  # [captions]
}

# What is written about a clip, by kind (`data/text_kinds.py`).
TEXT_FEATURES = {
  "caption": "captions",
  "aspects": "aspects",
  "title": "titles",
  "playlist": "playlists",
}
CLIP_TEXTS = {
  **CLIP,
  **{name: tf.TensorSpec([None], tf.string) for name in TEXT_FEATURES.values()},
}


def codes_spec(num_codebooks: int) -> tf.TensorSpec:
  """Codes of one stream: int32 `[frames, codebooks]`, -1 on padding."""
  return tf.TensorSpec([None, num_codebooks], tf.int32)


def continuous(rank: int, dtype: tf.DType) -> seqio.ContinuousFeature:
  """A task feature that is not text and is never given an EOS."""
  return seqio.ContinuousFeature(rank=rank, dtype=dtype)


def bookkeeping_features() -> dict[str, seqio.ContinuousFeature]:
  """The scalar task features each task outputs."""
  return {
    EXAMPLE_IDS: continuous(0, tf.int64),
    EXAMPLE_WEIGHTS: continuous(0, tf.float32),
  }


def text(num_tokens: int) -> seqio.Feature:
  """Text tokens: int32 `[text_length]`, padded, without EOS."""
  vocabulary = seqio.PassThroughVocabulary(num_tokens)
  return seqio.Feature(vocabulary=vocabulary, add_eos=False, dtype=tf.int32)
