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


# What is written about a clip, by kind (`data/text_kinds.py`).
TEXT_FEATURES = {
  "caption": "captions",
  "aspects": "aspects",
  "title": "titles",
  "playlist": "playlists",
}


def clip(
  num_channels: int = 1, all_texts: bool = False
) -> dict[str, tf.TensorSpec]:
  """Of a clip: `waveform` `[samples]` (and channels) in [-1, 1], and texts.

  Args:
    num_channels: of the waveform.
    all_texts: all of `TEXT_FEATURES`, else `captions` alone.
  """
  names = TEXT_FEATURES.values() if all_texts else ("captions",)
  return {
    "waveform": tf.TensorSpec(waveform_shape(None, num_channels), tf.float32),
    **{name: tf.TensorSpec([None], tf.string) for name in names},
  }


def waveform_shape(num_samples: int | None, num_channels: int) -> list:
  """`[samples]` of one channel, else `[samples, channels]`."""
  return [num_samples] if num_channels == 1 else [num_samples, num_channels]


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
